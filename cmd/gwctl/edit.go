package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

func editCmd(o *options) *cobra.Command {
	var s scope
	cmd := &cobra.Command{
		Use: "edit ENTITY REF", Short: "Change an entity in an editor", Args: entityArgs(true),
		Long: "Open an entity in the editor of the variables VISUAL or EDITOR (else vi) and send what was changed, and only that, so that changes\n" +
			"others make meanwhile to other fields stay. A field that was taken out goes back to its default. If the node refuses the change, the\n" +
			"editor opens again with the reason; saving the same text once more, or an empty one, gives up.",
		Example: "  gwctl edit service my-api\n  EDITOR=nano gwctl edit plugin 5f2b… --wait",
	}
	s = o.scopeFlags(cmd)
	wait := waitFlag(cmd)
	cmd.ValidArgsFunction = o.completeEntities(s, true)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := o.place(cmd.Context(), args[0], s)
		if err != nil {
			return err
		}
		var now row
		said, err := o.row(cmd.Context(), p, args[1], &now)
		if err != nil {
			return err
		}
		fields := o.schemaOf(cmd.Context(), p, now)
		return o.edit(cmd, now, func(changed row) error {
			patch := patchOf(fields, now, changed)
			if len(patch) == 0 {
				return o.done(cmd, "Nothing was changed")
			}
			r := request{method: "PATCH", path: p.item(args[1]), body: patch, ifMatch: said.etag}
			return o.write(cmd, *wait, r, nil, func() error { return o.done(cmd, "Changed the %s %s", p.word(), args[1]) })
		})
	}
	return cmd
}

// ownedByGateway are fields that nobody edits.
var ownedByGateway = []string{"id", "created_at", "updated_at"}

// maxEdits ends what an editor that is a script could go on with for ever.
const maxEdits = 20

// edit has a person change the row until send takes it.
func (o *options) edit(cmd *cobra.Command, now row, send func(row) error) error {
	shown := maps.Clone(now)
	for _, f := range ownedByGateway {
		delete(shown, f)
	}
	var text bytes.Buffer
	enc := yaml.NewEncoder(&text)
	enc.SetIndent(2)
	if err := enc.Encode(shown); err != nil {
		return err
	}
	// In a directory of its own: the file may hold credentials, and so may the copies that editors make beside it.
	dir, err := os.MkdirTemp("", "gwctl-edit-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "entity.yaml")
	content := text.Bytes()
	var refused error
	for range maxEdits {
		if err := os.WriteFile(name, append(comment(refused), content...), 0o600); err != nil {
			return err
		}
		if err := runEditor(cmd, name); err != nil {
			return err
		}
		saved, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		saved = uncomment(saved)
		switch {
		case len(bytes.TrimSpace(saved)) == 0:
			return errors.New("the file is empty: nothing was changed")
		case refused != nil && bytes.Equal(saved, content):
			return fmt.Errorf("nothing was changed: %w", refused)
		}
		changed, err := parseFields(saved)
		if err == nil {
			err = send(changed)
			if again := new(refusedError); err == nil || !errors.As(err, &again) || again.status != 400 && again.status != 409 {
				return err
			}
		}
		refused, content = err, saved
	}
	return fmt.Errorf("refused %d times, nothing was changed: %w", maxEdits, refused)
}

const commentMark = "# | "

// comment is the head of the file: what to do, or why the change was refused.
func comment(refused error) []byte {
	text := "Change the fields, save and leave the editor. An empty file changes nothing."
	if refused != nil {
		text = "This was refused:\n" + refused.Error() + "\nMend it, or leave without a change to give up."
	}
	return []byte(commentMark + strings.ReplaceAll(text, "\n", "\n"+commentMark) + "\n")
}

// uncomment removes what comment wrote.
func uncomment(text []byte) []byte {
	for bytes.HasPrefix(text, []byte(commentMark)) {
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	return text
}

// runEditor runs the editor of the environment, which may have arguments.
func runEditor(cmd *cobra.Command, file string) error {
	editor := os.Getenv("VISUAL")
	if editor == "" {
		editor = os.Getenv("EDITOR")
	}
	if editor == "" {
		editor = "vi"
	}
	run := exec.CommandContext(cmd.Context(), "sh", "-c", editor+` "$1"`, "sh", file)
	run.Stdin, run.Stdout, run.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	if err := run.Run(); err != nil {
		return fmt.Errorf("the editor %q failed: %w: nothing was changed (the variable EDITOR names another)", editor, err)
	}
	return nil
}

// description is a part of a schema as the node describes it.
type description map[string]any

type described struct {
	name string
	is   description
}

// list is the fields of a record.
func (d description) list() []described {
	var out []described
	list, _ := d["fields"].([]any)
	for _, one := range list {
		m, _ := one.(map[string]any)
		for name, v := range m {
			is, _ := v.(map[string]any)
			out = append(out, described{name, is})
		}
	}
	return out
}

// schema asks the node for a schema.
func (o *options) schema(ctx context.Context, path string) (description, error) {
	var d description
	err := o.call(ctx, "GET", path, nil, &d)
	return d, err
}

// schemaOf is the schema of a row: that of its kind, and of a plugin's own configuration. Without it, fields are replaced as a whole.
func (o *options) schemaOf(ctx context.Context, p place, r row) description {
	path := "/schemas/" + p.name
	if name, _ := r["name"].(string); p.name == "plugins" || p.name == "vaults" {
		path += "/" + name
	}
	d, err := o.schema(ctx, path)
	if err != nil {
		return nil
	}
	return d
}

// patchOf is what a PATCH must say to make the row that is now the row that is wanted. A PATCH merges records, so those hold only what differs, and
// null for what is gone; all else, maps too, is replaced.
func patchOf(d description, now, wanted row) row {
	records := map[string]description{}
	for _, f := range d.list() {
		if f.is["type"] == "record" {
			records[f.name] = f.is
		}
	}
	out := row{}
	for k, v := range wanted {
		old, had := now[k]
		if had && reflect.DeepEqual(old, v) {
			continue
		}
		inner, isRecord := records[k]
		a, wasMap := old.(map[string]any)
		b, isMap := v.(map[string]any)
		if isRecord && wasMap && isMap {
			if diff := patchOf(inner, a, b); len(diff) > 0 {
				out[k] = map[string]any(diff)
			}
			continue
		}
		out[k] = v
	}
	for k, v := range now {
		if _, kept := wanted[k]; !kept && v != nil && !slices.Contains(ownedByGateway, k) {
			out[k] = nil
		}
	}
	return out
}
