package harness

import (
	"bytes"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Client is shared by all requests of the tests: no redirects, no compression, bounded.
var client = &http.Client{
	Timeout:       60 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
}

// Answer is a response with its body read.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// JSON decodes the body; nil when it is no JSON object.
func (a Answer) JSON() map[string]any {
	var m map[string]any
	_ = json.Unmarshal([]byte(a.Body), &m)
	return m
}

// Index is the X-Config-Index of the answer, "" without.
func (a Answer) Index() string { return a.Header.Get("X-Config-Index") }

// Do sends a request; errors of the connection are returned.
func Do(method, rawURL, contentType, body string, header ...string) (Answer, error) {
	req, err := http.NewRequest(method, rawURL, strings.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	if body == "" {
		req.Body, req.ContentLength = nil, 0
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if strings.EqualFold(header[i], "Host") {
			req.Host = header[i+1]
			continue
		}
		req.Header.Add(header[i], header[i+1])
	}
	r, err := client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return Answer{r.StatusCode, r.Header, string(b)}, err
}

// Form posts url-encoded fields given as name, value pairs, in order, as curl --data does.
func (n *Node) Form(method, path string, fields ...string) Answer {
	n.t.Helper()
	var b strings.Builder
	for i := 0; i+1 < len(fields); i += 2 {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(fields[i] + "=" + url.QueryEscape(fields[i+1]))
	}
	return n.must(Do(method, "http://"+n.Admin+path, "application/x-www-form-urlencoded", b.String()))
}

// JSON sends a JSON body to the Admin API.
func (n *Node) JSON(method, path, body string, header ...string) Answer {
	n.t.Helper()
	ct := ""
	if body != "" {
		ct = "application/json"
	}
	return n.must(Do(method, "http://"+n.Admin+path, ct, body, header...))
}

// Multipart sends fields as multipart/form-data, as curl -F does.
func (n *Node) Multipart(method, path string, fields ...string) Answer {
	n.t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i+1 < len(fields); i += 2 {
		if name, ok := strings.CutSuffix(fields[i], "@"); ok {
			p, _ := w.CreateFormFile(name, "file.pem")
			io.WriteString(p, fields[i+1])
			continue
		}
		w.WriteField(fields[i], fields[i+1])
	}
	w.Close()
	return n.must(Do(method, "http://"+n.Admin+path, w.FormDataContentType(), b.String()))
}

// Get sends a request through the proxy.
func (n *Node) Get(path string, header ...string) Answer {
	n.t.Helper()
	return n.must(Do("GET", "http://"+n.Proxy+path, "", "", header...))
}

func (n *Node) must(a Answer, err error) Answer {
	n.t.Helper()
	if err != nil {
		n.t.Fatalf("%s: %v", n.Name, err)
	}
	return a
}

// Echo is an upstream that answers with what it received as JSON {"method","path","query","headers":{...},"body"}.
type Echo struct {
	URL   string
	Count atomic.Int64
}

// StartEcho runs an Echo for the test.
func StartEcho(t testing.TB) *Echo {
	e := &Echo{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.Count.Add(1)
		body, _ := io.ReadAll(r.Body)
		r.Header.Set("Host", r.Host)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"method": r.Method, "path": r.URL.Path, "query": r.URL.RawQuery, "headers": r.Header, "body": string(body),
		})
	}))
	t.Cleanup(s.Close)
	e.URL = s.URL
	return e
}

// Saw is a request header as the echo upstream received it, "" when absent.
func (a Answer) Saw(header string) string {
	h, _ := a.JSON()["headers"].(map[string]any)
	v, _ := h[http.CanonicalHeaderKey(header)].([]any)
	var s []string
	for _, x := range v {
		s = append(s, x.(string))
	}
	return strings.Join(s, ", ")
}
