//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// loadHTTP3 asks over as many connections and streams as h2load does in the row of HTTP/2, and prints how many answers came.
func loadHTTP3(addr string, d time.Duration) error {
	const conns, streams = 16, 10
	var count atomic.Int64
	var wg sync.WaitGroup
	failures := make(chan error, conns*streams)
	end := time.Now().Add(d)
	for range conns {
		t := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"}, DisableCompression: true}
		defer t.Close()
		for range streams {
			wg.Go(func() {
				for time.Now().Before(end) {
					if err := askHTTP3(t, "https://"+addr+"/get"); err != nil {
						failures <- err
						return
					}
					count.Add(1)
				}
			})
		}
	}
	wg.Wait()
	close(failures)
	fmt.Print(count.Load())
	return <-failures
}

func askHTTP3(t *http3.Transport, url string) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.Join(err, errors.New(resp.Status))
	}
	return errors.Join(err, resp.Body.Close())
}
