package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
)

// unreachableError is a node that did not answer.
type unreachableError struct {
	admin string
	err   error
}

// Error says what to do about it.
func (e *unreachableError) Error() string {
	why, advice := e.err.Error(), "is that the address in its admin_listen?"
	var unknown *tls.CertificateVerificationError
	switch {
	case errors.Is(e.err, syscall.ECONNREFUSED):
		why, advice = "connection refused", "is a node running there (concord health)?"
	case errors.Is(e.err, context.DeadlineExceeded):
		why, advice = "no answer in time", "the node may be starting or overloaded; --timeout waits longer"
	case errors.As(e.err, &unknown):
		why, advice = unknown.Err.Error(), "name the authority of its certificate with --ca-cert"
	}
	return fmt.Sprintf("cannot reach the Admin API at %s: %s; %s Another node is named with --admin URL or GWCTL_ADMIN", e.admin, why, advice+".")
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
	if e.hint != "" {
		s += "\n  hint: " + e.hint
	}
	return s
}

// call sends a request with a JSON body (nil: none) to the Admin API and decodes the answer into out (nil: dropped).
func (o *options) call(ctx context.Context, method, path string, body, out any) error {
	base := o.admin
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return usageError{fmt.Errorf("--admin %q is not a URL such as http://127.0.0.1:8001", o.admin)}
	}
	client, err := o.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(u.String(), "/")+path, r)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	token, err := o.credential()
	if err != nil {
		return err
	}
	if token != "" {
		if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return usageError{fmt.Errorf("the admin token is not sent to %s without TLS, where anyone on the way could read it: use https", base)}
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := client.Do(req)
	if err != nil {
		return &unreachableError{base, err}
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return &unreachableError{base, err}
	}
	if res.StatusCode/100 != 2 {
		var e struct{ Message, Hint string }
		if json.Unmarshal(answer, &e) != nil || e.Message == "" {
			e.Hint = "is this the Admin API of a Concord node?"
		}
		return &refusedError{res.StatusCode, e.Message, e.Hint, answer}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s does not answer like the Admin API of a Concord node: %w", base, err)
	}
	return nil
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
