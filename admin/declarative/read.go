// Package declarative is the text of a configuration: kong.yml and decK files in YAML or JSON, read into rows that name what they
// belong to, and written from rows again; and Kong's error shapes for what is wrong in them.
//
// It is text and schemas only: it does not know what is stored, decides nothing about it and has no plugins. Package service compares
// rows with the store and writes them.
package declarative

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"concord/fsm/schema"
)

// The bounds of a document. Aliases of YAML count each time they are used, so that a few lines cannot grow without limit.
const (
	MaxBytes  = 64 << 20
	MaxValues = 4 << 20
	MaxLines  = 2 << 20 // of YAML, list items on one line included: its parser needs some 500 bytes for each
)

// ErrEmpty is of a document that says nothing at all.
var ErrEmpty = errors.New(`the document is empty: it needs at least _format_version: "3.0"`)

// Read parses a document, JSON or YAML, into plain values: nil, bool, float64, string, []any, schema.Record. Of YAML it takes anchors,
// aliases and merge keys; dates and binary values stay text.
func Read(text []byte) (schema.Record, error) { return ReadWith(text, func() {}) }

// ReadWith is Read that calls rest every few dozen microseconds of work.
func ReadWith(text []byte, rest func()) (schema.Record, error) {
	switch {
	case len(text) > MaxBytes:
		return nil, fmt.Errorf("the document is larger than %d bytes", MaxBytes)
	case !utf8.Valid(text):
		return nil, errors.New("the document is not UTF-8")
	}
	// What a parser would make of the text is bounded before it runs.
	if marks(text, ",[{") > MaxValues {
		return nil, fmt.Errorf("the document holds more than %d values", MaxValues)
	}
	trimmed := bytes.TrimLeft(text, " \t\r\n")
	if bytes.HasPrefix(trimmed, []byte("{")) {
		if rec := decodePortions(text, portion, rest); rec != nil {
			return rec, nil
		}
		rec, err := schema.Decode(text)
		if err == nil {
			return rec, nil
		}
		rec, other := readYAML(text, rest)                                                 // which has a form like JSON, but with commas at the end
		if other != nil && bytes.Contains(trimmed[:min(len(trimmed), 200)], []byte(`"`)) { // as good as certainly meant to be JSON
			return nil, err
		}
		return rec, other
	}
	return readYAML(text, rest)
}

func marks(text []byte, of string) (n int) {
	for i := range len(of) {
		n += bytes.Count(text, []byte{of[i]})
	}
	return n
}

// restful lets the parser rest, which reads some hundred bytes at a time.
type restful struct {
	io.Reader
	rest func()
}

func (r restful) Read(b []byte) (int, error) {
	r.rest()
	return r.Reader.Read(b)
}

func readYAML(text []byte, rest func()) (rec schema.Record, err error) {
	if marks(text, "\n\r,[{")+bytes.Count(text, []byte("- "))+bytes.Count(text, []byte("? "))+bytes.Count(text, []byte(": ")) > 2*MaxLines {
		return nil, fmt.Errorf("the document has more than %d lines: JSON may have more", MaxLines)
	}
	dec := yaml.NewDecoder(restful{bytes.NewReader(text), rest})
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, ErrEmpty
	case err != nil:
		return nil, fmt.Errorf("invalid YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(&more); err == nil {
		return nil, errors.New("invalid YAML: there is more than one document")
	}
	c := converter{left: MaxValues, rest: rest}
	v, err := c.value(&doc, 0)
	if err != nil {
		return nil, fmt.Errorf("invalid YAML: %w", err)
	}
	rec, ok := v.(schema.Record)
	if !ok {
		return nil, errors.New("expected an object")
	}
	return rec, nil
}

// converter makes plain values of YAML nodes, within bounds.
type converter struct {
	left int
	rest func()
}

func (c *converter) value(n *yaml.Node, depth int) (any, error) {
	if c.left--; c.left < 0 {
		return nil, fmt.Errorf("more than %d values, counting those that aliases repeat", MaxValues)
	}
	if depth > schema.MaxDepth {
		return nil, fmt.Errorf("line %d: nested deeper than %d levels", n.Line, schema.MaxDepth)
	}
	switch n.Kind {
	case yaml.DocumentNode:
		if len(n.Content) != 1 {
			return nil, nil
		}
		return c.value(n.Content[0], depth)
	case yaml.AliasNode:
		return c.value(n.Alias, depth+1) // the depth also ends an alias to what it is part of
	case yaml.SequenceNode:
		list := make([]any, 0, min(len(n.Content), c.left))
		for _, e := range n.Content {
			v, err := c.value(e, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		return c.mapping(n, depth)
	}
	return scalar(n)
}

func (c *converter) mapping(n *yaml.Node, depth int) (any, error) {
	c.rest()
	rec := make(schema.Record, len(n.Content)/2)
	var merged []any
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: a key must be text", key.Line)
		}
		v, err := c.value(n.Content[i+1], depth+1)
		if err != nil {
			return nil, err
		}
		if key.Tag == "!!merge" {
			if list, ok := v.([]any); ok {
				merged = append(merged, list...)
			} else {
				merged = append(merged, v)
			}
			continue
		}
		if _, twice := rec[key.Value]; twice {
			return nil, fmt.Errorf("line %d: key %q is there twice", key.Line, key.Value)
		}
		rec[key.Value] = v
	}
	for _, m := range merged {
		from, ok := m.(schema.Record)
		if !ok {
			return nil, fmt.Errorf("line %d: what << merges must be a mapping", n.Line)
		}
		for k, v := range from {
			if _, own := rec[k]; !own {
				rec[k] = v
			}
		}
	}
	return rec, nil
}

func scalar(n *yaml.Node) (any, error) {
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		var b bool
		err := n.Decode(&b)
		return b, err
	case "!!int", "!!float":
		var f float64
		if err := n.Decode(&f); err != nil {
			return nil, err
		}
		if math.IsInf(f, 0) || math.IsNaN(f) {
			return nil, fmt.Errorf("line %d: %s is no number here", n.Line, n.Value)
		}
		return f, nil
	}
	if n.Style == 0 { // without quotes these are booleans for Kong and decK, whose parsers are of YAML 1.1
		switch n.Value {
		case "yes", "Yes", "YES", "on", "On", "ON":
			return true, nil
		case "no", "No", "NO", "off", "Off", "OFF":
			return false, nil
		}
	}
	return n.Value, nil
}

// number is what an encoder shows as people write it: no exponents, integers without a fraction.
func number(f float64) any {
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return int64(f)
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!float", Value: strconv.FormatFloat(f, 'f', -1, 64)}
}

// plain makes a value fit for the YAML encoder.
func plain(v any) any {
	switch v := v.(type) {
	case float64:
		return number(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = plain(v[i])
		}
		return out
	case schema.Record:
		out := make(schema.Record, len(v))
		for k := range v {
			out[k] = plain(v[k])
		}
		return out
	}
	return v
}

func position(n int) string { return strconv.Itoa(n + 1) }
