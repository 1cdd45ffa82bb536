package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// row is an entity as the node shows it.
type row map[string]any

// label is the name by which people know the row; "" if it has none.
func (r row) label() string {
	for _, f := range []string{"name", "username", "custom_id", "target", "group"} {
		if s, _ := r[f].(string); s != "" {
			return s
		}
	}
	return ""
}

// columns are the fields that lists show, in this order; those that no row has are left out. Values that are credentials are not among them.
var columns = []string{
	"name", "username", "custom_id", "instance_name", "prefix", "kid", "group", "target", "weight", "protocol", "host", "port", "path", "protocols", "methods", "hosts", "paths",
	"snis", "algorithm", "service", "route", "consumer", "consumer_group", "upstream", "certificate", "set", "enabled", "tags", "id",
}

func getCmd(o *options) *cobra.Command {
	var s scope
	cmd := &cobra.Command{
		Use: "get ENTITY REF", Short: "Show one entity", Args: entityArgs(true),
		Long:    "Show one entity. ENTITY is a kind in the singular or plural, as in the URLs of the Admin API; REF is its name, key or id.",
		Example: "  gwctl get service my-api\n  gwctl get jwt user-issuer --consumer john -o yaml\n  gwctl get target 10.0.0.1:80 --upstream backend",
	}
	s = o.scopeFlags(cmd)
	cmd.ValidArgsFunction = o.completeEntities(s, true)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := o.place(cmd.Context(), args[0], s)
		if err != nil {
			return err
		}
		var r row
		if _, err := o.row(cmd.Context(), p, args[1], &r); err != nil {
			return err
		}
		return o.print(cmd.OutOrStdout(), r, func(w io.Writer) { printRow(w, r) })
	}
	return cmd
}

// row fetches one entity; that there is none is said in words.
func (o *options) row(ctx context.Context, p place, ref string, out *row) (reply, error) {
	path := p.item(ref)
	if p.name == "consumer_groups" {
		path += "?list_consumers=false" // there may be very many
	}
	said, err := o.send(ctx, request{method: "GET", path: path}, out)
	if inner, ok := (*out)[singular(p.name)].(map[string]any); ok && (*out)["id"] == nil {
		*out = inner // groups, and what is in them, are shown in a frame (Kong Enterprise)
	}
	var refused *refusedError
	if errors.As(err, &refused) && refused.status == 404 && (refused.message == "Not found" || refused.message == "") {
		refused.message = fmt.Sprintf("there is no %s %q", p.word(), ref)
	}
	out.plain()
	return said, err
}

// plain turns whole numbers into integers, which JSON does not tell apart.
func (r *row) plain() {
	if r != nil && *r != nil {
		*r = whole(map[string]any(*r)).(map[string]any)
	}
}

func whole(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = whole(v[k])
		}
	case []any:
		for i := range v {
			v[i] = whole(v[i])
		}
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v)
		}
	}
	return v
}

func listCmd(o *options) *cobra.Command {
	var s scope
	var tags string
	size, every := 100, false
	cmd := &cobra.Command{
		Use: "list ENTITY", Short: "List entities of a kind", Args: entityArgs(false),
		Long:    "List entities of a kind, or those that belong to something. The first page only, unless --all is given.",
		Example: "  gwctl list services\n  gwctl list routes --service my-api\n  gwctl list plugins --all --tags team-a -o json",
	}
	s = o.scopeFlags(cmd)
	cmd.Flags().StringVar(&tags, "tags", "", "only those with all these tags (a,b) or any of them (a/b)")
	cmd.Flags().IntVar(&size, "size", size, "how many to ask for at a time, 1 to 1000")
	cmd.Flags().BoolVar(&every, "all", false, "all of them, not only the first page")
	cmd.ValidArgsFunction = o.completeEntities(s, false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := o.place(cmd.Context(), args[0], s)
		if err != nil {
			return err
		}
		rows, more, err := o.rows(cmd, p, size, tags, every)
		if err != nil {
			return err
		}
		err = o.print(cmd.OutOrStdout(), rows, func(w io.Writer) { printRows(w, rows) })
		if more {
			fmt.Fprintf(cmd.ErrOrStderr(), "These are the first %d; --all shows the others too.\n", len(rows))
		}
		return err
	}
	return cmd
}

// rows fetches the first page of a collection, or every page.
func (o *options) rows(cmd *cobra.Command, p place, size int, tags string, every bool) (rows []row, more bool, err error) {
	progress := o.progress(cmd, "reading")
	defer progress.end()
	q := url.Values{"size": {strconv.Itoa(size)}}
	if cmd.Flags().Changed("tags") {
		q.Set("tags", tags)
	}
	rows = []row{}
	for {
		var page struct {
			Data   []row
			Offset string
		}
		if err := o.call(cmd.Context(), "GET", p.path+"?"+q.Encode(), nil, &page); err != nil {
			return nil, false, err
		}
		for _, r := range page.Data {
			r.plain()
			rows = append(rows, r)
		}
		if page.Offset == "" || !every {
			return rows, page.Offset != "", nil
		}
		q.Set("offset", page.Offset)
		progress.say("%d read", len(rows))
	}
}

func deleteCmd(o *options) *cobra.Command {
	var s scope
	yes := false
	cmd := &cobra.Command{
		Use: "delete ENTITY REF", Short: "Delete an entity and what belongs to it", Args: entityArgs(true),
		Long:    "Delete an entity. What belongs to it goes with it where Kong's does: the credentials of a consumer, the plugins of a route.",
		Example: "  gwctl delete route my-route\n  gwctl delete consumer john --yes\n  gwctl delete target 10.0.0.1:80 --upstream backend --yes --wait",
	}
	s = o.scopeFlags(cmd)
	wait := waitFlag(cmd)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.ValidArgsFunction = o.completeEntities(s, true)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := o.place(cmd.Context(), args[0], s)
		if err != nil {
			return err
		}
		var r row
		if _, err := o.row(cmd.Context(), p, args[1], &r); err != nil { // a DELETE of nothing is a success (Kong), and a typo should not be
			return err
		}
		if !yes {
			if err := confirm(cmd, fmt.Sprintf("Delete the %s %s (id %v)?", p.word(), args[1], r["id"])); err != nil {
				return err
			}
		}
		return o.write(cmd, *wait, request{method: "DELETE", path: p.item(args[1])}, nil, func() error {
			return o.done(cmd, "Deleted the %s %s", p.word(), args[1])
		})
	}
	return cmd
}

// confirm asks on the terminal. A script cannot answer: it says --yes.
func confirm(cmd *cobra.Command, question string) error {
	fmt.Fprint(cmd.ErrOrStderr(), question+" Type yes to go on: ")
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	switch answer := strings.ToLower(strings.TrimSpace(line)); {
	case answer == "yes" || answer == "y":
		return nil
	case err != nil && answer == "":
		fmt.Fprintln(cmd.ErrOrStderr())
		return usageError{errors.New("nobody answers: --yes goes on without asking")}
	}
	return errors.New("nothing was changed")
}

// printRow shows the fields that are set, the names first.
func printRow(w io.Writer, r row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	names := slices.SortedFunc(maps.Keys(r), func(a, b string) int {
		if c := rank(a) - rank(b); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	for _, n := range names {
		if r[n] != nil {
			fmt.Fprintf(t, "%s:\t%s\n", n, cell(r[n]))
		}
	}
	t.Flush()
}

// rank puts what identifies a row before its other fields, and what the gateway sets behind them.
func rank(field string) int {
	switch field {
	case "name", "username", "custom_id":
		return 0
	case "id", "created_at", "updated_at":
		return 2
	}
	return 1
}

func printRows(w io.Writer, rows []row) {
	if len(rows) == 0 {
		fmt.Fprintln(w, "There are none.")
		return
	}
	var shown []string
	for _, c := range columns {
		if slices.ContainsFunc(rows, func(r row) bool { return cell(r[c]) != "" }) {
			shown = append(shown, c)
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ToUpper(strings.Join(shown, "\t")))
	for _, r := range rows {
		line := make([]string, len(shown))
		for i, c := range shown {
			if line[i] = cell(r[c]); line[i] == "" {
				line[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(line, "\t"))
	}
	t.Flush()
}

// cell is a value on one line: a list with commas, a reference as the id.
func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		if strings.ContainsAny(v, "\n\t\r\x1b") { // a certificate; what a terminal would obey
			return strconv.Quote(v)
		}
		return v
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = cell(v[i])
		}
		return strings.Join(parts, ",")
	case map[string]any:
		if id, ok := v["id"].(string); ok && len(v) == 1 {
			return id
		}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}
