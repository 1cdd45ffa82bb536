package h2

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"concord/proxy/exchange"
	"concord/proxy/h1"
)

// PoolOptions configure a Pool. Zero values mean the defaults.
type PoolOptions struct {
	IdleTimeout time.Duration // how long a connection is kept without streams, 60 s
	Limits      h1.Limits     // of response heads
	MaxRequests int           // on one connection, 10,000; it is closed when the last of them is over
	// A connection that was silent for PingAfter (15 s) is asked for a sign of life together with the next request; one with open streams also after
	// StreamSilence (310 s: gRPC servers take more than a ping in five minutes for an attack). Without an answer within PongTime (10 s) it is over.
	PingAfter, StreamSilence, PongTime time.Duration
}

// Key is what must be equal for exchanges to share a connection.
type Key struct {
	Addr netip.AddrPort
	TLS  *tls.Config // by identity; nil: plain text
	Name string      // server name of TLS
}

// Pool keeps HTTP/2 connections to upstreams. It is safe for many goroutines.
type Pool struct {
	o       PoolOptions
	lim     limits
	keep    *keeper
	streams sync.Pool

	mu     sync.Mutex
	places map[Key]*place
	closed bool
}

// place is where one key's connections are. An empty one is forgotten.
type place struct {
	conns   []*clientConn
	dialing *dialing
}

// dialing is a connection that is being made; several exchanges may wait for it.
type dialing struct {
	done chan struct{}
	err  error
}

var errPoolClosed = errors.New("h2: the pool was closed")

// NewPool makes a Pool; Close ends it.
func NewPool(o PoolOptions) *Pool {
	setDefault(&o.IdleTimeout, 60*time.Second)
	setDefault(&o.MaxRequests, 10000)
	setDefault(&o.PingAfter, 15*time.Second)
	setDefault(&o.StreamSilence, 310*time.Second)
	setDefault(&o.PongTime, 10*time.Second)
	p := &Pool{o: o, keep: newKeeper(o.IdleTimeout, o.PongTime, o.StreamSilence), places: map[Key]*place{}}
	p.lim = limits{
		head: o.Limits.WithDefaults(), window: 16 << 20, streamWindow: 256 << 10, early: true,
		headTime: 60 * time.Second, writeTime: 60 * time.Second, idleTime: o.IdleTimeout,
	}
	p.streams.New = func() any { return newClientStream() }
	return p
}

// Close closes all connections.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.keep.each(func(c *conn) { _ = c.nc.Close() })
	p.keep.close()
}

// maxDials bounds the connections that are made for one exchange and then take no stream.
const maxDials = 3

// maxStale is how often an exchange that was certainly not looked at is tried on another connection.
const maxStale = 2

// RoundTrip sends x.Request to the upstream that key and dial stand for and fills x.Response up to its head; the body
// streams, and so may the request's, both at once. dial makes a connection on which HTTP/2 was agreed, or is taken for
// granted; what it returns as error is returned. Other errors are a *Failure, which wraps what h1's client would have
// returned. Release must follow a success.
func (p *Pool) RoundTrip(x *exchange.Exchange, key Key, dial func() (net.Conn, error)) error {
	for try := 0; ; try++ {
		s, err := p.open(x, key, dial)
		if err != nil {
			return err
		}
		err = s.run()
		if err == nil {
			return nil
		}
		s.release()
		p.streams.Put(s)
		if try == maxStale || !errors.Is(err, h1.ErrStale) || !x.Request.Rewind() {
			return err
		}
	}
}

// Release ends the exchange with the upstream; false: x is not one of this pool.
func (p *Pool) Release(x *exchange.Exchange) bool {
	s, ok := x.Link.(*clientStream)
	if !ok {
		return false
	}
	s.release()
	p.streams.Put(s)
	return true
}

// open begins the exchange on a connection that takes it.
func (p *Pool) open(x *exchange.Exchange, key Key, dial func() (net.Conn, error)) (*clientStream, error) {
	s := p.streams.Get().(*clientStream)
	for dials := 0; ; {
		c, d, own, err := p.find(key)
		if err != nil {
			p.streams.Put(s)
			return nil, err
		}
		if c != nil {
			ok, err := c.start(s, x)
			if err != nil {
				p.streams.Put(s)
				return nil, &Failure{Err: err}
			}
			if ok {
				return s, nil
			}
			continue
		}
		if own {
			if dials++; dials > maxDials {
				d.err = &Failure{Err: h1.ErrNoResponse}
			}
			p.dial(key, d, dial, x.Upstream.ConnectTimeout)
		} else {
			<-d.done
		}
		if d.err != nil {
			p.streams.Put(s)
			return nil, d.err
		}
	}
}

// find returns a connection that takes another stream, or else the making of one: own tells that it is the caller's part.
func (p *Pool) find(key Key) (c *clientConn, d *dialing, own bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, false, errPoolClosed
	}
	e := p.places[key]
	if e == nil {
		e = &place{}
		p.places[key] = e
	}
	for _, c := range e.conns {
		c.mu.Lock()
		ok := c.usable()
		c.mu.Unlock()
		if ok {
			return c, nil, false, nil
		}
	}
	if e.dialing == nil {
		e.dialing, own = &dialing{done: make(chan struct{})}, true
	}
	return nil, e.dialing, own, nil
}

func (p *Pool) dial(key Key, d *dialing, dial func() (net.Conn, error), patience time.Duration) {
	var nc net.Conn
	var c *clientConn
	err := d.err
	if err == nil {
		nc, err = dial()
	}
	if err == nil {
		c = p.newConn(nc, key, patience)
		go p.serve(c)
		err = c.begun()
	}
	p.mu.Lock()
	e := p.places[key]
	e.dialing = nil
	if err == nil && p.closed {
		err = errPoolClosed
		_ = nc.Close()
	}
	if err == nil && !c.over {
		e.conns = append(e.conns, c)
	} else if len(e.conns) == 0 {
		delete(p.places, key)
	}
	p.mu.Unlock()
	d.err = err
	close(d.done)
}

// forget is called when a connection is over.
func (p *Pool) forget(c *clientConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.over = true
	e := p.places[c.key]
	if e == nil {
		return
	}
	e.conns = slices.DeleteFunc(e.conns, func(o *clientConn) bool { return o == c })
	if len(e.conns) == 0 && e.dialing == nil {
		delete(p.places, c.key)
	}
}

// Stats are the open connections and the exchanges on them.
func (p *Pool) Stats() (conns, streams int) {
	p.keep.each(func(c *conn) {
		c.mu.Lock()
		conns, streams = conns+1, streams+c.running
		c.mu.Unlock()
	})
	return conns, streams
}
