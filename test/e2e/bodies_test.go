package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"concord/test/harness"
)

// pattern is n bytes that are nowhere the same for long.
type pattern struct{ at, n int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.n {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), p.n-p.at)]
	for i := range b {
		b[i] = byte((p.at + int64(i)) * 2654435761 >> 24)
	}
	p.at += int64(len(b))
	return len(b), nil
}

func digest(r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%d %x %v", n, h.Sum(nil)[:8], err)
}

// bodyUpstream sums what is posted, makes what is asked for, and tells when a client has left.
type bodyUpstream struct {
	*httptest.Server
	next chan string   // the events of /events
	came chan struct{} // somebody is at /poll or /sum
	left chan struct{} // somebody has left
	sums atomic.Int64  // requests to /sum
}

func startBodyUpstream(t *testing.T) *bodyUpstream {
	u := &bodyUpstream{next: make(chan string), came: make(chan struct{}, 1), left: make(chan struct{}, 8)}
	arrive := func() {
		select {
		case u.came <- struct{}{}:
		default:
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		arrive()
		u.sums.Add(1)
		sum := digest(r.Body)
		if !strings.HasSuffix(sum, "<nil>") {
			select {
			case u.left <- struct{}{}:
			default:
			}
		}
		fmt.Fprint(w, sum)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(500 * time.Millisecond) // the gateway must not take in more than the connections hold meanwhile
		fmt.Fprint(w, digest(r.Body))
	})
	mux.HandleFunc("/make", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		if r.URL.Query().Has("length") {
			w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		}
		io.Copy(w, &pattern{n: n})
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for {
			select {
			case e := <-u.next:
				fmt.Fprintf(w, "data: %s\n\n", e)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				u.left <- struct{}{}
				return
			}
		}
	})
	mux.HandleFunc("/poll", func(w http.ResponseWriter, r *http.Request) {
		arrive()
		select {
		case e := <-u.next:
			fmt.Fprint(w, e)
		case <-r.Context().Done():
			u.left <- struct{}{}
		}
	})
	u.Server = httptest.NewServer(mux)
	t.Cleanup(u.Close)
	return u
}

// versions are the ways to the gateway.
func versions(n *harness.Node) map[string]struct {
	url string
	set func(*http.Protocols)
} {
	type way = struct {
		url string
		set func(*http.Protocols)
	}
	return map[string]way{
		"h1":     {"http://" + n.Proxy, func(p *http.Protocols) { p.SetHTTP1(true) }},
		"h1 TLS": {"https://" + n.ProxyTLS, func(p *http.Protocols) { p.SetHTTP1(true) }},
		"h2 TLS": {"https://" + n.ProxyTLS, func(p *http.Protocols) { p.SetHTTP2(true) }},
	}
}

func client(t *testing.T, set func(*http.Protocols)) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true}
	set(tr.Protocols)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * time.Minute}
}

// startBodies serves u under /buffered and /unbuffered, which differ for short request bodies only, and /limited.
func startBodies(t *testing.T, u *bodyUpstream) *harness.Node {
	n := harness.NewNode(t, "solo")
	n.Start()
	expect(t, "service", n.JSON("POST", "/services", `{"name":"s","url":"`+u.URL+`"}`), 201)
	for _, r := range []string{`"paths":["/buffered"],"request_buffering":true,"response_buffering":true`, `"paths":["/unbuffered"],"request_buffering":false,"response_buffering":false`, `"paths":["/limited"],"name":"limited"`} {
		expect(t, "route", n.JSON("POST", "/services/s/routes", "{"+r+"}"), 201)
	}
	last := expect(t, "plugin", n.JSON("POST", "/routes/limited/plugins", `{"name":"request-size-limiting","config":{"allowed_payload_size":64}}`), 201)
	n.Get("/", "X-Min-Config-Index", last.Index())
	return n
}

// TestBodies streams large bodies both ways and many at once: they arrive whole, and the node does not grow by them.
func TestBodies(t *testing.T) {
	t.Parallel()
	u := startBodyUpstream(t)
	n := startBodies(t, u)
	const large = 24 << 20
	want := digest(&pattern{n: large})
	before := rss(t, n)
	for name, v := range versions(n) {
		c := client(t, v.set)
		for _, path := range []string{"/buffered", "/unbuffered", "/limited"} {
			for _, known := range []bool{true, false} {
				req, err := http.NewRequest("POST", v.url+path+"/sum", io.MultiReader(&pattern{n: large}))
				if err != nil {
					t.Fatal(err)
				}
				if req.ContentLength = -1; known {
					req.ContentLength = large
				}
				r, err := c.Do(req)
				if err != nil {
					t.Fatalf("%s %s: %v", name, path, err)
				}
				b, _ := io.ReadAll(r.Body)
				r.Body.Close()
				if string(b) != want {
					t.Errorf("%s %s, length known %v: upstream received %s, want %s", name, path, known, b, want)
				}
			}
		}
		for _, query := range []string{"", "&length"} {
			r, err := c.Get(fmt.Sprintf("%s/buffered/make?n=%d%s", v.url, large, query))
			if err != nil {
				t.Fatal(err)
			}
			if got := digest(r.Body); got != want {
				t.Errorf("%s%s: client received %s, want %s", name, query, got, want)
			}
			r.Body.Close()
		}
	}
	if after := rss(t, n); after > before+48 {
		t.Errorf("streaming: from %d to %d MiB", before, after)
	}
	before = rss(t, n)
	var wg sync.WaitGroup
	peak := 0
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				peak = max(peak, rss(t, n))
			}
		}
	}()
	c := client(t, versions(n)["h1"].set)
	small := digest(&pattern{n: 4 << 20})
	for i := range 60 {
		wg.Go(func() {
			path := []string{"/buffered", "/unbuffered", "/limited"}[i%3]
			r, err := c.Post("http://"+n.Proxy+path+"/slow", "application/octet-stream", &pattern{n: 4 << 20})
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Body.Close()
			if b, _ := io.ReadAll(r.Body); string(b) != small {
				t.Errorf("%s: %s, want %s", path, b, small)
			}
		})
	}
	wg.Wait()
	close(stop)
	<-watched
	if peak > before+64 { // the bodies are 240 MiB
		t.Errorf("60 uploads to a slow upstream: from %d to %d MiB", before, peak)
	}
	t.Run("too large", func(t *testing.T) {
		nc, err := net.Dial("tcp", n.Proxy)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(nc, "POST /limited/sum HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", 64<<20+1) // whoever goes on sending may miss the answer
		if r, err := http.ReadResponse(bufio.NewReader(nc), nil); err != nil || r.StatusCode != 413 {
			t.Errorf("length known: %v %v", r, err)
		}
		req, _ := http.NewRequest("POST", "http://"+n.Proxy+"/limited/sum", io.MultiReader(&pattern{n: 64<<20 + 1}))
		req.ContentLength = -1
		if r, err := c.Do(req); err == nil {
			if r.StatusCode != 413 {
				t.Errorf("length not known: %d", r.StatusCode)
			}
			r.Body.Close()
		} else if !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") {
			t.Errorf("length not known: %v", err)
		}
	})
}

// TestStreaming: what the upstream says arrives when it says so, whatever the route says about buffering, and a client that
// leaves frees the upstream.
func TestStreaming(t *testing.T) {
	t.Parallel()
	u := startBodyUpstream(t)
	n := startBodies(t, u)
	for name, v := range versions(n) {
		t.Run(name, func(t *testing.T) {
			c := client(t, v.set)
			testHeld(t, u, c, v.url)
			for _, path := range []string{"/buffered", "/unbuffered"} {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				req, _ := http.NewRequestWithContext(ctx, "GET", v.url+path+"/events", nil)
				r, err := c.Do(req) // the head comes before any event
				if err != nil {
					t.Fatal(err)
				}
				br := bufio.NewReader(r.Body)
				for i := range 20 { // each event is sent when the one before has arrived
					u.next <- fmt.Sprint(i)
					line, err := br.ReadString('\n')
					if want := fmt.Sprintf("data: %d\n", i); line != want || err != nil {
						t.Fatalf("%s: %q %v, want %q", path, line, err, want)
					}
					br.ReadString('\n')
				}
				cancel()
				u.waitLeft(t, path+"/events")
				r.Body.Close()

				ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				req, _ = http.NewRequestWithContext(ctx, "GET", v.url+path+"/poll", nil)
				go func() {
					<-u.came
					cancel()
				}()
				if r, err := c.Do(req); err == nil {
					t.Errorf("%s: %d before anything was sent", path, r.StatusCode)
				}
				u.waitLeft(t, path+"/poll")
				time.AfterFunc(100*time.Millisecond, func() { u.next <- "news" })
				r, err = c.Get(v.url + path + "/poll")
				if err != nil {
					t.Fatal(err)
				}
				<-u.came
				if b, err := io.ReadAll(r.Body); string(b) != "news" || err != nil {
					t.Errorf("%s: %q %v", path, b, err)
				}
				r.Body.Close()
			}
		})
	}
	t.Run("a client that leaves within its body", func(t *testing.T) {
		c, err := net.Dial("tcp", n.Proxy)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "POST /unbuffered/sum HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx")
		<-u.came
		c.Close()
		u.waitLeft(t, "body")
	})
}

// testHeld: a short body that comes bit by bit arrives whole, and one that breaks off not at all.
func testHeld(t *testing.T, u *bodyUpstream, c *http.Client, url string) {
	t.Helper()
	before := u.sums.Load()
	for _, broken := range []bool{true, false} {
		for _, length := range []int64{-1, 4} {
			r, w := io.Pipe()
			go func() {
				for _, s := range []string{"a", "b", "c"} {
					_, _ = io.WriteString(w, s)
				}
				if broken {
					w.CloseWithError(errors.New("the client has had enough"))
					return
				}
				_, _ = io.WriteString(w, "d")
				w.Close()
			}()
			req, err := http.NewRequest("POST", url+"/buffered/sum", r)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = length
			res, err := c.Do(req)
			if broken {
				if err == nil {
					res.Body.Close()
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			<-u.came
			if b, _ := io.ReadAll(res.Body); string(b) != digest(strings.NewReader("abcd")) {
				t.Errorf("length %d: %s", length, b)
			}
			res.Body.Close()
		}
	}
	if n := u.sums.Load() - before; n != 2 {
		t.Errorf("the upstream got %d requests, want 2", n)
	}
}

func (u *bodyUpstream) waitLeft(t *testing.T, what string) {
	t.Helper()
	select {
	case <-u.left:
	case <-time.After(60 * time.Second):
		t.Fatalf("%s: the upstream still serves a client that has left", what)
	}
}
