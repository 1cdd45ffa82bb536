package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"concord/test/harness"
)

var loadScenes = map[string]func(*testing.T, *target){
	"D1 slow clients": func(t *testing.T, g *target) {
		big := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			chunk := make([]byte, 64<<10)
			for range 1000 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}))
		defer big.Close()
		g.second.JSON("POST", "/services", `{"name":"big","url":"`+big.URL+`"}`)
		last := g.second.JSON("POST", "/services/big/routes", `{"paths":["/big"]}`)
		if a := g.second.Get("/", "X-Min-Config-Index", last.Index()); a.Status != 200 {
			t.Fatal(a.Body)
		}
		var wg sync.WaitGroup
		slow := func(send, drip string, read bool) {
			wg.Go(func() {
				c, err := net.Dial("tcp", g.second.Proxy)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(30 * time.Second))
				io.WriteString(c, send)
				if drip != "" {
					go func() {
						for range 100 {
							if _, err := io.WriteString(c, drip); err != nil {
								return
							}
							time.Sleep(100 * time.Millisecond)
						}
					}()
				}
				if read { // the gateway ends it
					if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
						t.Errorf("%.40q: %v", send, err)
					}
				} else {
					time.Sleep(2500 * time.Millisecond) // takes nothing
				}
			})
		}
		for range 60 {
			slow("", "", true)
			slow("GET / HTTP/1.1\r\n", "X", true) // one byte of a header at a time
			slow("POST / HTTP/1.1\r\n"+gw+"Content-Length: 1000\r\n\r\nx", "", true)
			slow("POST / HTTP/1.1\r\n"+gw+"Transfer-Encoding: chunked\r\n\r\n5\r\nx", "", true)
			slow(get("/big"), "", false)
		}
		stop := time.Now().Add(2 * time.Second)
		for n := 0; time.Now().Before(stop); n++ {
			if a := g.second.Get("/others"); a.Status != 200 {
				t.Fatalf("request %d of others: %d", n, a.Status)
			}
		}
		wg.Wait()
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			a, err := harness.Do("GET", "http://"+g.second.Status+"/status", "", "")
			if err != nil {
				t.Fatal(err)
			}
			server, _ := a.JSON()["server"].(map[string]any)
			if active, _ := server["connections_active"].(float64); active < 20 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("connections are not freed: %s", a.Body)
			}
		}
		g.up.settle()
	},
	"D4 bombs pass unopened": func(t *testing.T, g *target) {
		var bomb bytes.Buffer
		z := gzip.NewWriter(&bomb)
		zeros := make([]byte, 1<<20)
		for range 64 {
			z.Write(zeros)
		}
		z.Close()
		up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if !bytes.Equal(body, bomb.Bytes()) || r.Header.Get("Content-Encoding") != "gzip" {
				w.WriteHeader(400)
				return
			}
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(body)
		}))
		defer up.Close()
		g.JSON("POST", "/services", `{"name":"bomb","url":"`+up.URL+`"}`)
		g.JSON("POST", "/services/bomb/routes", `{"paths":["/bomb"],"name":"bomb"}`)
		last := g.JSON("POST", "/routes/bomb/plugins", `{"name":"request-size-limiting","config":{"allowed_payload_size":1}}`)
		g.Get("/", "X-Min-Config-Index", last.Index())
		before := rss(t, g.Node)
		for range 5 {
			a, err := harness.Do("POST", "http://"+g.Proxy+"/bomb", "application/json", bomb.String(), "Content-Encoding", "gzip", "Accept-Encoding", "gzip")
			if err != nil || a.Status != 200 || a.Body != bomb.String() || a.Header.Get("Content-Encoding") != "gzip" {
				t.Fatalf("%d, %d bytes, %v", a.Status, len(a.Body), err)
			}
		}
		if after := rss(t, g.Node); after > before+32 {
			t.Errorf("from %d to %d MiB", before, after)
		}
		g.up.settle()
	},
	"D5 documents that are deep or wide": func(t *testing.T, g *target) {
		for name, v := range map[string]struct{ kind, body string }{
			"nested arrays":  {"application/json", `{"name":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}"},
			"nested objects": {"application/json", strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)},
			"a million keys": {"application/json", `{"name":"x"` + strings.Repeat(`,"k":1`, 1_000_000) + "}"},
			"form fields":    {"application/x-www-form-urlencoded", strings.Repeat("a=b&", 1_000_000)},
			"nested form":    {"application/x-www-form-urlencoded", "config" + strings.Repeat("[a]", 100_000) + "=1"},
			"dotted form":    {"application/x-www-form-urlencoded", "config" + strings.Repeat(".a", 100_000) + "=1"},
			"large index":    {"application/x-www-form-urlencoded", "hosts[999999999]=a"},
			"multipart":      {"multipart/form-data; boundary=b", strings.Repeat("--b\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n", 150_000) + "--b--\r\n"},
		} {
			before := rss(t, g.Node)
			start := time.Now()
			a, err := harness.Do("POST", "http://"+g.Admin+"/services", v.kind, v.body)
			if err == nil && (a.Status < 400 || a.Status >= 500) {
				t.Errorf("%s: %d %.200s", name, a.Status, a.Body)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("%s: took %v", name, d)
			}
			if after := rss(t, g.Node); after > before+128 {
				t.Errorf("%s: from %d to %d MiB", name, before, after)
			}
		}
	},
	"D6 expressions that explode elsewhere": func(t *testing.T, g *target) {
		last := g.JSON("POST", "/services/open/routes", `{"paths":["~/slow/(a+)+$","~/slow/(a|aa)+$","~/slow/(.*a){20}$"],"name":"slow"}`)
		if last.Status != 201 {
			t.Fatal(last.Body)
		}
		g.Get("/", "X-Min-Config-Index", last.Index())
		start := time.Now()
		for range 5 {
			raw(t, g.Proxy, get("/slow/"+strings.Repeat("a", 7000)+"!"))
			raw(t, g.Proxy, get("/bot", "User-Agent: "+strings.Repeat("a", 60_000)+"!"))
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("took %v", d)
		}
		for _, v := range [][2]string{{"/services/open/routes", `{"paths":["~/(a{1000}){1000}"]}`}, {"/routes/bot/plugins", `{"name":"bot-detection","config":{"deny":["(a{1000}){1000}"]}}`}, {"/services/open/routes", `{"paths":["~/(?=a)"]}`}} {
			if a := g.JSON("POST", v[0], v[1]); a.Status != 400 {
				t.Errorf("%s: %d %s", v[1], a.Status, a.Body)
			}
		}
		g.up.settle()
	},
	"D8 counters for whoever": func(t *testing.T, g *target) {
		before := rss(t, g.Node)
		const clients, each = 4, 5000
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() {
				var b strings.Builder
				for i := range each {
					b.WriteString("HEAD /rl HTTP/1.1\r\n" + gw + fmt.Sprintf("X-Id: %d-%d-%s\r\n\r\n", c, i, strings.Repeat("x", 1000)))
				}
				conn, err := net.Dial("tcp", g.Proxy)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(60 * time.Second))
				go func() {
					io.WriteString(conn, b.String())
					conn.(*net.TCPConn).CloseWrite()
				}()
				if text, err := io.ReadAll(conn); err != nil || bytes.Count(text, []byte("HTTP/1.1 200 ")) != each {
					t.Errorf("%d answers, %v", bytes.Count(text, []byte("HTTP/1.1 200 ")), err)
				}
			})
		}
		wg.Wait()
		if after := rss(t, g.Node); after > before+64 {
			t.Errorf("from %d to %d MiB", before, after)
		}
		g.up.settle()
	},
}
