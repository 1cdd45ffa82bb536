package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// unreachableError is a node that did not answer.
type unreachableError struct {
	admin string
	err   error
	other string // what names another node
}

// Error says what to do about it.
func (e *unreachableError) Error() string {
	why, advice := e.err.Error(), "look at the address in its admin_listen"
	var unknown *tls.CertificateVerificationError
	switch {
	case errors.Is(e.err, syscall.ECONNREFUSED):
		why, advice = "connection refused", "see whether a node runs there (concord health)"
	case errors.Is(e.err, context.DeadlineExceeded):
		why, advice = "no answer in time", "the node may be starting or overloaded; --timeout waits longer"
	case errors.As(e.err, &unknown):
		why, advice = unknown.Err.Error(), "name the authority of its certificate with --ca-cert"
	}
	return fmt.Sprintf("cannot reach the Admin API at %s: %s; %s. Another node is named with %s", e.admin, why, advice, e.other)
}

// refusedError is an answer other than 2xx.
type refusedError struct {
	status        int
	message, hint string
	body          []byte
}

func (e *refusedError) Error() string {
	s := e.message
	if s == "" {
		s = fmt.Sprintf("the node answered %d %s", e.status, http.StatusText(e.status))
	}
	if lines := fieldLines(e.body); len(lines) > 0 {
		s, _, _ = strings.Cut(s, " (") // where Kong's message repeats the fields
		s, _, _ = strings.Cut(s, ": {")
		s += "\n  " + strings.Join(lines, "\n  ")
	}
	if e.hint != "" {
		s += "\n  hint: " + e.hint
	}
	return s
}

// request is one call of the Admin API.
type request struct {
	method, path string
	body         any        // sent as JSON; nil: none
	form         url.Values // sent as a form, whose values the node gives the types of the entity's fields
	text         []byte     // sent as it is, being of contentType
	contentType  string
	ifMatch      string // ETag that the row must still have; "": any
}

// reply is what the node says about an answer beside its body.
type reply struct {
	index uint64 // the configuration that the answer is about, after a write the one it made
	etag  string
}

// call sends a request with a JSON body (nil: none) to the Admin API and decodes the answer into out (nil: dropped).
func (o *options) call(ctx context.Context, method, path string, body, out any) error {
	_, err := o.send(ctx, request{method: method, path: path, body: body}, out)
	return err
}

// send sends r to the Admin API and decodes the JSON of the answer into out (nil: dropped).
func (o *options) send(ctx context.Context, r request, out any) (reply, error) {
	base := o.admin
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return reply{}, usageError{fmt.Errorf("--admin %q is not a URL such as http://127.0.0.1:8001", o.admin)}
	}
	client, err := o.client()
	if err != nil {
		return reply{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	switch {
	case r.body != nil:
		if r.text, err = json.Marshal(r.body); err != nil {
			return reply{}, err
		}
		r.contentType = "application/json"
	case r.form != nil:
		r.text, r.contentType = []byte(r.form.Encode()), "application/x-www-form-urlencoded"
	}
	var content io.Reader
	if r.contentType != "" {
		content = bytes.NewReader(r.text)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, strings.TrimSuffix(u.String(), "/")+r.path, content)
	if err != nil {
		return reply{}, err
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if r.ifMatch != "" {
		req.Header.Set("If-Match", r.ifMatch)
	}
	token, err := o.credential()
	if err != nil {
		return reply{}, err
	}
	if token != "" {
		if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return reply{}, usageError{fmt.Errorf("the admin token is not sent to %s without TLS, where anyone on the way could read it: use https", base)}
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := client.Do(req)
	if err != nil {
		return reply{}, &unreachableError{base, err, "--admin URL or GWCTL_ADMIN"}
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return reply{}, &unreachableError{base, err, "--admin URL or GWCTL_ADMIN"}
	}
	if res.StatusCode/100 != 2 {
		var e struct{ Message, Hint string }
		if json.Unmarshal(answer, &e) != nil || e.Message == "" {
			e.Hint = "is this the Admin API of a Concord node?"
		}
		return reply{}, &refusedError{res.StatusCode, e.Message, e.Hint, answer}
	}
	index, _ := strconv.ParseUint(res.Header.Get("X-Config-Index"), 10, 64) // 0: not told
	said := reply{index: index, etag: res.Header.Get("ETag")}
	if out == nil {
		return said, nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return said, fmt.Errorf("%s does not answer like the Admin API of a Concord node: %w", base, err)
	}
	return said, nil
}

// fieldLines are the complaints of an answer about single fields, a line each, and those about the rows of a document.
func fieldLines(body []byte) []string {
	var e struct {
		Fields    map[string]any
		Flattened []struct {
			Kind   string `json:"entity_type"`
			Name   string `json:"entity_name"`
			ID     string `json:"entity_id"`
			Entity map[string]any
			Errors []struct{ Field, Message string }
		} `json:"flattened_errors"`
	}
	if json.Unmarshal(body, &e) != nil {
		return nil
	}
	var out []string
	for _, row := range e.Flattened {
		text := func(key string) string { s, _ := row.Entity[key].(string); return s }
		name := cmp.Or(row.Name, text("username"), text("target"), text("prefix"), text("group"), row.ID)
		for _, one := range row.Errors {
			out = append(out, fmt.Sprintf("%s: %s", strings.TrimSpace(row.Kind+" "+name), strings.TrimPrefix(one.Field+": "+one.Message, ": ")))
		}
	}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				walk(strings.TrimPrefix(path+"."+k, "."), v[k])
			}
		case []any:
			for i, one := range v {
				if text, ok := one.(string); ok && strings.HasPrefix(path, "@") {
					out = append(out, text)
				} else if one != nil {
					walk(fmt.Sprintf("%s[%d]", path, i+1), one)
				}
			}
		case string:
			out = append(out, strings.TrimSuffix(path, ".@entity")+": "+v)
		}
	}
	walk("", e.Fields)
	return out
}

func (o *options) client() (*http.Client, error) {
	t := &http.Transport{DisableKeepAlives: true}
	if o.caCert != "" {
		pem, err := os.ReadFile(o.caCert)
		if err != nil {
			return nil, usageError{fmt.Errorf("--ca-cert: %w", err)}
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, usageError{fmt.Errorf("--ca-cert: %s holds no PEM certificate", o.caCert)}
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: t}, nil
}
