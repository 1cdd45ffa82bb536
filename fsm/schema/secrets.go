package schema

import "strconv"

// MapSecrets returns a copy of rec in which every text of a Secret field is replaced by what f makes of it. path names the
// field ("config.redis.password", "config.keys.1"). Values that are not text, such as sealed ones, are left alone.
func (s *Schema) MapSecrets(rec Record, sub func(string) (*Schema, bool), f func(path, v string) (any, error)) (Record, error) {
	p := s.stored(rec, sub)
	if !p.secrets {
		return rec, nil
	}
	return p.mapSecrets(rec, "", f)
}

// stored is the plan for a record that was prepared before; an unknown sub-schema leaves its fields opaque.
func (s *Schema) stored(rec Record, sub func(string) (*Schema, bool)) *plan {
	if p, errs := s.planFor(rec, Options{Sub: sub}); errs == nil {
		return p
	}
	return s.compile()
}

func (p *plan) mapSecrets(rec Record, prefix string, f func(path, v string) (any, error)) (Record, error) {
	out := make(Record, len(rec))
	for k, v := range rec {
		out[k] = v
		if n := p.byName[k]; n != nil && n.secrets {
			var err error
			if out[k], err = n.mapSecrets(v, prefix+k, f); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (n *node) mapSecrets(v any, path string, f func(path, v string) (any, error)) (any, error) {
	switch v := v.(type) {
	case string:
		return f(path, v)
	case Record:
		if n.rec != nil {
			return n.rec.mapSecrets(v, path+".", f)
		}
		if n.elem == nil {
			return v, nil
		}
		out := make(Record, len(v))
		for k, e := range v {
			var err error
			if out[k], err = n.elem.mapSecrets(e, path+"."+k, f); err != nil {
				return nil, err
			}
		}
		return out, nil
	case []any:
		if n.elem == nil {
			return v, nil
		}
		out := make([]any, len(v))
		for i, e := range v {
			var err error
			if out[i], err = n.elem.mapSecrets(e, path+"."+strconv.Itoa(i+1), f); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return v, nil
}

// Present returns a stored record as clients see it: with the deprecated names of moved fields added, as Kong does for
// clients that still read them. Records without such names are returned as they are.
func (s *Schema) Present(rec Record, sub func(string) (*Schema, bool)) Record {
	return s.stored(rec, sub).present(rec)
}

func (p *plan) present(rec Record) Record {
	if !p.expands {
		return rec
	}
	out := make(Record, len(rec)+len(p.shorthands))
	for k, v := range rec {
		if n := p.byName[k]; n != nil && n.expands {
			v = n.present(v)
		}
		out[k] = v
	}
	for _, sh := range p.shorthands {
		if len(sh.ReplacedWith) > 0 {
			out[sh.Name], _ = get(rec, sh.ReplacedWith)
		}
	}
	return out
}

func (n *node) present(v any) any {
	switch v := v.(type) {
	case Record:
		if n.rec != nil {
			return n.rec.present(v)
		}
		if n.elem != nil {
			out := make(Record, len(v))
			for k, e := range v {
				out[k] = n.elem.present(e)
			}
			return out
		}
	case []any:
		if n.elem != nil {
			out := make([]any, len(v))
			for i, e := range v {
				out[i] = n.elem.present(e)
			}
			return out
		}
	}
	return v
}
