package keyauth

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/textproto"
	"slices"

	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// maxBody is the longest body, in bytes, in which a key is looked for.
const maxBody = 1 << 20

// form is a request body whose fields can be read and dropped. Bodies of other types, and broken ones, have no fields.
type form struct {
	encoded  *exchange.Request          // application/x-www-form-urlencoded, as a query
	object   map[string]json.RawMessage // JSON
	parts    []part                     // multipart
	boundary string
}

type part struct {
	name    string
	header  textproto.MIMEHeader
	content []byte
}

// readForm buffers the body. One that is too long to be searched, and so to be cleaned of the key, is refused.
func readForm(x *exchange.Exchange) (*form, *plugin.Exit) {
	f := &form{}
	kind, params, err := mime.ParseMediaType(x.Request.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" && kind != "application/x-www-form-urlencoded" && kind != "multipart/form-data" {
		return f, nil
	}
	data, err := x.Request.Buffer(maxBody)
	switch {
	case errors.Is(err, exchange.ErrTooLarge):
		return nil, plugin.Refuse(413, plugin.Message(413), "")
	case err != nil:
		return nil, plugin.Refuse(400, plugin.Message(400), "")
	}
	switch kind {
	case "application/json":
		if json.Unmarshal(data, &f.object) != nil {
			f.object = nil
		}
	case "multipart/form-data":
		f.boundary = params["boundary"]
		f.parts = split(data, f.boundary)
	default:
		f.encoded = &exchange.Request{RawQuery: string(data)}
	}
	return f, nil
}

// split reads the parts of a multipart body, none if it is broken.
func split(data []byte, boundary string) (list []part) {
	if !bytes.Contains(data, []byte("--"+boundary+"--")) {
		return nil
	}
	r := multipart.NewReader(bytes.NewReader(data), boundary)
	for {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return list
		}
		if err != nil {
			return nil
		}
		content, err := io.ReadAll(p)
		if err != nil {
			return nil
		}
		list = append(list, part{p.FormName(), p.Header, content})
	}
}

// value is the first value of a field, and how many there are; a JSON array or object counts as several (Kong).
func (f *form) value(name string) (first string, n int) {
	add := func(v string) {
		if n++; n == 1 {
			first = v
		}
	}
	if f.encoded != nil {
		for v := range f.encoded.QueryValues(name) {
			add(v)
		}
	}
	if raw := f.object[name]; len(raw) > 0 {
		switch raw[0] {
		case '[', '{':
			n = 2
		case '"':
			if json.Unmarshal(raw, &first) == nil {
				n = 1
			}
		}
	}
	for _, p := range f.parts {
		if p.name == name {
			add(string(p.content))
		}
	}
	return first, n
}

// drop removes a field from the body that the upstream receives.
func (f *form) drop(x *exchange.Exchange, name string) {
	if _, n := f.value(name); n == 0 {
		return
	}
	var out bytes.Buffer
	switch {
	case f.encoded != nil:
		f.encoded.DelQuery(name)
		out.WriteString(f.encoded.RawQuery)
	case f.object != nil:
		delete(f.object, name)
		e := json.NewEncoder(&out)
		e.SetEscapeHTML(false)
		if e.Encode(f.object) != nil {
			return
		}
		out.Truncate(out.Len() - 1) // the encoder's line end
	default:
		f.parts = slices.DeleteFunc(f.parts, func(p part) bool { return p.name == name })
		w := multipart.NewWriter(&out)
		if w.SetBoundary(f.boundary) != nil {
			return
		}
		for _, p := range f.parts {
			to, err := w.CreatePart(p.header)
			if err != nil {
				return
			}
			if _, err := to.Write(p.content); err != nil {
				return
			}
		}
		w.Close()
	}
	x.Request.SetBody(out.Bytes())
}
