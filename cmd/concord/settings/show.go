package settings

import (
	"encoding/json"
	"maps"
	"strings"
)

// Shown is every key that has a value, as Kong shows its settings: numbers, switches and lists as such, secrets masked, references to the
// environment as they are written. A key that Kong calls otherwise has both names.
func (s *Settings) Shown() map[string]any {
	shown := maps.Clone(s.shown)
	shown["prefix"] = s.Prefix
	return shown
}

func (s *Settings) show(k Key, text string) {
	var v any = text
	switch {
	case text == "":
		return
	case k.Secret:
		v = NewSecret(text).String()
	case k.Form == "on or off":
		lower := strings.ToLower(text)
		v = lower == "on" || lower == "true"
	case strings.HasPrefix(k.Form, "list"):
		v = splitList(text)
	default:
		var n float64
		if (k.Form == "number" || k.Form == "seconds" || k.Form == "days") && json.Unmarshal([]byte(text), &n) == nil {
			v = n
		}
	}
	s.shown[k.Name] = v
	if k.Also != "" {
		s.shown[k.Also] = v
	}
}
