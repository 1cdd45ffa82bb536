package settings

import (
	"fmt"
	"strings"
)

// parseConf reads kong.conf syntax: one "key = value" per line, "#" starts a comment unless escaped as "\#", blanks around
// keys and values do not count, the last of several equal keys wins. name is used in errors only.
func parseConf(name, text string) (map[string]string, error) {
	out := map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(uncomment(line))
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		key = strings.TrimSpace(key)
		if !ok || !isKey(key) {
			return nil, fmt.Errorf("%s:%d: %q is not a setting: write key = value, or start the line with # if it is a comment", name, i+1, shorten(line))
		}
		out[key] = strings.TrimSpace(value)
	}
	return out, nil
}

// uncomment cuts the comment off a line and resolves "\#".
func uncomment(line string) string {
	var b strings.Builder
	for i := 0; i < len(line); i++ {
		switch {
		case line[i] == '\\' && i+1 < len(line) && line[i+1] == '#':
			b.WriteByte('#')
			i++
		case line[i] == '#':
			return b.String()
		default:
			b.WriteByte(line[i])
		}
	}
	return b.String()
}

func isKey(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// shorten keeps a mistaken line from filling the screen, and from showing all of what may be a misplaced key.
func shorten(s string) string {
	if r := []rune(s); len(r) > 24 {
		return string(r[:24]) + "…"
	}
	return s
}

// splitList cuts a comma-separated value; empty elements do not count.
func splitList(v string) []string {
	var out []string
	for _, e := range strings.Split(v, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, e)
		}
	}
	return out
}
