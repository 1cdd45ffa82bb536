package schema

import (
	"math"
	"strconv"
	"strings"
)

// Coerce turns the text values of a form or query into the types that the schema expects, as Kong does: numbers,
// booleans, a single value for a list wrapped into one, "" for null. What does not convert stays text, for Prepare to
// refuse. form is nested already (a.b=c is {"a":{"b":"c"}}); it is not changed.
//
// One thing Kong 3 does not do, but its early versions did and old tutorials rely on: "a,b" for a list is split when the
// whole is not a valid element and every part is.
func (s *Schema) Coerce(form Record, sub func(string) (*Schema, bool)) Record {
	p := s.compile()
	if q, errs := s.planFor(p.coerce(form), Options{Sub: sub}); errs == nil {
		p = q
	}
	out := p.coerce(form)
	if v, ok := out["ttl"]; ok && p.ttl {
		out["ttl"] = (&node{Field: Field{Type: Integer}}).coerce(v)
	}
	return out
}

func (p *plan) coerce(form Record) Record {
	out := make(Record, len(form))
	for k, v := range form {
		if n := p.input(k); n != nil {
			v = n.coerce(v)
		}
		out[k] = v
	}
	return out
}

// input is the field or shorthand called name.
func (p *plan) input(name string) *node {
	if n := p.byName[name]; n != nil {
		return n
	}
	for _, sh := range p.shorthands {
		if sh.Name == name {
			return sh.value
		}
	}
	return nil
}

func (n *node) coerce(v any) any {
	if v == "" {
		return nil
	}
	switch v := v.(type) {
	case string:
		switch n.Type {
		case Number, Integer:
			if f, ok := luaNumber(v); ok {
				return f
			}
		case Boolean:
			if v == "true" || v == "false" {
				return v == "true"
			}
		case Array, Set:
			return n.coerceList(n.split(v))
		}
	case []any:
		if n.Type == Array || n.Type == Set {
			return n.coerceList(v)
		}
	case Record:
		switch n.Type {
		case RecordT:
			return n.rec.coerce(v)
		case Map:
			out := make(Record, len(v))
			for k, e := range v {
				out[k] = n.elem.coerce(e)
			}
			return out
		case Foreign:
			out := make(Record, len(v))
			for k, e := range v {
				if out[k] = e; e == "" {
					out[k] = nil
				}
			}
			return out
		}
	}
	return v
}

func (n *node) coerceList(l []any) []any {
	out := make([]any, len(l))
	for i, e := range l {
		out[i] = n.elem.coerce(e)
	}
	return out
}

// split is the list that one text stands for.
func (n *node) split(s string) []any {
	valid := func(text string) bool {
		o := &Options{}
		return n.elem.validate(n.elem.complete(n.elem.coerce(text), o), Insert) == nil
	}
	if !strings.Contains(s, ",") || valid(s) {
		return []any{s}
	}
	var parts []any
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); !valid(part) {
			return []any{s}
		}
		parts = append(parts, part)
	}
	return parts
}

// luaNumber reads a number as Lua's tonumber does: decimal or hexadecimal, surrounded by white space.
func luaNumber(s string) (float64, bool) {
	s = strings.TrimSpace(s)
	digits := strings.TrimLeft(s, "+-")
	if digits == "" || strings.ContainsAny(s, "_pP") || !(digits[0] == '.' || '0' <= digits[0] && digits[0] <= '9') {
		return 0, false // keeps out "inf", "nan", "1_000"
	}
	if strings.HasPrefix(strings.ToLower(digits), "0x") {
		i, err := strconv.ParseInt(s, 0, 64)
		return float64(i), err == nil
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil && !math.IsInf(f, 0)
}
