package schema

import (
	"reflect"
	"strings"
)

// Prepare completes and validates a client's record. It changes neither in nor o.Current.
//
// Insert and Upsert: in is the client's record; absent fields get their defaults, auto fields are made (also for an
// explicit null), nested records are always expanded. Update: in is laid over o.Current field by field (records merge,
// lists and maps replace, null clears). "ttl" is accepted where the schema has TTL and left out of the result.
//
// The result holds every declared field, nil when unset (those with Since only when set), and nothing else. Errors is nil when the record is fine.
func (s *Schema) Prepare(in Record, o Options) (Record, Errors) {
	p, errs := s.planFor(in, o)
	if errs != nil {
		return nil, errs
	}
	in, errs = p.expand(in)
	if errs != nil {
		return nil, errs
	}
	if o.Mode == Update {
		current := o.Current
		if errs := p.immutable(in, current); errs != nil {
			return nil, errs
		}
		if key := s.SubKey; key != "" && !reflect.DeepEqual(overlay(in, current, key), current[key]) {
			// Another plugin takes over the row: nothing of the old one's configuration is its own.
			current = without(current, p)
		}
		in = p.merge(in, current)
	}
	rec := p.fill(in, &o)
	if errs := p.validate(rec, o.Mode); len(errs) > 0 {
		return nil, errs
	}
	delete(rec, "ttl")
	for _, n := range p.fields {
		if n.Since > 0 && rec[n.Name] == nil {
			delete(rec, n.Name)
		}
	}
	return rec, nil
}

// Partial returns the violations of the values that in holds, as Kong judges a record that was meant as a reference: nothing is
// filled in, nothing is missing, and rules over several fields are not asked.
func (s *Schema) Partial(in Record, o Options) Errors {
	p, errs := s.planFor(in, o)
	if errs != nil {
		return errs
	}
	for k, v := range in {
		n := p.byName[k]
		if n == nil {
			errs.set([]string{k}, errUnknown)
		} else if err := n.validate(n.complete(v, &o), o.Mode); err != nil {
			errs.set([]string{k}, err)
		}
	}
	return errs
}

// immutable refuses new values for fields that keep their first one.
func (p *plan) immutable(in, current Record) Errors {
	var errs Errors
	for _, n := range p.fields {
		if v, ok := in[n.Name]; ok && n.Immutable && current[n.Name] != nil && !reflect.DeepEqual(n.complete(v, &Options{Mode: Update}), current[n.Name]) {
			errs.set([]string{n.Name}, "immutable field cannot be updated")
		}
	}
	return errs
}

// planFor returns the plan of s with the sub-schema that the record selects.
func (s *Schema) planFor(in Record, o Options) (*plan, Errors) {
	p := s.compile()
	if s.SubKey == "" {
		return p, nil
	}
	n := p.byName[s.SubKey]
	key := overlay(in, o.Current, s.SubKey)
	if _, ok := in[s.SubKey]; !ok && key == nil {
		key = n.Default
	}
	if key == nil {
		return nil, Errors{s.SubKey: errRequired}
	}
	first := ""
	switch v := key.(type) {
	case string:
		first = v
	case []any:
		for _, e := range v {
			if name, ok := e.(string); ok {
				if first == "" {
					first = name
				}
				if sub, ok := s.sub(name, o.Sub); ok {
					return p.with(sub), nil
				}
			}
		}
	}
	if sub, ok := s.sub(first, o.Sub); ok {
		return p.with(sub), nil
	}
	if err := n.validate(n.complete(key, &o), o.Mode); err != nil && (n.Type == String || first == "") {
		return nil, Errors{s.SubKey: err}
	}
	text := s.SubUnknown
	if text == "" {
		text = "unknown type: %s"
	}
	return nil, Errors{s.SubKey: strings.ReplaceAll(text, "%s", first)}
}

func (s *Schema) sub(key string, from func(string) (*Schema, bool)) (*Schema, bool) {
	if s.Subs != nil {
		from = s.Subs
	}
	if from == nil || key == "" {
		return nil, false
	}
	return from(key)
}

// overlay is the value that field name has once in is laid over current.
func overlay(in, current Record, name string) any {
	if v, ok := in[name]; ok {
		return v
	}
	return current[name]
}

// without is rec without the records that a sub-schema describes.
func without(rec Record, p *plan) Record {
	out := make(Record, len(rec))
	for k, v := range rec {
		if n := p.byName[k]; n == nil || !n.overlaid || n.Type != RecordT {
			out[k] = v
		}
	}
	return out
}

// expand returns rec with all shorthands rewritten, here and in nested records.
func (p *plan) expand(rec Record) (Record, Errors) {
	if !p.expands || rec == nil {
		return rec, nil
	}
	out := make(Record, len(rec)+4)
	for k, v := range rec {
		out[k] = v
	}
	errs := Errors{}
	for i := range p.shorthands {
		sh := &p.shorthands[i]
		if v, ok := out[sh.Name]; ok {
			if err := sh.apply(out, v); err != nil {
				errs[sh.Name] = err
			}
		}
	}
	for _, n := range p.fields {
		v, ok := out[n.Name]
		if !ok || !n.expands {
			continue
		}
		var nested Errors
		if out[n.Name], nested = n.expand(v); nested != nil {
			return nil, nested // Kong reports these without the path of the record
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return out, nil
}

func (n *node) expand(v any) (any, Errors) {
	switch v := v.(type) {
	case Record:
		if n.rec != nil {
			return n.rec.expand(v)
		}
		if n.elem == nil {
			return v, nil
		}
		out := make(Record, len(v))
		for k, e := range v {
			var errs Errors
			if out[k], errs = n.elem.expand(e); errs != nil {
				return nil, errs
			}
		}
		return out, nil
	case []any:
		if n.elem == nil {
			return v, nil
		}
		out := make([]any, len(v))
		for i, e := range v {
			var errs Errors
			if out[i], errs = n.elem.expand(e); errs != nil {
				return nil, errs
			}
		}
		return out, nil
	}
	return v, nil
}

// apply takes the shorthand's value v out of rec and puts what it stands for in.
func (sh *shorthand) apply(rec Record, v any) any {
	if err := sh.value.validate(v, Insert); err != nil {
		return err
	}
	delete(rec, sh.Name)
	if len(sh.ReplacedWith) == 0 {
		set, errs := sh.Expand(v, rec)
		for k, x := range set {
			rec[k] = x
		}
		if errs != nil {
			return errs
		}
		return nil
	}
	given, ok := get(rec, sh.ReplacedWith)
	switch {
	case given != nil && v != nil && !reflect.DeepEqual(given, v):
		return "both deprecated and new field are used but their values mismatch: " + sh.Name + " = " + luaString(v) + " vs " +
			strings.Join(sh.ReplacedWith, ".") + " = " + luaString(given)
	case !ok || given == nil:
		put(rec, sh.ReplacedWith, v)
	}
	return nil
}

// put sets the value at a path, copying the records on the way. A value that is no record stops it: validation will name it.
func put(rec Record, path []string, v any) {
	for _, name := range path[:len(path)-1] {
		next, ok := rec[name].(Record)
		if !ok && rec[name] != nil {
			return
		}
		c := make(Record, len(next)+1)
		for k, x := range next {
			c[k] = x
		}
		rec[name] = c
		rec = c
	}
	rec[path[len(path)-1]] = v
}

// get reads the value at a path; ok is false when it or a record on the way is absent.
func get(rec Record, path []string) (any, bool) {
	for _, name := range path[:len(path)-1] {
		next, ok := rec[name].(Record)
		if !ok {
			return nil, false
		}
		rec = next
	}
	v, ok := rec[path[len(path)-1]]
	return v, ok
}

// merge lays in over current. Fields of current that the schema does not know are dropped.
func (p *plan) merge(in, current Record) Record {
	out := make(Record, len(p.fields))
	for k, v := range in {
		out[k] = v
	}
	for _, n := range p.fields {
		v, ok := in[n.Name]
		if !ok {
			if v, ok := current[n.Name]; ok {
				out[n.Name] = v
			}
			continue
		}
		if n.rec != nil {
			if top, ok := v.(Record); ok {
				below, _ := current[n.Name].(Record)
				out[n.Name] = n.rec.merge(top, below)
			}
		}
	}
	return out
}

// fill returns a copy of rec with auto values, defaults and expanded records. Required fields without a value stay absent.
func (p *plan) fill(rec Record, o *Options) Record {
	out := make(Record, len(p.fields))
	for k, v := range rec {
		if _, known := p.byName[k]; !known {
			out[k] = v
		}
	}
	for _, n := range p.fields {
		v, ok := rec[n.Name]
		if n.Auto && o.made(n.AutoKind, v) {
			v, ok = o.Auto.make(n.AutoKind), true
		}
		if !ok {
			switch {
			case n.Default != nil:
				v = n.Default
			case n.Type == RecordT && n.required:
				v = Record{}
			case n.required:
				continue
			}
		}
		out[n.Name] = n.complete(v, o)
	}
	return out
}

// made tells whether an auto field with value v is to be made now.
func (o *Options) made(kind AutoKind, v any) bool {
	switch kind {
	case AutoTouch, AutoTouchMS:
		return true
	default:
		return v == nil && o.Mode != Update
	}
}

func (a Auto) make(kind AutoKind) any {
	switch kind {
	case AutoUUID:
		if a.UUID != nil {
			return a.UUID()
		}
	case AutoRandom:
		if a.Random != nil {
			return a.Random()
		}
	case AutoNow, AutoTouch:
		if a.Now != nil {
			return float64(int64(a.Now()))
		}
	case AutoNowMS, AutoTouchMS:
		if a.Now != nil {
			return float64(int64(a.Now()*1000)) / 1000
		}
	}
	return nil
}

// complete returns v in its stored form: nested records filled, sets without duplicates, ids in lower case. Values of the
// wrong type are returned as they are for validate to refuse.
func (n *node) complete(v any, o *Options) any {
	switch n.Type {
	case RecordT:
		if rec, ok := asRecord(v); ok {
			return n.rec.fill(rec, o)
		}
	case Map:
		if rec, ok := asRecord(v); ok {
			out := make(Record, len(rec))
			for k, e := range rec {
				out[k] = n.elem.complete(e, o)
			}
			return out
		}
	case Array, Set:
		if list, ok := asList(v); ok {
			out := make([]any, 0, len(list))
			for _, e := range list {
				out = append(out, n.elem.complete(e, o))
			}
			if n.Type == Set && len(out) > 1 {
				return distinct(out)
			}
			return out
		}
	case Foreign:
		if rec, ok := v.(Record); ok {
			if id, ok := rec["id"].(string); ok {
				return Record{"id": strings.ToLower(id)}
			}
		}
	case String:
		if s, ok := v.(string); ok && n.UUID {
			return strings.ToLower(s)
		}
	}
	return v
}

// distinct removes repeated scalars from list, in place. Records and lists are never equal, as in Kong.
func distinct(list []any) []any {
	seen := make(map[any]struct{}, len(list))
	out := list[:0]
	for _, v := range list {
		switch v.(type) {
		case string, float64, bool:
			if _, dup := seen[v]; dup {
				continue
			}
			seen[v] = struct{}{}
		}
		out = append(out, v)
	}
	return out
}

// has tells whether list holds the scalar v.
func has(list []any, v any) bool {
	switch v.(type) {
	case string, float64, bool:
		for _, e := range list {
			if e == v {
				return true
			}
		}
	}
	return false
}

// asRecord accepts an empty list as an empty record and asList the reverse: languages with one type for both (Lua, PHP)
// cannot tell them apart when they write JSON, and Kong takes either.
func asRecord(v any) (Record, bool) {
	switch v := v.(type) {
	case Record:
		return v, true
	case []any:
		return Record{}, len(v) == 0
	}
	return nil, false
}

func asList(v any) ([]any, bool) {
	switch v := v.(type) {
	case []any:
		return v, true
	case Record:
		return nil, len(v) == 0
	}
	return nil, false
}
