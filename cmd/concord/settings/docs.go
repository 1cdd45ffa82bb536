package settings

import (
	"fmt"
	"strings"
)

// Reference is the settings page of the documentation.
func Reference() string {
	var b strings.Builder
	b.WriteString("# Settings\n\n" +
		"<!-- Made by `make generate` from cmd/concord/settings/keys.go. Edits here are lost. -->\n\n" +
		"A node reads `key = value` lines as Kong does: `#` starts a comment (write `\\#` for the character), lists are separated by commas, switches are `on` or `off`.\n" +
		"The file is the one named by `-c`, or else the first that exists of " + quoteAll(SearchPath()) + ".\n\n" +
		"The command line wins over `CONCORD_<KEY>` variables, these over `KONG_<KEY>` variables, these over the file, the file over the defaults. An empty value means the default.\n" +
		"`concord reload` takes over the keys marked **live**; the others take `concord upgrade` or a restart.\n")
	for _, g := range groups() {
		fmt.Fprintf(&b, "\n## %s\n\n| key | default | value | |\n|---|---|---|---|\n", g.Title)
		for _, k := range g.Keys {
			def, live := "", ""
			if k.Default != "" {
				def = "`" + k.Default + "`"
			}
			if k.Live {
				live = " **live**"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s%s |\n", k.Name, def, k.Form, k.Doc, live)
		}
	}
	b.WriteString("\n## Keys of Kong that are ignored\n\nThey are named in one warning line and have no effect; any other key is named as unknown.\n\n| reason | keys |\n|---|---|\n")
	for _, g := range ignoredKeys() {
		fmt.Fprintf(&b, "| %s | %s |\n", g.Why, quoteAll(g.Keys))
	}
	return b.String()
}

// Sample is the settings file that packages install: every key, commented out, with its default.
func Sample() string {
	var b strings.Builder
	b.WriteString("# Settings of a Concord node. Every key is shown with its default; take the # away to change it.\n# The syntax is kong.conf's, and so are the keys both products have.\n")
	for _, g := range groups() {
		fmt.Fprintf(&b, "\n#%s\n# %s\n#%s\n", strings.Repeat("-", 78), strings.ToUpper(g.Title), strings.Repeat("-", 78))
		for _, k := range g.Keys {
			fmt.Fprintf(&b, "\n%s#%s = %s\n", wrap(strings.ReplaceAll(k.Doc, "`", "")+" ("+k.Form+")"), k.Name, k.Default)
		}
	}
	return b.String()
}

func quoteAll(list []string) string { return "`" + strings.Join(list, "`, `") + "`" }

// wrap cuts text into comment lines of at most 80 columns.
func wrap(text string) string {
	var b strings.Builder
	line := "#"
	for _, w := range strings.Fields(text) {
		if len(line)+1+len(w) > 80 {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + w
	}
	return b.String() + line + "\n"
}
