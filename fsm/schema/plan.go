package schema

import (
	"regexp"
	"sync"
)

// plan is a Schema made ready for use: defaults in JSON form, patterns compiled, fields by name, checks bound to fields.
type plan struct {
	owner      *Schema
	sub        *Schema // the sub-schema laid over owner, nil for none
	fields     []*node
	byName     map[string]*node
	shorthands []shorthand
	expands    bool // it or a nested record has shorthands
	secrets    bool // it or a nested record has secret fields
	ttl        bool
	checks     []boundCheck

	mu   sync.Mutex
	subs map[string]*plan // by sub-schema name
}

type shorthand struct {
	Shorthand
	value *node
}

// node is a Field made ready for use.
type node struct {
	Field
	required   bool
	pattern    *regexp.Regexp
	notPattern *regexp.Regexp
	matchAll   []*regexp.Regexp
	matchNone  []*regexp.Regexp
	matchAny   []*regexp.Regexp
	elem, keys *node
	rec        *plan
	expands    bool // see plan
	secrets    bool
	overlaid   bool // comes from the sub-schema
}

// compile makes the plan of s, once.
func (s *Schema) compile() *plan {
	if p, ok := s.plan.Load().(*plan); ok && p.owner == s {
		return p
	}
	p := newPlan(s.Fields, s.Shorthands, s.Checks)
	p.owner, p.ttl = s, s.TTL
	s.plan.Store(p) // a concurrent caller may store an equal one: harmless
	return p
}

func newPlan(fields []Field, shorthands []Shorthand, checks []Check) *plan {
	p := &plan{byName: make(map[string]*node, len(fields))}
	for i := range fields {
		p.add(newNode(fields[i]))
	}
	for _, sh := range shorthands {
		f := sh.Rule
		f.Name, f.Type = sh.Name, sh.Type
		p.shorthands = append(p.shorthands, shorthand{sh, newNode(f)})
		p.expands = true
	}
	for _, c := range checks {
		p.checks = append(p.checks, c.bind(p))
	}
	return p
}

func (p *plan) add(n *node) {
	p.fields = append(p.fields, n)
	p.byName[n.Name] = n
	p.expands = p.expands || n.expands
	p.secrets = p.secrets || n.secrets
}

// with lays sub over p. The result is kept for the next call with the same sub-schema value.
func (p *plan) with(sub *Schema) *plan {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q := p.subs[sub.Name]; q != nil && q.sub == sub {
		return q
	}
	q := &plan{owner: p.owner, sub: sub, ttl: p.ttl, shorthands: p.shorthands, expands: len(p.shorthands) > 0, byName: make(map[string]*node, len(p.fields))}
	over := sub.compile()
	for _, n := range p.fields {
		if o := over.byName[n.Name]; o != nil {
			m := *o
			m.overlaid, m.Since = true, n.Since
			n = &m
		}
		q.add(n)
	}
	for _, c := range p.owner.Checks {
		q.checks = append(q.checks, c.bind(q))
	}
	for _, c := range sub.Checks {
		q.checks = append(q.checks, c.bind(q))
	}
	if p.subs == nil {
		p.subs = make(map[string]*plan)
	}
	p.subs[sub.Name] = q
	return q
}

// newNode makes the node of f. Patterns are part of the program, so a bad one is a fault of the program.
func newNode(f Field) *node {
	n := &node{Field: f, required: f.Required || f.Type == RecordT && !f.Nullable, secrets: f.Secret}
	n.Default, n.Contains, n.Equal, n.NotEqual = canonical(f.Default), canonical(f.Contains), canonical(f.Equal), canonical(f.NotEqual)
	n.OneOf, n.NotOneOf = canonicalList(f.OneOf), canonicalList(f.NotOneOf)
	if f.Type == String && f.LenMin == nil {
		n.LenMin = new(1) // Kong accepts no empty strings unless told to
	}
	re := func(pattern string) *regexp.Regexp {
		if pattern == "" {
			return nil
		}
		return regexp.MustCompile(pattern)
	}
	n.pattern, n.notPattern = re(f.Pattern), re(f.NotPattern)
	for _, m := range f.MatchAll {
		n.matchAll = append(n.matchAll, re(m.Pattern))
	}
	for _, m := range f.MatchNone {
		n.matchNone = append(n.matchNone, re(m.Pattern))
	}
	for _, m := range f.MatchAny {
		n.matchAny = append(n.matchAny, re(m))
	}
	for _, child := range []struct {
		field *Field
		node  **node
	}{{f.Elem, &n.elem}, {f.Keys, &n.keys}} {
		if child.field != nil {
			c := newNode(*child.field)
			c.required = true
			*child.node = c
			n.expands, n.secrets = n.expands || c.expands, n.secrets || c.secrets
		}
	}
	if f.Type == RecordT {
		n.rec = newPlan(f.Fields, f.Shorthands, f.Checks)
		n.expands, n.secrets = n.rec.expands, n.rec.secrets
	}
	return n
}

// at finds the field at a path, nil when there is none.
func (p *plan) at(path []string) *node {
	n := p.byName[path[0]]
	for _, name := range path[1:] {
		if n == nil || n.rec == nil {
			return nil
		}
		n = n.rec.byName[name]
	}
	return n
}

// canonical turns a value written in Go into the form JSON decodes to.
func canonical(v any) any {
	switch v := v.(type) {
	case int:
		return float64(v)
	case []any:
		return canonicalList(v)
	case []string:
		l := make([]any, len(v))
		for i := range v {
			l[i] = v[i]
		}
		return l
	case []int:
		l := make([]any, len(v))
		for i := range v {
			l[i] = float64(v[i])
		}
		return l
	case Record:
		r := make(Record, len(v))
		for k := range v {
			r[k] = canonical(v[k])
		}
		return r
	}
	return v
}

func canonicalList(l []any) []any {
	if l == nil {
		return nil
	}
	out := make([]any, len(l))
	for i := range l {
		out[i] = canonical(l[i])
	}
	return out
}

// Field returns the field called name.
func (s *Schema) Field(name string) (*Field, bool) {
	for i := range s.Fields {
		if s.Fields[i].Name == name {
			return &s.Fields[i], true
		}
	}
	return nil, false
}

// CheckField validates a value of one field as it would be in a record and returns the error text, "" when it is fine.
func (s *Schema) CheckField(name string, v any) string {
	n := s.compile().byName[name]
	if n == nil {
		return errUnknown
	}
	if err := n.validate(v, Insert); err != nil {
		return shown(err)
	}
	return ""
}

// ForeignFields returns the fields of type Foreign.
func (s *Schema) ForeignFields() []Field {
	var l []Field
	for _, f := range s.Fields {
		if f.Type == Foreign {
			l = append(l, f)
		}
	}
	return l
}
