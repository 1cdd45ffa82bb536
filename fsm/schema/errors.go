package schema

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Errors is Kong's tree of validation errors: a field's value is a string, a nested Errors, or a []any whose elements
// are nil, string or Errors (1-based positions in the message). Entity-level errors are a []any of strings under "@entity".
type Errors map[string]any

// EntityError is a violation that belongs to no single field.
func EntityError(text string) Errors { return Errors{EntityKey: []any{text}} }

// Error makes Errors an error.
func (e Errors) Error() string { return e.Message() }

// Message renders the errors as Kong does: one line, "schema violation (name: required field missing)", entity-level
// texts first, then fields by name. Two levels are spelled out as paths, what lies deeper is printed as a Lua table.
func (e Errors) Message() string {
	var l []string
	if list, ok := e[EntityKey].([]any); ok {
		for _, text := range list {
			l = append(l, fmt.Sprint(text))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e)) {
		if name == EntityKey {
			continue
		}
		switch v := e[name].(type) {
		case Errors:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				l = append(l, name+"."+k+": "+shown(v[k]))
			}
		case []any:
			for i, err := range v {
				if err != nil {
					l = append(l, name+"."+strconv.Itoa(i+1)+": "+shown(err))
				}
			}
		default:
			l = append(l, name+": "+fmt.Sprint(v))
		}
	}
	if len(l) == 1 {
		return "schema violation (" + l[0] + ")"
	}
	return strconv.Itoa(len(l)) + " schema violations (" + strings.Join(l, "; ") + ")"
}

func shown(v any) string {
	if text, ok := v.(string); ok {
		return text
	}
	var b strings.Builder
	writeLua(&b, v, "")
	return b.String()
}

// writeLua prints v as Penlight's pretty.write does, which Kong uses for errors below the second level.
func writeLua(b *strings.Builder, v any, indent string) {
	entry := func(label string, v any, last bool) {
		b.WriteString(indent + "  " + label)
		writeLua(b, v, indent+"  ")
		if !last {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	switch v := v.(type) {
	case Errors:
		b.WriteString("{\n")
		keys := slices.Sorted(maps.Keys(v))
		for i, k := range keys {
			label := k + " = "
			if !luaName.MatchString(k) || luaKeyword(k) {
				label = "[" + luaQuote(k) + "] = "
			}
			entry(label, v[k], i == len(keys)-1)
		}
		b.WriteString(indent + "}")
	case []any:
		b.WriteString("{\n")
		hole := false // once a position is free, Lua needs the numbers
		for i, err := range v {
			if err == nil {
				hole = true
				continue
			}
			label := ""
			if hole {
				label = "[" + strconv.Itoa(i+1) + "] = "
			}
			entry(label, err, i == len(v)-1)
		}
		b.WriteString(indent + "}")
	default:
		b.WriteString(luaQuote(fmt.Sprint(v)))
	}
}

var (
	luaName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	longQuote = regexp.MustCompile(`\[(=*)\[|\](=*)\]`)
)

func luaKeyword(s string) bool {
	switch s {
	case "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not", "or",
		"repeat", "return", "then", "true", "until", "while":
		return true
	}
	return false
}

// luaQuote quotes a string as Penlight does: long brackets when it holds line breaks or brackets, else as %q of LuaJIT.
func luaQuote(s string) string {
	level := -1
	for _, m := range longQuote.FindAllStringSubmatch(s+"]", -1) {
		level = max(level, len(m[1])+len(m[2]))
	}
	if (level >= 0 || strings.Contains(s, "\n")) && !strings.Contains(s, "\r") {
		eq := strings.Repeat("=", level+1)
		if strings.HasPrefix(s, "\n") {
			s = "\n" + s
		}
		return "[" + eq + "[" + s + "]" + eq + "]"
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\' || c == '\n':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\r':
			b.WriteString(`\r`)
		case c < 32 || c == 127:
			if i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '9' {
				fmt.Fprintf(&b, `\%03d`, c)
			} else {
				b.WriteString(`\` + strconv.Itoa(int(c)))
			}
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// luaString is Lua's tostring: integers without a fraction, other numbers with 14 digits.
func luaString(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'g', 14, 64)
	case bool:
		return strconv.FormatBool(v)
	}
	return fmt.Sprint(v)
}

func joined(l []any) string {
	texts := make([]string, len(l))
	for i := range l {
		texts[i] = luaString(l[i])
	}
	return strings.Join(texts, ", ")
}

func quoted(l []string) string { return "'" + strings.Join(l, "', '") + "'" }

func sortedKeys(rec Record) []string { return slices.Sorted(maps.Keys(rec)) }
