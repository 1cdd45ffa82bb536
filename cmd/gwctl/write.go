package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"concord/admin/declarative"
)

// waitFlag gives a command that writes the flag --wait.
func waitFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("wait", false, "return when every live node serves the change, and say how long that took")
}

// write sends a change, runs show, and with wait says when the change is live everywhere.
func (o *options) write(cmd *cobra.Command, wait bool, r request, out any, show func() error) error {
	start := time.Now()
	progress := o.progress(cmd, fmt.Sprintf("the node works on %d KiB", (len(r.text)+1023)/1024))
	said, err := o.send(cmd.Context(), r, out)
	progress.end()
	if err != nil {
		return err
	}
	live := ""
	if wait {
		if live, err = o.await(cmd, said.index, start); err != nil {
			return fmt.Errorf("the change is committed at %d, but: %w", said.index, err)
		}
	}
	if err := show(); err != nil {
		return err
	}
	if live != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), live) // not part of the result, which a program may read
	}
	return nil
}

// await returns once every live node serves the change at index: its data plane has published it, as it says itself when the status asks.
func (o *options) await(cmd *cobra.Command, index uint64, start time.Time) (string, error) {
	if index == 0 {
		return "", errors.New("the node did not say at which index (X-Config-Index)")
	}
	progress := o.progress(cmd, fmt.Sprintf("committed at %d", index))
	defer progress.end()
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		var s status
		if err := o.call(ctx, "GET", "/cluster/status", nil, &s); err != nil {
			return "", err
		}
		took := time.Since(start)
		live, missing, behind := 0, "", ""
		for _, n := range s.Nodes {
			switch {
			case !n.Alive:
				missing += ", " + n.Name + " does not answer"
			case n.serves(index):
				live++
			default:
				behind += ", " + n.Name
			}
		}
		if behind == "" {
			return fmt.Sprintf("committed at %d, live on %d/%d nodes in %d ms%s", index, live, len(s.Nodes), max(1, took.Milliseconds()), missing), nil
		}
		progress.say("committed at %d, live on %d/%d nodes", index, live, len(s.Nodes))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return "", fmt.Errorf("not live within %v on %s", o.timeout, strings.TrimPrefix(behind, ", "))
		}
	}
}

func createCmd(o *options) *cobra.Command {
	var s scope
	file := ""
	cmd := &cobra.Command{
		Use: "create ENTITY [FIELD=VALUE...]", Short: "Create an entity",
		Long: "Create an entity from FIELD=VALUE arguments, or from a file with its fields as YAML or JSON.\n\n" +
			"Fields are written as in the forms of the Admin API: config.minute=5 for a field inside another, paths[]=/a for each element of a list.\n" +
			"FIELD=@FILE takes the value from a file.",
		Example: "  gwctl create service name=my-api url=http://127.0.0.1:3000\n  gwctl create route --service my-api name=r1 'paths[]=/api'\n" +
			"  gwctl create plugin --route r1 name=rate-limiting config.minute=5 --wait\n  gwctl create jwt --consumer john key=user-issuer\n" +
			"  gwctl create certificate cert=@site.crt key=@site.key\n  gwctl create upstream -f upstream.yaml",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return entityArgs(false)(cmd, args)
			}
			return nil
		},
	}
	s = o.scopeFlags(cmd)
	wait := waitFlag(cmd)
	cmd.Flags().StringVarP(&file, "file", "f", "", "file with the fields as YAML or JSON; - is standard input")
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return o.completeEntities(s, false)(cmd, args, typed)
		}
		return o.completeFields(cmd.Context(), args[0], typed)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := o.place(cmd.Context(), args[0], s)
		if err != nil {
			return err
		}
		r := request{method: "POST", path: p.path}
		switch {
		case file != "" && len(args) > 1:
			return usageError{errors.New("fields come from the arguments or from --file, not from both")}
		case file != "":
			r.body, err = readFields(cmd, file)
		default:
			r.form, err = formOf(args[1:])
		}
		if err != nil {
			return err
		}
		var made row
		return o.write(cmd, *wait, r, &made, func() error {
			made.plain()
			hint, _ := made["hint"].(string)
			delete(made, "hint")
			if err := o.print(cmd.OutOrStdout(), made, func(w io.Writer) { printRow(w, made) }); err != nil {
				return err
			}
			if hint != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "Hint:", hint)
			}
			return nil
		})
	}
	return cmd
}

// formOf reads FIELD=VALUE arguments.
func formOf(args []string) (url.Values, error) {
	form := url.Values{}
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if !ok || name == "" {
			return nil, usageError{fmt.Errorf("%q is not of the form FIELD=VALUE", a)}
		}
		if path, ok := strings.CutPrefix(value, "@"); ok {
			b, err := os.ReadFile(path)
			if err != nil {
				return nil, usageError{fmt.Errorf("%s: %w", name, err)}
			}
			value = string(b)
		}
		form.Add(name, value)
	}
	return form, nil
}

// completeFields offers the fields of a kind, from its schema.
func (o *options) completeFields(ctx context.Context, name, typed string) ([]string, cobra.ShellCompDirective) {
	q := o.quick()
	c, err := q.catalog(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	k, err := c.find(name)
	if err != nil || strings.Contains(typed, "=") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	fields, err := q.schema(ctx, "/schemas/"+k.name)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for _, f := range fields.list() {
		if set, _ := f.is["auto"].(bool); set && f.name != "key" && f.name != "secret" {
			continue
		}
		switch f.is["type"] {
		case "array", "set":
			out = append(out, f.name+"[]=")
		case "record", "map":
			out = append(out, f.name+".")
		default:
			out = append(out, f.name+"=")
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// readFile reads a file, or standard input for "-".
func readFile(cmd *cobra.Command, name string) ([]byte, error) {
	var b []byte
	var err error
	if name == "-" {
		b, err = io.ReadAll(cmd.InOrStdin())
	} else {
		b, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, usageError{err}
	}
	return b, nil
}

// readFields reads one entity.
func readFields(cmd *cobra.Command, name string) (row, error) {
	b, err := readFile(cmd, name)
	if err != nil {
		return nil, err
	}
	r, err := parseFields(b)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", name, err)}
	}
	return r, nil
}

// parseFields reads YAML or JSON as files with a whole configuration are read: "yes" and "off" are booleans, too.
func parseFields(b []byte) (r row, err error) {
	fields, err := declarative.Read(b)
	if errors.Is(err, declarative.ErrEmpty) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	err = json.Unmarshal(text, &r)
	r.plain()
	return r, err
}

func applyCmd(o *options) *cobra.Command {
	file, dry := "", false
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Create and update what a file says, in one transaction", Args: noArgs,
		Long: "Create and update the entities of a file in the format of kong.yml, in one transaction: all of it happens or nothing.\n" +
			"What the file does not name stays as it is; config sync deletes that.",
		Example: "  gwctl apply -f kong.yaml\n  gwctl apply -f kong.yaml --dry-run\n  generate | gwctl apply -f - --wait",
	}
	wait := waitFlag(cmd)
	cmd.Flags().StringVarP(&file, "file", "f", "", "file with the entities as YAML or JSON; - is standard input")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be done, and do nothing")
	_ = cmd.MarkFlagRequired("file")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		doc, err := readFile(cmd, file)
		if err != nil {
			return err
		}
		if doc, err = new(configFlags).expand(doc); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		var out applied
		return o.write(cmd, *wait && !dry, mergeRequest(doc, dry), &out, func() error {
			return o.print(cmd.OutOrStdout(), out, out.show)
		})
	}
	return cmd
}

// mergeRequest changes what a declarative document names and leaves the rest.
func mergeRequest(doc []byte, dry bool) request {
	q := url.Values{"mode": {"merge"}, "diff": {"1"}, "flatten_errors": {"1"}}
	if dry {
		q.Set("dry_run", "1")
	}
	return request{method: "POST", path: "/config?" + q.Encode(), text: doc, contentType: "application/yaml"}
}

// applied is what a transaction did, or would.
type applied struct {
	DryRun  bool   `json:"dry_run" yaml:"dry_run"`
	Index   uint64 `json:"index" yaml:"index"`
	Summary struct {
		Created   int `json:"creating" yaml:"creating"`
		Updated   int `json:"updating" yaml:"updating"`
		Unchanged int `json:"unchanged" yaml:"unchanged"`
	} `json:"summary" yaml:"summary"`
	Changes []struct {
		Action string `json:"action" yaml:"action"`
		Entity string `json:"entity" yaml:"entity"`
		ID     string `json:"id" yaml:"id"`
		Name   string `json:"name,omitempty" yaml:"name,omitempty"`
	} `json:"changes" yaml:"changes"`
}

func (a *applied) show(w io.Writer) {
	for _, c := range a.Changes {
		name := c.Name
		if name == "" || strings.HasSuffix(c.Entity, "_credentials") || c.Entity == "jwt_secrets" { // the name may be the credential
			name = c.ID
		}
		fmt.Fprintf(w, "%s %s %s\n", c.Action, c.Entity, cell(name))
	}
	what := "Done"
	if a.DryRun {
		what = "Nothing was done; it would be"
	}
	fmt.Fprintf(w, "%s: %d created, %d updated, %d unchanged\n", what, a.Summary.Created, a.Summary.Updated, a.Summary.Unchanged)
}
