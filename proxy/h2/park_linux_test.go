package h2

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"concord/proxy/h1"
)

// lot is a server whose connections are followed: served are those with a goroutine, open those that have not ended.
type lot struct {
	*Server
	addr         string
	clock        *h1.Clock
	tls          *tls.Config
	served, open atomic.Int64
}

// newLot serves, with TLS or without. idle and head are times after which connections are given up.
func newLot(t *testing.T, secure bool, idle, head time.Duration) *lot {
	l := &lot{clock: h1.NewClock()}
	l.Server = New(Options{Handler: &handlerFunc{serve: echo}, IdleTimeout: idle, HeaderTimeout: head, Clock: l.clock})
	if secure {
		s := httptest.NewTLSServer(nil)
		l.tls = s.TLS.Clone()
		l.tls.NextProtos = []string{"h2"}
		s.Close()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.addr = ln.Addr().String()
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			l.served.Add(1)
			l.open.Add(1)
			go func() {
				defer l.served.Add(-1)
				info := &h1.ConnInfo{Ended: func() { l.open.Add(-1) }}
				if l.tls != nil {
					tc := tls.Server(h1.NewTLSSocket(nc, nil), l.tls)
					if tc.Handshake() != nil {
						nc.Close()
						info.End()
						return
					}
					state := tc.ConnectionState()
					nc, info.TLS = tc, &state
				}
				l.ServeConn(nc, info)
			}()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_ = l.Shutdown(ctx)
		waitFor(t, "connections have not ended", func() bool { return l.open.Load() == 0 && l.Conns() == 0 })
		l.clock.Stop()
	})
	return l
}

// client is one that was served once, and has acknowledged the settings.
func (l *lot) client(t *testing.T) *rawClient {
	t.Helper()
	nc, err := net.Dial("tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	if l.tls != nil {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	}
	t.Cleanup(func() { _ = nc.Close() })
	c := newRaw(t, nc).hello()
	if !c.alive(1) {
		t.Fatal("not served")
	}
	return c
}

// ended tells whether the connection ends in order, without anything but the announcement.
func (c *rawClient) ended() error {
	if a := c.await(0); a.goaway == nil || a.goaway.ErrCode != http2.ErrCodeNo || !a.closed {
		return fmt.Errorf("%+v", a)
	}
	return nil
}

func TestParked(t *testing.T) {
	t.Parallel()
	half := []byte{0, 0, 8, 6, 0}
	rest := []byte{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}
	pong := func(c *rawClient) error {
		for {
			f, err := c.next()
			if err != nil {
				return err
			}
			if p, ok := f.(*http2.PingFrame); ok && p.IsAck() && p.Data == [8]byte{1, 2, 3, 4, 5, 6, 7, 8} {
				return nil
			}
		}
	}
	tests := []struct {
		name string
		idle time.Duration
		head time.Duration
		do   func(l *lot, c *rawClient) error
		ends bool
	}{
		{"request", time.Hour, time.Hour, func(*lot, *rawClient) error { return nil }, false},
		{"several, with bodies", time.Hour, time.Hour, func(_ *lot, c *rawClient) error {
			for id := uint32(3); id < 11; id += 2 {
				c.headers(id, false, postFields...)
			}
			time.Sleep(10 * time.Millisecond)
			for id := uint32(3); id < 11; id += 2 {
				c.data(id, true, "body")
				if a := c.await(id); a.status != "200" || !a.end {
					return fmt.Errorf("%+v", a)
				}
			}
			return nil
		}, false},
		{"ping", time.Hour, time.Hour, func(_ *lot, c *rawClient) error {
			c.write(append(half, rest...))
			return pong(c)
		}, false},
		{"ping, and parked again", time.Hour, time.Hour, func(l *lot, c *rawClient) error {
			c.write(append(half, rest...))
			if err := pong(c); err != nil {
				return err
			}
			time.Sleep(2 * restAfter * time.Millisecond)
			c.write(append(half, rest...))
			return pong(c)
		}, false},
		{"half a frame", time.Hour, time.Hour, func(_ *lot, c *rawClient) error {
			c.write(half)
			time.Sleep(2 * restAfter * time.Millisecond)
			c.write(rest)
			return pong(c)
		}, false},
		{"never the other half", time.Hour, time.Second, func(_ *lot, c *rawClient) error {
			c.write(half)
			if a := c.await(0); a.goaway == nil || a.goaway.ErrCode != http2.ErrCodeEnhanceYourCalm {
				return fmt.Errorf("%+v", a)
			}
			return c.nc.Close()
		}, true},
		{"client closes", time.Hour, time.Hour, func(_ *lot, c *rawClient) error { return c.nc.Close() }, true},
		{"client goes away", time.Hour, time.Hour, func(_ *lot, c *rawClient) error {
			c.do(c.fr.WriteGoAway(0, http2.ErrCodeNo, nil))
			return c.nc.Close()
		}, true},
		{"idle timeout", 3 * time.Second, time.Hour, func(_ *lot, c *rawClient) error { return c.ended() }, true},
		{"shutdown", time.Hour, time.Hour, func(l *lot, c *rawClient) error {
			if err := l.Shutdown(context.Background()); err != nil {
				return err
			}
			return c.ended()
		}, true},
		{"request and shutdown", time.Hour, time.Hour, func(l *lot, c *rawClient) error {
			c.headers(3, true, getFields...)
			done := make(chan error, 1)
			go func() { done <- l.Shutdown(context.Background()) }()
			if a := c.await(3); a.status != "200" || !a.end {
				return fmt.Errorf("%+v", a)
			}
			if a := c.await(0); !a.closed {
				return fmt.Errorf("%+v", a)
			}
			return <-done
		}, true},
		{"cut", time.Hour, time.Hour, func(l *lot, c *rawClient) error {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = l.Shutdown(ctx)
			if a := c.await(0); !a.closed {
				return fmt.Errorf("%+v", a)
			}
			return nil
		}, true},
		{"clock stops", time.Hour, time.Hour, func(l *lot, _ *rawClient) error { l.clock.Stop(); return nil }, false},
	}
	for _, secure := range []bool{false, true} {
		var lots []*lot // all wait at the same time
		var clients []*rawClient
		for _, tt := range tests {
			l := newLot(t, secure, tt.idle, tt.head)
			lots, clients = append(lots, l), append(clients, l.client(t))
		}
		for i, tt := range tests {
			t.Run(fmt.Sprintf("%s, TLS %v", tt.name, secure), func(t *testing.T) {
				t.Parallel()
				l, c := lots[i], clients[i]
				c.t = t
				waitFor(t, "it is not parked", func() bool { return l.served.Load() == 0 })
				if err := tt.do(l, c); err != nil {
					t.Error(err)
				}
				if tt.ends {
					waitFor(t, "it has not ended", func() bool { return l.open.Load() == 0 && l.Conns() == 0 })
				} else if !c.alive(101) || l.open.Load() != 1 {
					t.Error("not served any more", l.open.Load())
				}
			})
		}
	}
}

// TestParkedWithoutRequest: a client that never asks anything is parked, too; one that has not even sent its settings is given up in time.
func TestParkedWithoutRequest(t *testing.T) {
	t.Parallel()
	l := newLot(t, false, time.Hour, 2*time.Second)
	asks, silent := dialRaw(t, l.addr).hello(), dialRaw(t, l.addr)
	waitFor(t, "not parked", func() bool { return l.served.Load() == 0 && l.open.Load() == 1 })
	if !asks.alive(1) {
		t.Error("not served")
	}
	if a := silent.await(0); a.goaway == nil || a.goaway.ErrCode != http2.ErrCodeSettingsTimeout {
		t.Errorf("%+v", a)
	}
}

// TestParking: requests that come just when connections are being parked, whole and in parts, are answered.
func TestParking(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			t.Parallel()
			l := newLot(t, secure, time.Hour, time.Hour)
			var wg sync.WaitGroup
			for i := range 100 {
				c := l.client(t)
				wg.Go(func() {
					defer c.nc.Close()
					for round := range uint32(2) {
						time.Sleep(950*time.Millisecond + time.Duration(4*i)*time.Millisecond)
						id := 3 + 2*round
						switch i % 3 {
						case 0:
							c.headers(id, true, getFields...)
						case 1:
							c.headers(id, false, postFields...)
							time.Sleep(time.Millisecond)
							c.data(id, true, "body")
						default:
							c.do(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(getFields[:4]...), EndStream: true}))
							time.Sleep(time.Millisecond)
							c.do(c.fr.WriteContinuation(id, true, c.block(getFields[4:]...)))
						}
						if a := c.await(id); a.status != "200" || !a.end {
							t.Errorf("%d, %d: %+v", i, round, a)
							return
						}
					}
				})
			}
			wg.Wait()
			waitFor(t, "connections have not ended", func() bool { return l.open.Load() == 0 })
		})
	}
}
