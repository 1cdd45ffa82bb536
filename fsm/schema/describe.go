package schema

// Describe is the schema in the shape of Kong's /schemas answers: fields as a list of single-key objects. Rules that are
// code are left out. Patterns are RE2.
func (s *Schema) Describe() Record {
	d := describeRecord(s.Fields, s.Shorthands, s.Checks)
	if d["entity_checks"] == nil {
		d["entity_checks"] = []any{}
	}
	for _, f := range d["fields"].([]any) {
		for name, desc := range f.(Record) {
			if f, ok := s.Field(name); ok && s.SubKey != "" && f.Type == RecordT && f.Fields == nil {
				desc := desc.(Record)
				delete(desc, "fields")
				desc["abstract"] = true // its fields are those of the sub-schema
			}
		}
	}
	return d
}

func describeRecord(fields []Field, shorthands []Shorthand, checks []Check) Record {
	list := make([]any, len(fields))
	for i := range fields {
		list[i] = Record{fields[i].Name: fields[i].describe()}
	}
	d := Record{"fields": list}
	var short, rules []any
	for _, sh := range shorthands {
		f := sh.Rule
		f.Type = sh.Type
		desc := f.describe()
		if len(sh.ReplacedWith) > 0 {
			path := canonical(sh.ReplacedWith)
			desc["translate_backwards"] = path
			desc["deprecation"] = Record{"replaced_with": []any{Record{"path": path}}}
		}
		short = append(short, Record{sh.Name: desc})
	}
	for _, c := range checks {
		if desc := c.Describe(); desc != nil {
			rules = append(rules, desc)
		}
	}
	if short != nil {
		d["shorthand_fields"] = short
	}
	if rules != nil {
		d["entity_checks"] = rules
	}
	return d
}

func (f *Field) describe() Record {
	d := f.describeRules()
	if f.Type != "" {
		d["type"] = string(f.Type)
	}
	if f.Type == RecordT {
		for k, v := range describeRecord(f.Fields, f.Shorthands, f.Checks) {
			d[k] = v
		}
		d["required"] = !f.Nullable
	}
	return d
}

// describeRules holds what is set, so that it also describes the matches of conditional checks.
func (f *Field) describeRules() Record {
	d := Record{}
	put := func(key string, v any, set bool) {
		if set {
			d[key] = canonical(v)
		}
	}
	put("required", true, f.Required)
	put("unique", true, f.Unique)
	put("auto", true, f.Auto)
	put("uuid", true, f.UUID)
	put("timestamp", true, f.Timestamp)
	put("is_regex", true, f.Regex)
	put("immutable", true, f.Immutable)
	put("encrypted", true, f.Secret)
	put("transient", true, f.Transient)
	put("referenceable", true, f.Vault)
	put("eq", nil, f.Null)
	put("eq", f.Equal, f.Equal != nil)
	put("ne", f.NotEqual, f.NotEqual != nil)
	put("default", f.Default, f.Default != nil)
	put("reference", f.Ref, f.Type == Foreign)
	put("on_delete", string(f.OnDelete), f.OnDelete == Cascade || f.OnDelete == SetNull)
	put("one_of", f.OneOf, f.OneOf != nil)
	put("not_one_of", f.NotOneOf, f.NotOneOf != nil)
	put("match", f.Pattern, f.Pattern != "")
	put("not_match", f.NotPattern, f.NotPattern != "")
	put("starts_with", f.StartsWith, f.StartsWith != "")
	put("contains", f.Contains, f.Contains != nil)
	put("description", f.Description, f.Description != "")
	put("err", f.Err, f.Err != "")
	if f.Between != nil {
		d["between"] = []any{f.Between[0], f.Between[1]}
	}
	if f.GT != nil {
		d["gt"] = *f.GT
	}
	for key, n := range map[string]*int{"len_min": f.LenMin, "len_max": f.LenMax, "len_eq": f.LenEq} {
		if n != nil {
			d[key] = float64(*n)
		}
	}
	for key, l := range map[string][]Match{"match_all": f.MatchAll, "match_none": f.MatchNone} {
		var list []any
		for _, m := range l {
			list = append(list, Record{"pattern": m.Pattern, "err": m.Err})
		}
		put(key, list, l != nil)
	}
	put("match_any", Record{"patterns": f.MatchAny, "err": f.MatchAnyErr}, f.MatchAny != nil)
	if f.Disjoint != nil {
		groups := make([]any, len(f.Disjoint))
		for i, g := range f.Disjoint {
			groups[i] = canonical(g)
		}
		d["mutually_exclusive_subsets"] = groups
	}
	if f.Elem != nil {
		key := "elements"
		if f.Type == Map {
			key = "values"
		}
		d[key] = f.Elem.describe()
	}
	if f.Keys != nil {
		d["keys"] = f.Keys.describe()
	}
	return d
}

func describeNames(kind string, names []string) Record { return Record{kind: canonical(names)} }

// Describe shows the check.
func (names AtLeastOneOf) Describe() Record { return describeNames("at_least_one_of", names) }

// Describe shows the check.
func (names OnlyOneOf) Describe() Record { return describeNames("only_one_of", names) }

// Describe shows the check.
func (names MutuallyExclusive) Describe() Record { return describeNames("mutually_exclusive", names) }

// Describe shows the check.
func (names MutuallyRequired) Describe() Record { return describeNames("mutually_required", names) }

// Describe shows the check.
func (names Distinct) Describe() Record { return describeNames("distinct", names) }

// Describe shows the check.
func (k Conditional) Describe() Record {
	d := Record{"if_field": k.IfField, "if_match": k.IfMatch.describe(), "then_field": k.ThenField, "then_match": k.ThenMatch.describe()}
	if k.Err != "" {
		d["then_err"] = k.Err
	}
	return Record{"conditional": d}
}

// Describe shows the check.
func (k ConditionalAtLeastOneOf) Describe() Record {
	d := Record{"if_field": k.IfField, "if_match": k.IfMatch.describe(), "then_at_least_one_of": canonical(k.Then)}
	if k.Err != "" {
		d["then_err"] = k.Err
	}
	if k.ElseMatch != nil {
		d["else_match"] = k.ElseMatch.describe()
		d["else_then_at_least_one_of"] = canonical(k.Else)
		if k.ElseErr != "" {
			d["else_then_err"] = k.ElseErr
		}
	}
	return Record{"conditional_at_least_one_of": d}
}

// Describe shows what the check reads; the rule itself is code.
func (k Custom) Describe() Record {
	return Record{"custom_entity_check": Record{"field_sources": canonical(k.Paths)}}
}
