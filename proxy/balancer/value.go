package balancer

import (
	"slices"

	"github.com/google/uuid"

	"concord/proxy/exchange"
)

// source is where a value to hash comes from.
type source struct{ kind, header, queryArg, uriCapture string }

// valueHash is the hash of the exchange's value: that of hash_on, or if the request has none, of hash_fallback, else of
// the empty text, so that all requests without a value go to one peer (Kong).
func (d *Dispatch) valueHash(x *exchange.Exchange) uint64 {
	for i := range d.config.sources {
		if h, ok := d.hashOf(x, &d.config.sources[i]); ok {
			return h.sum()
		}
	}
	return start().sum()
}

func (d *Dispatch) hashOf(x *exchange.Exchange, s *source) (digest, bool) {
	switch s.kind {
	case "consumer":
		if x.Consumer != nil {
			return start().text(x.Consumer.ID), true
		}
		if x.Credential != nil {
			return start().text(x.Credential.ID), true
		}
	case "ip":
		var b [64]byte
		return start().bytes(x.ClientIP.AppendTo(b[:0])), true
	case "header":
		return hashHeader(&x.Request.Header, s.header)
	case "cookie":
		value, ok := x.Request.Cookie(d.config.row.HashOnCookie)
		if !ok {
			d.cookie = uuid.NewString()
			value = d.cookie
		}
		return start().text(value), true
	case "path":
		return start().text(x.Request.Path), true
	case "query_arg":
		return hashQuery(&x.Request, s.queryArg)
	case "uri_capture":
		for i := 0; i+1 < len(x.Captures); i += 2 {
			if x.Captures[i] == s.uriCapture {
				return start().text(x.Captures[i+1]), true
			}
		}
	}
	return 0, false
}

// hashHeader takes all values of a header as one list.
func hashHeader(h *exchange.Header, name string) (digest, bool) {
	d, found := start(), false
	for i := range h.Fields {
		f := &h.Fields[i]
		if !exchange.EqualFold(f.Name, name) {
			continue
		}
		if found {
			d = d.text(", ")
		}
		d, found = d.text(f.Value), true
	}
	return d, found
}

// hashQuery takes all values of an argument, in any order.
func hashQuery(r *exchange.Request, name string) (digest, bool) {
	first, found, more := "", false, false
	for v := range r.QueryValues(name) {
		if found {
			more = true
			break
		}
		first, found = v, true
	}
	if !more {
		return start().text(first), found
	}
	d := start()
	for i, v := range slices.Sorted(r.QueryValues(name)) {
		if i > 0 {
			d = d.text(",")
		}
		d = d.text(v)
	}
	return d, true
}
