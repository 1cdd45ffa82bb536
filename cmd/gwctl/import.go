package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"concord/admin/declarative"
	"concord/fsm/entity"
	"concord/fsm/schema"
)

// fate is what became of one object of an import.
type fate struct {
	Entity string   `json:"entity" yaml:"entity"`
	Name   string   `json:"name" yaml:"name"`
	Result string   `json:"result" yaml:"result"` // carried, rewritten, refused
	Why    []string `json:"why,omitempty" yaml:"why,omitempty"`

	body schema.Record
}

func (f *configFlags) importCmd() *cobra.Command {
	from, dry, headers := "", false, []string(nil)
	cmd := &cobra.Command{
		Use: "import --from URL|FILE", Short: "Take over the configuration of a Kong, live or from a dump", Args: noArgs,
		Long: "Take over the configuration of a Kong: from its Admin API, or from a file of deck dump or kong config db_export.\n" +
			"What is there already stays. Every object is reported: carried as it is, rewritten (and how), or refused (and why). What can be\n" +
			"carried is written in one transaction; the exit code is 1 if something was refused.",
		Example: "  gwctl config import --from http://kong:8001 --dry-run\n  gwctl config import --from kong.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" {
				return usageError{errors.New("--from is missing: the URL of a Kong's Admin API, or a file")}
			}
			im := importer{f: f, layout: declarative.NewLayout(entity.All())}
			var err error
			if strings.HasPrefix(from, "http://") || strings.HasPrefix(from, "https://") {
				err = im.fetch(cmd.Context(), strings.TrimSuffix(from, "/"), headers)
			} else {
				err = im.read(from)
			}
			if err == nil {
				err = im.carry(cmd.Context(), dry)
			}
			if err != nil {
				return err
			}
			if err := f.print(cmd.OutOrStdout(), im.list, im.show); err != nil {
				return err
			}
			if n := im.count("refused"); n > 0 {
				return fmt.Errorf("%d %s refused", n, map[bool]string{true: "object was", false: "objects were"}[n == 1])
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "URL of a Kong's Admin API, or a file")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "report only")
	cmd.Flags().StringSliceVar(&headers, "header", nil, "header for the Kong's Admin API, such as Kong-Admin-Token:secret (repeatable)")
	return cmd
}

// importer takes objects over.
type importer struct {
	f       *configFlags
	layout  *declarative.Layout
	list    []*fate
	version string
	hashed  bool // passwords and secrets are digests
}

// foreign are the members that Kong's tables have beside the fields of an entity.
var foreign = []string{"ws_id", "cache_key", "partials"}

// collections are Kong's, by entity. Those of other editions are refused object by object.
var collections = []struct{ path, entity string }{
	{"services", "services"}, {"routes", "routes"}, {"consumers", "consumers"}, {"plugins", "plugins"}, {"upstreams", "upstreams"},
	{"certificates", "certificates"}, {"snis", "snis"}, {"ca_certificates", "ca_certificates"}, {"vaults", "vaults"}, {"keys", "keys"}, {"key-sets", "key_sets"},
	{"key-auths", "keyauth_credentials"}, {"basic-auths", "basicauth_credentials"}, {"hmac-auths", "hmacauth_credentials"}, {"jwts", "jwt_secrets"},
	{"oauth2", "oauth2_credentials"}, {"acls", "acls"}, {"consumer_groups", "consumer_groups"}, {"mtls-auths", "mtls_auth_credentials"}, {"filter-chains", "filter_chains"},
}

// fetch reads all objects from an Admin API, page by page.
func (im *importer) fetch(ctx context.Context, base string, headers []string) error {
	client, err := im.f.client()
	if err != nil {
		return err
	}
	get := func(path string, out any) (int, error) {
		ctx, cancel := context.WithTimeout(ctx, im.f.timeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
		if err != nil {
			return 0, usageError{err}
		}
		for _, h := range headers {
			k, v, _ := strings.Cut(h, ":")
			req.Header.Set(k, strings.TrimSpace(v))
		}
		res, err := client.Do(req)
		if err != nil {
			return 0, &unreachableError{base, err, "--from URL"}
		}
		defer res.Body.Close()
		body, err := io.ReadAll(io.LimitReader(res.Body, declarative.MaxBytes))
		if err == nil && res.StatusCode == http.StatusOK {
			err = json.Unmarshal(body, out)
		}
		return res.StatusCode, err
	}
	var root struct{ Version string }
	if code, err := get("/", &root); errors.As(err, new(*unreachableError)) {
		return err
	} else if err != nil || root.Version == "" {
		return fmt.Errorf("%s does not answer like a Kong's Admin API (status %d): %w", base, code, errors.Join(err, errors.New("GET / tells no version")))
	}
	im.hashed, im.version = true, "3.0"
	if strings.HasPrefix(root.Version, "0.") || strings.HasPrefix(root.Version, "1.") || strings.HasPrefix(root.Version, "2.") {
		im.version = "2.1" // paths that look like regular expressions were some
	}
	all := func(path, name string, optional bool) ([]schema.Record, error) {
		var list []schema.Record
		for next := ""; ; {
			var page struct {
				Data   []schema.Record
				Offset *string
			}
			code, err := get(path+"?size=1000"+next, &page)
			switch {
			case err != nil:
				return nil, err
			case code == http.StatusOK:
			case optional && (code == http.StatusNotFound || code == http.StatusForbidden || code == http.StatusBadRequest):
				return nil, nil // this Kong has none
			default:
				return nil, fmt.Errorf("%s%s answered %d", base, path, code)
			}
			for _, rec := range page.Data {
				list = append(list, rec)
				im.add(name, rec)
			}
			if page.Offset == nil || *page.Offset == "" {
				return list, nil
			}
			next = "&offset=" + url.QueryEscape(*page.Offset)
		}
	}
	for _, c := range collections {
		list, err := all("/"+c.path, c.entity, c.path != "services" && c.path != "routes")
		if err != nil {
			return err
		}
		for _, rec := range list {
			item := "/" + c.path + "/" + url.PathEscape(fmt.Sprint(rec["id"]))
			switch c.entity {
			case "upstreams":
				_, err = all(item+"/targets", "targets", false)
			case entity.ConsumerGroups:
				err = im.members(rec["id"], item, get)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// members takes up who is in a group.
func (im *importer) members(group any, path string, get func(string, any) (int, error)) error {
	var shown struct{ Consumers []schema.Record }
	code, err := get(path, &shown)
	if err != nil || code != http.StatusOK {
		return fmt.Errorf("%s answered %d: %w", path, code, cmp.Or(err, errors.New("it should show the group and its consumers")))
	}
	for _, c := range shown.Consumers {
		im.add(entity.ConsumerGroupConsumers, schema.Record{"consumer_group": schema.Record{"id": group}, "consumer": schema.Record{"id": c["id"]}})
	}
	return nil
}

// add takes up one object of an Admin API.
func (im *importer) add(name string, rec schema.Record) {
	o := &fate{Entity: name, Result: "carried", body: rec}
	o.Name = label(rec)
	im.list = append(im.list, o)
	for _, k := range foreign {
		v, there := rec[k]
		delete(rec, k)
		if there && v != nil && k == "partials" {
			o.refuse(k + ": not part of Kong's open source edition")
		}
	}
	if name == "certificates" {
		delete(rec, "snis") // come on their own
	}
	if !im.layout.Knows(name) {
		o.refuse("this gateway has no " + name)
	}
}

func (o *fate) refuse(why string) {
	o.Result = "refused"
	if !slices.Contains(o.Why, why) {
		o.Why = append(o.Why, why)
	}
}

func (o *fate) rewrite(how string) {
	if o.Result == "carried" {
		o.Result = "rewritten"
	}
	o.Why = append(o.Why, how)
}

func label(rec schema.Record) string {
	for _, k := range []string{"name", "username", "instance_name", "target", "prefix", "group", "custom_id", "client_id", "kid", "id"} {
		if s, ok := rec[k].(string); ok {
			return s
		}
	}
	return ""
}

// read takes the objects from a file. What this gateway does not know is refused, not the file.
func (im *importer) read(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return usageError{err}
	}
	if text, err = new(configFlags).expand(text); err != nil {
		return err
	}
	tree, err := declarative.Read(text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, k := range slices.Sorted(maps.Keys(tree)) {
		list, isList := tree[k].([]any)
		if strings.HasPrefix(k, "_") || im.layout.Knows(k) || k == "workspaces" || k == "parameters" {
			continue
		}
		delete(tree, k)
		for _, e := range list {
			rec, _ := e.(schema.Record)
			im.list = append(im.list, &fate{Entity: k, Name: label(rec), Result: "refused", Why: []string{"this gateway has no " + k}})
		}
		if !isList {
			im.list = append(im.list, &fate{Entity: k, Result: "refused", Why: []string{"unknown"}})
		}
	}
	delete(tree, "_konnect")
	doc, errs := im.layout.Rows(tree)
	if errs != nil {
		return fmt.Errorf("%s:\n%s", path, declarative.Indented(errs))
	}
	im.version, im.hashed = "3.0", !doc.Transform // paths are marked already
	rows := make([]*fate, len(doc.Rows))
	for i, r := range doc.Rows {
		o := &fate{Entity: r.Entity, Name: label(r.Body), Result: "carried", body: r.Body}
		rows[i], im.list = o, append(im.list, o)
		for _, k := range foreign {
			delete(r.Body, k)
		}
		if r.Parent < 0 {
			continue
		}
		parent := rows[r.Parent]
		if parent.body["id"] == nil {
			if parent.body["_given"] == nil {
				parent.body["_given"] = uuid.NewString()
			}
			o.body[r.Field] = schema.Record{"id": parent.body["_given"]}
		} else {
			o.body[r.Field] = schema.Record{"id": parent.body["id"]}
		}
		if r.Entity == "basicauth_credentials" && sha1Text.MatchString(fmt.Sprint(r.Body["password"])) && !im.hashed {
			if parent.body["id"] == nil {
				o.refuse("password is a digest made with the id of the consumer, which the file does not tell: dump with --with-id")
			} else {
				im.hashed = true
			}
		}
	}
	for i, o := range rows {
		if id := o.body["_given"]; id != nil {
			delete(o.body, "_given")
			o.body["id"] = id
			im.known(rows, i)
		}
		if doc.Version != "3.0" && o.Entity == "routes" {
			im.marked(o)
		}
	}
	return nil
}

// sha1Text is the form of a basic-auth password in Kong's database.
var sha1Text = regexp.MustCompile(`^[0-9a-f]{40}$`)

// known is called for a parent without an id in the file, which got one: if the node has it by name, its children go to that one.
func (im *importer) known(rows []*fate, i int) {
	o := rows[i]
	def, _ := entity.Lookup(o.Entity)
	key, _ := o.body[def.Schema.EndpointKey].(string)
	if key == "" {
		return
	}
	id := o.body["id"]
	delete(o.body, "id")
	for _, c := range rows {
		for _, f := range c.fields() {
			if ref, ok := c.body[f.Name].(schema.Record); ok && ref["id"] == id && f.Ref == o.Entity {
				c.body[f.Name] = key
			}
		}
	}
}

func (o *fate) fields() []schema.Field {
	def, _ := entity.Lookup(o.Entity)
	if def.Schema == nil {
		return nil
	}
	return def.Schema.ForeignFields()
}

// marked tells that a route's paths were rewritten.
func (im *importer) marked(o *fate) {
	list, _ := o.body["paths"].([]any)
	for _, p := range list {
		if s, ok := p.(string); ok && strings.HasPrefix(s, "~") {
			o.rewrite("path " + strings.TrimPrefix(s, "~") + " is a regular expression: " + s)
		}
	}
}

// document is what is not refused, flat, and for each list which objects stand in it.
func (im *importer) document() (schema.Record, map[string][]*fate) {
	doc := schema.Record{"_format_version": im.version, "_transform": !im.hashed}
	at := map[string][]*fate{}
	for _, o := range im.list {
		if o.Result == "refused" {
			continue
		}
		list, _ := doc[o.Entity].([]any)
		doc[o.Entity] = append(list, maps.Clone(o.body))
		at[o.Entity] = append(at[o.Entity], o)
	}
	return doc, at
}

// carry has the node judge the objects, takes out what it refuses until the rest is accepted, and writes that.
func (im *importer) carry(ctx context.Context, dry bool) error {
	if im.version != "3.0" {
		for _, o := range im.list {
			if o.Entity == "routes" && declarative.MarkRegexes(o.body) {
				im.marked(o)
			}
		}
		im.version = "3.0"
	}
	for range len(im.list) + 2 { // each round takes something out
		doc, at := im.document()
		q := url.Values{"mode": {"merge"}, "dry_run": {"1"}}
		err := im.f.request(ctx, "POST", "/config"+query(q, nil), doc, nil)
		if err == nil {
			if !dry {
				q.Del("dry_run")
				q.Set("diff", "1")
				err = im.f.request(ctx, "POST", "/config"+query(q, nil), doc, nil)
			}
			return err
		}
		var refused *refusedError
		if !errors.As(err, &refused) {
			return err
		}
		if !im.judge(fieldsOf(refused.body), at) {
			return spelledOut(err)
		}
	}
	return errors.New("the node keeps refusing what it was not shown: is it of another version than this gwctl?")
}

// judge takes over what a node found wrong; false when that is about no object.
func (im *importer) judge(tree schema.Errors, at map[string][]*fate) (progress bool) {
	for name, v := range tree {
		list, _ := v.([]any)
		for i, e := range list {
			if e == nil || i >= len(at[name]) {
				continue
			}
			progress = true
			o := at[name][i]
			errs, ok := e.(schema.Errors)
			if !ok {
				o.refuse(fmt.Sprint(e))
				continue
			}
			for _, k := range slices.Sorted(maps.Keys(errs)) {
				if errs[k] == "unknown field" {
					delete(o.body, k)
					o.rewrite("without " + k + ", which is unknown here")
					continue
				}
				config, isRec := o.body[k].(schema.Record)
				if nested, ok := errs[k].(schema.Errors); ok && isRec && im.forget(o, k, config, nested) {
					continue
				}
				o.refuse(strings.ReplaceAll(declarative.Indented(schema.Errors{k: errs[k]}), "\n", " "))
			}
		}
	}
	return progress
}

// forget takes unknown settings out of a nested record; false if something else is wrong there.
func (im *importer) forget(o *fate, path string, rec schema.Record, errs schema.Errors) bool {
	for _, e := range errs {
		if e != "unknown field" {
			return false
		}
	}
	for _, k := range slices.Sorted(maps.Keys(errs)) {
		delete(rec, k)
		o.rewrite("without " + path + "." + k + ", which is unknown here")
	}
	return true
}

func (im *importer) count(result string) (n int) {
	for _, o := range im.list {
		if o.Result == result {
			n++
		}
	}
	return n
}

// show lists what was not carried as it is, and counts the rest.
func (im *importer) show(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, o := range im.list {
		if o.Result != "carried" {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", o.Result, declarative.Singular(o.Entity), o.Name, strings.Join(o.Why, "; "))
		}
	}
	t.Flush()
	fmt.Fprintf(w, "Summary:\n  Carried: %d\n  Rewritten: %d\n  Refused: %d\n", im.count("carried"), im.count("rewritten"), im.count("refused"))
}
