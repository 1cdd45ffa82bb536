package schema

import (
	"reflect"
	"strings"
)

// The checks. Their errors are Kong's; "non-empty" means neither null, "" nor an empty list or record.
type (
	// AtLeastOneOf demands that one of the fields is set and not empty.
	AtLeastOneOf []string
	// OnlyOneOf demands that exactly one of the fields is set and not empty.
	OnlyOneOf []string
	// MutuallyExclusive demands that at most one of the fields is set.
	MutuallyExclusive []string
	// MutuallyRequired demands that all or none of the fields are set.
	MutuallyRequired []string
	// Distinct demands that the values of the fields that are set differ.
	Distinct []string

	// Conditional demands that ThenField satisfies ThenMatch when IfField satisfies IfMatch. What a match says is laid over
	// the rules that the field has anyway, so {OneOf: …} or {Required: true} is all it needs to hold.
	Conditional struct {
		IfField   string
		IfMatch   Field
		ThenField string
		ThenMatch Field
		Err       string // text at the entity instead of Kong's "failed conditional validation …"
	}

	// ConditionalAtLeastOneOf demands that one of Then is set when IfField satisfies IfMatch; when it does not but satisfies
	// ElseMatch, one of Else. Err and ElseErr are texts with %s for the list of names.
	ConditionalAtLeastOneOf struct {
		IfField   string
		IfMatch   Field
		Then      []string
		Err       string
		ElseMatch *Field
		Else      []string
		ElseErr   string
	}

	// Custom is any other rule. It runs when none of the fields it reads (Paths) has an error and one of them is present,
	// and returns nil, EntityError(text), or errors of fields.
	Custom struct {
		Paths []string
		Run   func(Record) Errors
	}
)

// boundCheck is a Check that knows the fields it speaks of.
type boundCheck struct {
	names       []string
	paths       [][]string
	nodes       []*node
	needed      int  // the first so many paths must be present …
	runsMissing bool // … unless this
	runsInvalid bool // runs although a field has an error
	run         func(rec Record, m Mode, errs *Errors)
}

func newCheck(p *plan, names ...string) boundCheck {
	c := boundCheck{names: names, needed: len(names)}
	for _, name := range names {
		path := strings.Split(name, ".")
		c.paths = append(c.paths, path)
		c.nodes = append(c.nodes, p.at(path))
	}
	return c
}

// apply runs the check on a filled record and returns errs with what it found.
func (c *boundCheck) apply(rec Record, m Mode, errs Errors) Errors {
	present, missing := false, -1
	for i, path := range c.paths {
		if !c.runsInvalid && errs.has(path) {
			return errs
		}
		v, ok := get(rec, path)
		if !ok {
			if i < c.needed && !c.runsMissing && missing < 0 {
				missing = i
			}
			continue
		}
		present = true
		if s, ok := v.(string); ok && c.nodes[i] != nil && c.nodes[i].Vault && IsVaultReference(s) {
			return errs // what it stands for is known at run time only
		}
	}
	if !present && !(c.runsMissing && m != Update) {
		return errs
	}
	if missing >= 0 {
		errs.set(c.paths[missing], onUpdate("field required for entity check", m))
		return errs
	}
	c.run(rec, m, &errs)
	return errs
}

// onUpdate words a text for PATCH.
func onUpdate(text string, m Mode) string {
	switch {
	case m != Update:
		return text
	case strings.HasPrefix(text, "at least"):
		return "when updating, " + text
	}
	return text + " when updating"
}

// has tells whether there is an error at the path or above it.
func (e Errors) has(path []string) bool {
	for _, name := range path {
		switch v := e[name].(type) {
		case nil:
			return false
		case Errors:
			e = v
		default:
			return true
		}
	}
	return true
}

// set puts an error at a path; an error of a record on the way stands.
func (e *Errors) set(path []string, err any) {
	if *e == nil {
		*e = Errors{}
	}
	at := *e
	for _, name := range path[:len(path)-1] {
		switch v := at[name].(type) {
		case nil:
			next := Errors{}
			at[name], at = next, next
		case Errors:
			at = v
		default:
			return
		}
	}
	at[path[len(path)-1]] = err
}

func (e *Errors) entity(text string) {
	if *e == nil {
		*e = Errors{}
	}
	l, _ := (*e)[EntityKey].([]any)
	(*e)[EntityKey] = append(l, text)
}

// merge adds other's errors; those already there stand.
func (e *Errors) merge(other Errors) {
	if *e == nil {
		*e = Errors{}
	}
	for k, v := range other {
		if l, ok := v.([]any); ok && k == EntityKey {
			for _, text := range l {
				e.entity(luaString(text))
			}
			continue
		}
		below, ok := v.(Errors)
		mine, both := (*e)[k].(Errors)
		switch {
		case ok && both:
			mine.merge(below)
		case (*e)[k] == nil:
			(*e)[k] = v
		}
	}
}

func nonEmpty(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case string:
		return v != ""
	case []any:
		return len(v) > 0
	case Record:
		return len(v) > 0
	}
	return true
}

// count is how many of the paths from i on are non-empty.
func (c *boundCheck) count(rec Record, from, to int) int {
	n := 0
	for _, path := range c.paths[from:to] {
		if v, _ := get(rec, path); nonEmpty(v) {
			n++
		}
	}
	return n
}

func (names AtLeastOneOf) bind(p *plan) boundCheck {
	c := newCheck(p, names...)
	c.runsMissing, c.runsInvalid = true, true
	c.run = func(rec Record, m Mode, errs *Errors) {
		if c.count(rec, 0, len(names)) == 0 {
			errs.entity(onUpdate("at least one of these fields must be non-empty: "+quoted(names), m))
		}
	}
	return c
}

func (names OnlyOneOf) bind(p *plan) boundCheck {
	c := newCheck(p, names...)
	c.runsInvalid = true
	c.run = func(rec Record, _ Mode, errs *Errors) {
		if c.count(rec, 0, len(names)) != 1 {
			errs.entity("exactly one of these fields must be non-empty: " + quoted(names))
		}
	}
	return c
}

func (names MutuallyExclusive) bind(p *plan) boundCheck {
	c := newCheck(p, names...)
	c.runsMissing = true
	c.run = func(rec Record, _ Mode, errs *Errors) {
		if c.count(rec, 0, len(names)) > 1 {
			errs.entity("only one or none of these fields must be set: " + quoted(names))
		}
	}
	return c
}

func (names MutuallyRequired) bind(p *plan) boundCheck {
	c := newCheck(p, names...)
	c.runsMissing = true
	c.run = func(rec Record, _ Mode, errs *Errors) {
		if n := c.count(rec, 0, len(names)); n != 0 && n != len(names) {
			errs.entity("all or none of these fields must be set: " + quoted(names))
		}
	}
	return c
}

func (names Distinct) bind(p *plan) boundCheck {
	c := newCheck(p, names...)
	c.runsInvalid = true
	c.run = func(rec Record, _ Mode, errs *Errors) {
		var seen []any
		for _, path := range c.paths {
			v, _ := get(rec, path)
			if !nonEmpty(v) {
				continue
			}
			if has(seen, v) {
				errs.entity("values of these fields must be distinct: " + quoted(names))
				return
			}
			seen = append(seen, v)
		}
	}
	return c
}

// matching is the node of a field with a match laid over its rules.
func matching(n *node, match Field) *node {
	f := match
	if n != nil {
		f = n.Field
		over, base := reflect.ValueOf(match), reflect.ValueOf(&f).Elem()
		for i := range over.NumField() {
			if !over.Field(i).IsZero() {
				base.Field(i).Set(over.Field(i))
			}
		}
	}
	return newNode(f)
}

func (k Conditional) bind(p *plan) boundCheck {
	c := newCheck(p, k.IfField, k.ThenField)
	c.needed, c.runsInvalid = 1, true
	when, then := matching(c.nodes[0], k.IfMatch), matching(c.nodes[1], k.ThenMatch)
	general := "failed conditional validation given value of field '" + k.IfField + "'"
	c.run = func(rec Record, m Mode, errs *Errors) {
		if v, _ := get(rec, c.paths[0]); when.validate(v, m) != nil {
			return
		}
		v, _ := get(rec, c.paths[1])
		err := then.validate(v, m)
		if err == nil {
			return
		}
		errs.set(c.paths[1], err)
		if text := k.Err; text != "" && !(v == nil && k.ThenMatch.Required) {
			errs.entity(text)
		} else {
			errs.entity(general)
		}
	}
	return c
}

func (k ConditionalAtLeastOneOf) bind(p *plan) boundCheck {
	names := append(append([]string{k.IfField}, k.Then...), k.Else...)
	c := newCheck(p, names...)
	c.runsMissing, c.runsInvalid = true, true
	when := matching(c.nodes[0], k.IfMatch)
	var otherwise *node
	if k.ElseMatch != nil {
		otherwise = matching(c.nodes[0], *k.ElseMatch)
	}
	c.run = func(rec Record, m Mode, errs *Errors) {
		v, ok := get(rec, c.paths[0])
		if !ok {
			return
		}
		from, to, names, text := 1, 1+len(k.Then), k.Then, k.Err
		if when.validate(v, m) != nil {
			if otherwise == nil || otherwise.validate(v, m) != nil {
				return
			}
			from, to, names, text = to, len(c.paths), k.Else, k.ElseErr
		}
		if c.count(rec, from, to) > 0 {
			return
		}
		if text == "" {
			text = onUpdate("at least one of these fields must be non-empty: %s", m)
		}
		errs.entity(strings.ReplaceAll(text, "%s", quoted(names)))
	}
	return c
}

func (k Custom) bind(p *plan) boundCheck {
	c := newCheck(p, k.Paths...)
	c.run = func(rec Record, _ Mode, errs *Errors) {
		if found := k.Run(rec); len(found) > 0 {
			errs.merge(found)
		}
	}
	return c
}
