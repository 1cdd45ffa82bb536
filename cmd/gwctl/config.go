package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"concord/admin/declarative"
	"concord/fsm/entity"
	"concord/fsm/schema"
)

// configTimeout is how long the node may take over a configuration, if --timeout does not say more.
const configTimeout = 5 * time.Minute

// changesError is the outcome of config diff --non-zero-exit-code when there are differences; decK exits with 2 too.
type changesError struct{}

func (changesError) Error() string { return "the configuration differs" }

// configFlags are those of the verbs under config.
type configFlags struct {
	*options
	states     []string
	selectTags []string
	yes, force bool
	noColor    bool
	masked     []string // values of variables in the files, longest first
}

func configCmd(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Read and write the whole configuration as files", Args: noArgs, RunE: showHelp,
		Long: "Read and write the whole configuration as files in the format of kong.yml and decK. A sync is one transaction: all of it is\n" +
			"there, on all nodes, or nothing.",
		Example: "  gwctl config dump -o kong.yaml\n  gwctl config diff kong.yaml\n  gwctl config sync kong.yaml",
	}
	f := &configFlags{options: o}
	cmd.AddCommand(f.dumpCmd(), f.diffCmd(), f.syncCmd(), f.validateCmd(), f.resetCmd(), f.importCmd())
	return cmd
}

func (f *configFlags) tags(cmd *cobra.Command, what string) *cobra.Command {
	cmd.Flags().StringSliceVar(&f.selectTags, "select-tag", nil, what+" (repeatable: all of them)")
	return cmd
}

func (f *configFlags) files(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringSliceVarP(&f.states, "state", "s", nil, "file or directory, - for standard input (repeatable); also as arguments; default kong.yaml")
	cmd.Flags().BoolVar(&f.noColor, "no-color", os.Getenv("NO_COLOR") != "", "no colours, also on a terminal")
	return f.tags(cmd, "only the entities with this tag; those in the files get it")
}

func (f *configFlags) diffCmd() *cobra.Command {
	code := false
	cmd := &cobra.Command{
		Use: "diff [FILE...]", Short: "Show what sync would change", Example: "  gwctl config diff kong.yaml\n  gwctl config diff -s kong.yaml --select-tag team-a --non-zero-exit-code",
		RunE: func(cmd *cobra.Command, args []string) error {
			changed, err := f.apply(cmd, args, url.Values{"dry_run": {"1"}})
			if err == nil && code && changed {
				return changesError{}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&code, "non-zero-exit-code", false, "exit with 2 if there are differences")
	return f.files(cmd)
}

func (f *configFlags) syncCmd() *cobra.Command {
	return f.files(&cobra.Command{
		Use: "sync [FILE...]", Short: "Make the configuration what the files say, in one transaction",
		Long:    "Make the configuration what the files say: create, update and delete what differs, in one transaction.",
		Example: "  gwctl config sync kong.yaml\n  gwctl config sync -s services/ --select-tag team-a",
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := f.apply(cmd, args, url.Values{})
			return err
		},
	})
}

func (f *configFlags) validateCmd() *cobra.Command {
	return f.files(&cobra.Command{
		Use: "validate [FILE...]", Short: "Check files against the schemas of the live node, and store nothing", Example: "  gwctl config validate kong.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			doc, err := f.load(cmd, args)
			if err != nil {
				return err
			}
			if err := f.post(cmd.Context(), url.Values{"dry_run": {"1"}}, doc, nil); err != nil {
				return err
			}
			return f.done(cmd, "The configuration is valid")
		},
	})
}

func (f *configFlags) resetCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reset", Short: "Delete the whole configuration", Args: noArgs, Example: "  gwctl config reset --force\n  gwctl config reset --select-tag team-a --yes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !f.yes && !f.force {
				fmt.Fprint(cmd.ErrOrStderr(), "This deletes the configuration. Type yes to go on: ")
				line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
				if answer := strings.TrimSpace(line); answer != "yes" && answer != "y" {
					return errors.New("nothing was deleted (--force does not ask)")
				}
			}
			_, err := f.send(cmd, schema.Record{"_format_version": "3.0"}, url.Values{})
			return err
		},
	}
	cmd.Flags().BoolVarP(&f.force, "force", "f", false, "do not ask")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&f.noColor, "no-color", os.Getenv("NO_COLOR") != "", "no colours, also on a terminal")
	return f.tags(cmd, "only the entities with this tag")
}

func (f *configFlags) dumpCmd() *cobra.Command {
	file, format, ids := "-", "yaml", false
	cmd := &cobra.Command{
		Use: "dump", Short: "Write the configuration as a file that sync and decK read", Args: noArgs,
		Long: "Write the configuration as a file that sync and decK read. Rows that expire, tokens and sessions are not part of it.\n" +
			"Passwords are digests made with the id of their consumer: a consumer with basic-auth credentials is written with its id, and _transform is false.",
		Example: "  gwctl config dump -o kong.yaml\n  gwctl config dump --select-tag team-a --format json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case format != "yaml" && format != "json":
				return usageError{fmt.Errorf("--format %q is none of yaml, json", format)}
			case file == "yaml" || file == "json":
				return usageError{fmt.Errorf("-o names a file here; the form is chosen with --format %s", file)}
			}
			var answer struct{ Config string }
			if err := f.request(cmd.Context(), "GET", "/config"+query(url.Values{}, f.selectTags), nil, &answer); err != nil {
				return err
			}
			tree, err := declarative.Read([]byte(answer.Config))
			if err != nil {
				return err
			}
			layout := declarative.NewLayout(entity.All())
			doc, errs := layout.Rows(tree)
			if errs != nil {
				return fmt.Errorf("the node's configuration has another form than this gwctl knows: %s", declarative.Message(errs))
			}
			if lacksSecrets(doc.Rows) {
				fmt.Fprintln(cmd.ErrOrStderr(), "Warning: the token may not see secrets, so they are missing: a sync of this dump would replace credentials by new ones")
			}
			nested := layout.Nest(doc, declarative.NestOptions{WithIDs: ids, SelectTags: f.selectTags})
			var text []byte
			if format == "json" {
				text, err = json.MarshalIndent(nested, "", "  ")
				text = append(text, '\n')
			} else {
				text, err = declarative.Marshal(nested)
			}
			if err != nil {
				return err
			}
			if file == "-" {
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			if _, err := os.Stat(file); err == nil && !f.yes && !f.force {
				return usageError{fmt.Errorf("%s exists: name another file, or overwrite it with --yes", file)}
			}
			return os.WriteFile(file, text, 0o600) // it holds credentials
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", file, "file to write, - for standard output")
	cmd.Flags().StringVar(&format, "format", format, "yaml or json")
	cmd.Flags().BoolVar(&ids, "with-id", false, "write ids and timestamps too")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "overwrite the file")
	cmd.Flags().BoolVar(&f.force, "force", false, "overwrite the file")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"yaml", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return f.tags(cmd, "only the entities with this tag")
}

// lacksSecrets tells of rows whose secret always has a value, but for readers that may not see it.
func lacksSecrets(rows []declarative.Row) bool {
	always := map[string][]string{}
	for _, def := range entity.All() {
		for _, f := range def.Schema.Fields {
			if f.Secret && (f.Auto || f.Required) {
				always[def.Schema.Name] = append(always[def.Schema.Name], f.Name)
			}
		}
	}
	return slices.ContainsFunc(rows, func(r declarative.Row) bool {
		return slices.ContainsFunc(always[r.Entity], func(name string) bool { return r.Body[name] == nil })
	})
}

func query(q url.Values, tags []string) string {
	if len(tags) > 0 {
		q.Set("select_tags", strings.Join(tags, ","))
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// request is options.call with more patience.
func (f *configFlags) request(ctx context.Context, method, path string, body, out any) error {
	o := *f.options
	o.timeout = max(o.timeout, configTimeout)
	return o.call(ctx, method, path, body, out)
}

func (f *configFlags) post(ctx context.Context, q url.Values, doc schema.Record, out any) error {
	return spelledOut(f.request(ctx, "POST", "/config"+query(q, f.selectTags), doc, out))
}

// spelledOut shows an invalid configuration as a tree instead of on one line.
func spelledOut(err error) error {
	var refused *refusedError
	if !errors.As(err, &refused) || refused.status != http.StatusBadRequest {
		return err
	}
	if tree := fieldsOf(refused.body); tree != nil {
		return errors.New("the configuration is invalid:\n" + declarative.Indented(tree))
	}
	return err
}

func fieldsOf(body []byte) schema.Errors {
	var e struct {
		Code   int
		Fields map[string]any
	}
	if json.Unmarshal(body, &e) != nil || e.Code != 14 {
		return nil
	}
	tree, _ := errorsOf(e.Fields).(schema.Errors)
	return tree
}

func errorsOf(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := schema.Errors{}
		for k, e := range v {
			out[k] = errorsOf(e)
		}
		return out
	case []any:
		for i := range v {
			v[i] = errorsOf(v[i])
		}
	}
	return v
}

// outcome is the answer of POST /config?diff=1.
type outcome struct {
	DryRun  bool `json:"dry_run" yaml:"dry_run"`
	Summary struct {
		Creating  int `json:"creating" yaml:"creating"`
		Updating  int `json:"updating" yaml:"updating"`
		Deleting  int `json:"deleting" yaml:"deleting"`
		Unchanged int `json:"unchanged" yaml:"unchanged"`
	} `json:"summary" yaml:"summary"`
	Changes []change `json:"changes" yaml:"changes"`
}

type change struct {
	Action string         `json:"action" yaml:"action"`
	Entity string         `json:"entity" yaml:"entity"`
	ID     string         `json:"id" yaml:"id"`
	Name   string         `json:"name,omitempty" yaml:"name,omitempty"`
	Before map[string]any `json:"before,omitempty" yaml:"before,omitempty"`
	After  map[string]any `json:"after,omitempty" yaml:"after,omitempty"`
}

// apply sends the files and shows what changes; changed tells whether there is something.
func (f *configFlags) apply(cmd *cobra.Command, args []string, q url.Values) (changed bool, err error) {
	doc, err := f.load(cmd, args)
	if err != nil {
		return false, err
	}
	return f.send(cmd, doc, q)
}

func (f *configFlags) send(cmd *cobra.Command, doc schema.Record, q url.Values) (changed bool, err error) {
	q.Set("diff", "1")
	var out outcome
	if err := f.post(cmd.Context(), q, doc, &out); err != nil {
		return false, err
	}
	for _, c := range out.Changes {
		f.mask(c.Before)
		f.mask(c.After)
	}
	w := cmd.OutOrStdout()
	return len(out.Changes) > 0, f.print(w, out, func(w io.Writer) { out.show(w, !f.noColor && isTerminal(w)) })
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// show prints the changes and the summary in decK's words.
func (o *outcome) show(w io.Writer, colour bool) {
	paint := func(code, text string) string {
		if !colour {
			return text
		}
		return "\x1b[" + code + "m" + text + "\x1b[0m"
	}
	codes := map[string]string{"create": "32", "update": "33", "delete": "31"}
	words := map[string]string{"create": "creating", "update": "updating", "delete": "deleting"}
	for _, c := range o.Changes {
		name := c.Name
		if name == "" {
			name = c.ID
		}
		fmt.Fprintln(w, paint(codes[c.Action], words[c.Action]+" "+strings.ReplaceAll(declarative.Singular(c.Entity), "_", "-")+" "+name))
		if c.Action != "update" {
			continue
		}
		for _, k := range slices.Sorted(mapsKeys(c.Before, c.After)) {
			before, after := compact(c.Before, k), compact(c.After, k)
			if before == after || k == "updated_at" {
				continue
			}
			if before != "" {
				fmt.Fprintln(w, paint("31", fmt.Sprintf("  -  %s: %s", k, before)))
			}
			if after != "" {
				fmt.Fprintln(w, paint("32", fmt.Sprintf("  +  %s: %s", k, after)))
			}
		}
	}
	done := [3]string{"Created", "Updated", "Deleted"}
	if o.DryRun {
		done = [3]string{"To create", "To update", "To delete"}
	}
	fmt.Fprintf(w, "Summary:\n  %s: %d\n  %s: %d\n  %s: %d\n", done[0], o.Summary.Creating, done[1], o.Summary.Updating, done[2], o.Summary.Deleting)
}

func mapsKeys(a, b map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range a {
			if !yield(k) {
				return
			}
		}
		for k := range b {
			if _, both := a[k]; !both && !yield(k) {
				return
			}
		}
	}
}

func compact(rec map[string]any, key string) string {
	v, ok := rec[key]
	if !ok {
		return ""
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // came as JSON
	return strings.TrimSpace(b.String())
}
