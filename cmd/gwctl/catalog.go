package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// kind is a kind of entity, as the node's list of endpoints shows it.
type kind struct {
	name       string            // plural, as in /schemas/services
	collection string            // "services" of /services; "": only under a parent
	under      map[string]string // plural of a parent → collection there: "consumers" → "jwt" of /consumers/{consumers}/jwt
}

// catalog is the kinds by name.
type catalog map[string]*kind

// parents are the flags that name what an entity belongs to, with the plural that URLs use.
var parents = []struct{ flag, plural string }{
	{"service", "services"}, {"route", "routes"}, {"consumer", "consumers"}, {"upstream", "upstreams"}, {"certificate", "certificates"}, {"key-set", "key-sets"},
	{"consumer-group", "consumer_groups"},
}

// notEntities are parameters of paths that look like an entity's.
var notEntities = []string{"tags", "key", "api", "plugin", "node", "token", "name", "log_level"}

// catalog asks the node what it has, so that a gwctl of another version than the node's fits.
func (o *options) catalog(ctx context.Context) (catalog, error) {
	var answer struct{ Data []string }
	if err := o.call(ctx, "GET", "/endpoints", nil, &answer); err != nil {
		return nil, err
	}
	return newCatalog(answer.Data), nil
}

func newCatalog(paths []string) catalog {
	c := catalog{}
	for _, p := range paths {
		segs := strings.Split(strings.Trim(p, "/"), "/")
		name, isItem := parameter(segs[len(segs)-1])
		if !isItem || slices.Contains(notEntities, name) || !slices.Contains(paths, p[:strings.LastIndexByte(p, '/')]) {
			continue
		}
		k := c[name]
		if k == nil {
			k = &kind{name: name, under: map[string]string{}}
		}
		switch len(segs) {
		case 2:
			k.collection = segs[0]
		case 4:
			if owner, ok := parameter(segs[1]); !ok || slices.Contains(notEntities, owner) {
				continue
			}
			k.under[segs[0]] = segs[2]
		default:
			continue
		}
		c[name] = k
	}
	return c
}

// parameter is the name of a path's parameter.
func parameter(segment string) (string, bool) {
	inner, open := strings.CutPrefix(segment, "{")
	name, closed := strings.CutSuffix(inner, "}")
	return name, open && closed
}

// canonical makes spellings of one name equal.
func canonical(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

// names are what people may call the kind: plural, collection, the collection under a parent, each in the singular too.
func (k *kind) names() []string {
	out := append([]string{k.name, k.collection}, slices.Collect(maps.Values(k.under))...)
	for _, n := range out {
		if n != "" {
			out = append(out, singular(n))
		}
	}
	for i := range out {
		out[i] = canonical(out[i])
	}
	return out
}

// word is the one name that completion and messages use.
func (k *kind) word() string {
	if k.collection != "" {
		return singular(k.collection)
	}
	return singular(k.name)
}

func singular(s string) string { return strings.TrimSuffix(s, "s") }

// find returns the kind that somebody calls name.
func (c catalog) find(name string) (*kind, error) {
	for _, k := range c {
		if slices.Contains(k.names(), canonical(name)) {
			return k, nil
		}
	}
	return nil, usageError{fmt.Errorf("%q is no kind of entity; there are: %s", name, strings.Join(c.words(), ", "))}
}

func (c catalog) words() []string {
	var out []string
	for _, k := range c {
		out = append(out, k.word())
	}
	slices.Sort(out)
	return out
}

// place is a collection of entities: all of a kind, or those that belong to something.
type place struct {
	*kind
	path string // of the collection
}

func (p place) item(ref string) string { return p.path + "/" + url.PathEscape(ref) }

// scope is the values of the flags in parents.
type scope map[string]*string

// scopeFlags gives cmd a flag for every kind of parent.
func (o *options) scopeFlags(cmd *cobra.Command) scope {
	s := scope{}
	for _, p := range parents {
		s[p.plural] = cmd.Flags().String(p.flag, "", "the "+p.flag+" it belongs to, by name or id")
		_ = cmd.RegisterFlagCompletionFunc(p.flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return o.completeRefs(cmd.Context(), p.flag, scope{})
		})
	}
	return s
}

// place finds the collection that the arguments mean.
func (o *options) place(ctx context.Context, name string, s scope) (place, error) {
	c, err := o.catalog(ctx)
	if err != nil {
		return place{}, err
	}
	k, err := c.find(name)
	if err != nil {
		return place{}, err
	}
	return k.place(s)
}

func (k *kind) place(s scope) (place, error) {
	var flags []string // that fit
	path, given := "", ""
	for _, p := range parents {
		nested, fits := k.under[p.plural]
		if fits {
			flags = append(flags, "--"+p.flag)
		}
		ref := ""
		if v := s[p.plural]; v != nil {
			ref = *v
		}
		switch {
		case ref == "":
		case !fits:
			return place{}, usageError{fmt.Errorf("a %s does not belong to a %s", k.word(), p.flag)}
		case given != "":
			return place{}, usageError{fmt.Errorf("--%s and --%s: only one of them can be looked under; give the other as a field, such as %s.name=NAME", given, p.flag, p.flag)}
		default:
			given, path = p.flag, "/"+p.plural+"/"+url.PathEscape(ref)+"/"+nested
		}
	}
	if path == "" {
		if k.collection == "" {
			return place{}, usageError{fmt.Errorf("a %s belongs to something: say to what with %s", k.word(), strings.Join(flags, " or "))}
		}
		path = "/" + k.collection
	}
	return place{k, path}, nil
}

// quick is o for shell completion, where nobody wants to wait.
func (o *options) quick() *options {
	q := *o
	q.timeout = 2 * time.Second
	return &q
}

// completeRefs offers the names of the entities of a kind, and the ids of those without, asked of the live node.
func (o *options) completeRefs(ctx context.Context, name string, s scope) ([]string, cobra.ShellCompDirective) {
	q := o.quick()
	p, err := q.place(ctx, name, s)
	var page struct{ Data []row }
	if err == nil {
		err = q.call(ctx, "GET", p.path+"?size=1000", nil, &page)
	}
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for _, r := range page.Data {
		id, _ := r["id"].(string)
		if label := r.label(); label != "" {
			out = append(out, cobra.CompletionWithDesc(label, id))
		} else {
			out = append(out, id)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeEntities completes ENTITY and, with ref, REF behind it.
func (o *options) completeEntities(s scope, ref bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			c, err := o.quick().catalog(cmd.Context())
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return c.words(), cobra.ShellCompDirectiveNoFileComp
		case len(args) == 1 && ref:
			return o.completeRefs(cmd.Context(), args[0], s)
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// entityArgs wants ENTITY, and with ref one REF.
func entityArgs(ref bool) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		want, n := "a kind of entity, such as service", 1
		if ref {
			want, n = "a kind of entity and the name or id of one, such as service my-api", 2
		}
		if len(args) != n || slices.Contains(args, "") {
			return usageError{errors.New(cmd.CommandPath() + " wants " + want + " (see " + cmd.CommandPath() + " --help)")}
		}
		return nil
	}
}
