package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// print writes v in the format asked for; table is the one for people.
func (o *options) print(w io.Writer, v any, table func(io.Writer)) error {
	switch o.output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		return yaml.NewEncoder(w).Encode(v)
	}
	table(w)
	return nil
}

// done reports the success of a command that has no result of its own.
func (o *options) done(cmd *cobra.Command, format string, args ...any) error {
	m := struct {
		Message string `json:"message" yaml:"message"`
	}{fmt.Sprintf(format, args...)}
	return o.print(cmd.OutOrStdout(), m, func(w io.Writer) { fmt.Fprintln(w, m.Message) })
}
