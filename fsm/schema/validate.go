package schema

import (
	"math"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	errRequired = "required field missing"
	errUnknown  = "unknown field"
	// maxInteger bounds integers to what float64 holds exactly, so that a stored row always decodes.
	maxInteger = 1 << 53
)

// validate returns the violations of a filled record, empty when there are none.
func (p *plan) validate(rec Record, m Mode) Errors {
	var errs Errors
	fail := func(name string, err any) {
		if errs == nil {
			errs = Errors{}
		}
		errs[name] = err
	}
	for k := range rec {
		if _, ok := p.byName[k]; !ok && !(p.ttl && k == "ttl") {
			fail(k, errUnknown)
		}
	}
	for _, n := range p.fields {
		v, ok := rec[n.Name]
		if !ok { // fill leaves only required fields out
			fail(n.Name, errRequired)
		} else if err := n.validate(v, m); err != nil {
			fail(n.Name, err)
		}
	}
	for i := range p.checks {
		errs = p.checks[i].apply(rec, m, errs)
	}
	return errs
}

// validate returns nil, a text, Errors or a list with the errors of the elements at their positions.
func (n *node) validate(v any, m Mode) any {
	if v == nil {
		switch {
		case n.Equal != nil:
			return "value must be " + luaString(n.Equal)
		case n.required:
			return errRequired
		}
		return nil
	}
	if n.Null {
		return n.text("value must be null")
	}
	length := -1
	switch n.Type {
	case String:
		s, ok := v.(string)
		if !ok {
			return "expected a string"
		}
		if i := invalidUTF8(s); i > 0 {
			return "invalid utf-8 character sequence detected at position " + strconv.Itoa(i)
		}
		if n.Vault && IsVaultReference(s) {
			return nil
		}
		length = len(s)
	case Number, Integer:
		f, ok := v.(float64)
		switch {
		case n.Type == Integer && (!ok || f != math.Trunc(f) || math.Abs(f) > maxInteger):
			return "expected an integer"
		case !ok || math.IsInf(f, 0) || math.IsNaN(f):
			return "expected a number"
		}
	case Boolean:
		if _, ok := v.(bool); !ok {
			return "expected a boolean"
		}
	case Array, Set:
		list, ok := v.([]any)
		if !ok {
			if n.Type == Set {
				return "expected a set"
			}
			return "expected an array"
		}
		if errs := n.validateList(list, m); errs != nil {
			return errs
		}
		length = len(list)
	case Map:
		rec, ok := v.(Record)
		if !ok {
			return "expected a map"
		}
		if err := n.validateMap(rec, m); err != nil {
			return err
		}
		length = len(rec)
	case RecordT:
		rec, ok := v.(Record)
		if !ok {
			return "expected a record"
		}
		if errs := n.rec.validate(rec, m); len(errs) > 0 {
			return errs
		}
	case Foreign:
		rec, _ := v.(Record)
		id, ok := rec["id"]
		if !ok {
			return Errors{"id": "missing primary key"}
		}
		if err := foreignID.validate(id, m); err != nil {
			return Errors{"id": err}
		}
	}
	if err := n.rules(v, length); err != "" {
		return n.text(err)
	}
	return nil
}

var foreignID = newNode(Field{Type: String, Required: true, UUID: true})

func (n *node) validateList(list []any, m Mode) any {
	var errs []any
	for i, e := range list {
		if err := n.elem.validate(e, m); err != nil {
			for len(errs) < i {
				errs = append(errs, nil)
			}
			errs = append(errs, err)
		}
	}
	if errs == nil {
		return nil
	}
	return errs
}

// validateMap returns the first violation only, without its key: so does Kong.
func (n *node) validateMap(rec Record, m Mode) any {
	for _, k := range sortedKeys(rec) {
		if strings.HasPrefix(k, "$") {
			return "names must not begin with '$': " + k
		}
		if n.keys != nil {
			if err := n.keys.validate(k, m); err != nil {
				return err
			}
		} else if i := invalidUTF8(k); i > 0 {
			return "invalid utf-8 character sequence detected at position " + strconv.Itoa(i)
		}
		if err := n.elem.validate(rec[k], m); err != nil {
			return err
		}
	}
	return nil
}

// rules applies the value rules in Kong's order, which decides the text when several are broken.
func (n *node) rules(v any, length int) string {
	s, _ := v.(string)
	f, _ := v.(float64)
	list, _ := v.([]any)
	switch {
	case n.Equal != nil && v != n.Equal:
		return "value must be " + luaString(n.Equal)
	case n.NotEqual != nil && v == n.NotEqual:
		return "value must not be " + luaString(v)
	case n.NotOneOf != nil && has(n.NotOneOf, v):
		return "must not be one of: " + joined(n.NotOneOf)
	case n.OneOf != nil && !has(n.OneOf, v):
		return "expected one of: " + joined(n.OneOf)
	case n.GT != nil && f <= *n.GT:
		return "value must be greater than " + luaString(*n.GT)
	case n.Timestamp && f <= 0:
		return "expected a valid timestamp"
	case n.UUID && !IsUUID(s):
		return "expected a valid UUID"
	case n.Regex && compileError(s) != "":
		return "not a valid regex: " + s
	case n.Between != nil && (f < n.Between[0] || f > n.Between[1]):
		return "value should be between " + strconv.FormatInt(int64(n.Between[0]), 10) + " and " + strconv.FormatInt(int64(n.Between[1]), 10)
	case n.LenEq != nil && length != *n.LenEq:
		return "length must be " + strconv.Itoa(*n.LenEq)
	case n.LenMin != nil && length < *n.LenMin:
		return "length must be at least " + strconv.Itoa(*n.LenMin)
	case n.LenMax != nil && length > *n.LenMax:
		return "length must be at most " + strconv.Itoa(*n.LenMax)
	case !strings.HasPrefix(s, n.StartsWith):
		return "should start with: " + n.StartsWith
	case n.notPattern != nil && n.notPattern.MatchString(s):
		return "invalid value: " + s
	}
	for i, re := range n.matchNone {
		if re.MatchString(s) {
			return n.MatchNone[i].Err
		}
	}
	if n.pattern != nil && !n.pattern.MatchString(s) {
		return "invalid value: " + s
	}
	for i, re := range n.matchAll {
		if !re.MatchString(s) {
			return n.MatchAll[i].Err
		}
	}
	if n.matchAny != nil && !slices.ContainsFunc(n.matchAny, func(re *regexp.Regexp) bool { return re.MatchString(s) }) {
		return n.MatchAnyErr
	}
	if n.Contains != nil && !has(list, n.Contains) {
		return "expected to contain: " + luaString(n.Contains)
	}
	if n.Check != nil {
		if err := n.Check(v); err != "" {
			return err
		}
	}
	return disjoint(n.Disjoint, list)
}

// disjoint refuses a list with elements from more than one group.
func disjoint(groups [][]string, list []any) string {
	var found []string
	var seen []int
	for _, e := range list {
		name, _ := e.(string)
		i := slices.IndexFunc(groups, func(g []string) bool { return slices.Contains(g, name) })
		if i >= 0 && !slices.Contains(seen, i) {
			seen = append(seen, i)
			found = append(found, "("+quoted(groups[i])+")")
		}
	}
	if len(found) < 2 {
		return ""
	}
	return "these sets are mutually exclusive: " + strings.Join(found, ", ")
}

// text is the field's own error text if it has one.
func (n *node) text(err string) string {
	if n.Err != "" {
		return n.Err
	}
	return err
}

// IsVaultReference tells whether s is a {vault://…} reference.
func IsVaultReference(s string) bool {
	return strings.HasPrefix(s, "{vault://") && strings.HasSuffix(s, "}")
}

// IsUUID tells whether s has the form of a UUID, in either case.
func IsUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F') {
				return false
			}
		}
	}
	return true
}

// invalidUTF8 is the 1-based position of the first byte that is not UTF-8, 0 when all is well.
func invalidUTF8(s string) int {
	if utf8.ValidString(s) {
		return 0
	}
	for i, r := range s {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				return i + 1
			}
		}
	}
	return 0
}

// maxRegex is how many instructions a regular expression may compile to. Matching takes time in proportion to them.
const maxRegex = 10_000

func compileError(re string) string {
	parsed, err := syntax.Parse(re, syntax.Perl)
	if err != nil {
		return strings.TrimPrefix(err.Error(), "error parsing regexp: ")
	}
	if prog, err := syntax.Compile(parsed.Simplify()); err != nil || len(prog.Inst) > maxRegex {
		return "expression too large"
	}
	return ""
}
