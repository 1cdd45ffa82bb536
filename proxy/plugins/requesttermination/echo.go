package requesttermination

import (
	"encoding/json"
	"mime"
	"net"
	"os"
	"strconv"
	"strings"

	"concord/fsm/entity"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// maxEcho bounds, in bytes, the request body that is shown.
const maxEcho = 1 << 20

type echo struct {
	Message string `json:"message,omitempty"`
	Kong    node   `json:"kong"`
	Request struct {
		Scheme      string         `json:"scheme"`
		Host        string         `json:"host"`
		Port        int            `json:"port"`
		Headers     map[string]any `json:"headers"`
		Query       map[string]any `json:"query"`
		Body        any            `json:"body,omitempty"`
		RawBody     string         `json:"raw_body,omitempty"`
		Method      string         `json:"method"`
		Path        string         `json:"path"`
		URICaptures captures       `json:"uri_captures"`
	} `json:"request"`
	Route   *entity.Route   `json:"matched_route,omitempty"`
	Service *entity.Service `json:"matched_service,omitempty"`
}

type node struct {
	ID       string `json:"node_id"`
	PID      int    `json:"worker_pid"`
	Hostname string `json:"hostname"`
}

type captures struct {
	Named map[string]string `json:"named"`
}

func (i *instance) echo(x *exchange.Exchange) error {
	r := &x.Request
	e := echo{Message: i.text(), Kong: node{i.env.NodeID(), os.Getpid(), i.env.Hostname}, Route: x.Route, Service: x.Service}
	out := &e.Request
	out.Scheme, out.Method, out.Path = r.Scheme, r.Method, r.Path
	out.Host, out.Port = hostPort(x)
	out.Headers, out.Query = map[string]any{}, map[string]any{}
	for _, f := range r.Header.Fields {
		collect(out.Headers, strings.ToLower(f.Name), f.Value)
	}
	for name, value := range r.QueryAll() {
		collect(out.Query, name, value)
	}
	out.URICaptures.Named = map[string]string{}
	for c := x.Captures; len(c) > 1; c = c[2:] {
		out.URICaptures.Named[c[0]] = c[1]
	}
	raw, err := r.Buffer(maxEcho)
	if err != nil {
		return plugin.Refuse(413, plugin.Message(413), "")
	}
	out.RawBody = string(raw)
	out.Body = parsed(r.Header.Get("Content-Type"), raw)
	return &plugin.Exit{Status: i.StatusCode, Body: &e}
}

// collect keeps a single value as a string and several as a list.
func collect(m map[string]any, name, value string) {
	switch old := m[name].(type) {
	case nil:
		m[name] = value
	case string:
		m[name] = []string{old, value}
	case []string:
		m[name] = append(old, value)
	}
}

// parsed is the body as a value when it is a form or JSON.
func parsed(contentType string, raw []byte) any {
	switch kind, _, _ := mime.ParseMediaType(contentType); kind {
	case "application/json":
		var v any
		if json.Unmarshal(raw, &v) == nil {
			return v
		}
	case "application/x-www-form-urlencoded":
		m := map[string]any{}
		for name, value := range (&exchange.Request{RawQuery: string(raw)}).QueryAll() {
			collect(m, name, value)
		}
		return m
	}
	return nil
}

func hostPort(x *exchange.Exchange) (string, int) {
	host, port, err := net.SplitHostPort(x.Request.Host)
	if err != nil {
		return x.Request.Host, int(x.Conn.Local.Port())
	}
	n, _ := strconv.Atoi(port)
	return host, n
}
