package rest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"concord/admin/declarative"
	"concord/admin/service"
	"concord/fsm/schema"
)

// configRoutes are the whole configuration as one document. Kong has them without a database only.
func (a *API) configRoutes() {
	l := declarative.NewLayout(a.o.Service.Entities())
	a.router.add(http.MethodGet, "/config", func(c *call) (answer, error) { return a.dump(c, l) })
	a.router.add(http.MethodPost, "/config", func(c *call) (answer, error) { return a.load(c, l) })
}

// dump writes the configuration: Kong's {"config": "<YAML>"}, or the YAML itself for those who accept it.
func (a *API) dump(c *call, l *declarative.Layout) (answer, error) {
	pace := a.o.Service.NewPace()
	var text bytes.Buffer
	w := l.NewWriter(&text)
	tags, err := selectTags(c)
	if err != nil {
		return answer{}, err
	}
	index, err := a.o.Service.Export(c.r.Context(), tags, func(entity string, rec schema.Record) error {
		pace.Rest()
		return w.Add(entity, rec)
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return answer{}, err
	}
	if strings.Contains(c.r.Header.Get("Accept"), "yaml") {
		c.w.Header().Set("Content-Type", "application/yaml")
		return answer{status: http.StatusOK, body: inPortions(text.Bytes(), pace, func(b []byte) []byte { return b }), index: index}, nil
	}
	quoted := inPortions(text.Bytes(), pace, quote)
	return answer{status: http.StatusOK, body: stream{size: len(`{"config":""}`) + quoted.size, write: func(w io.Writer) error {
		_, _ = io.WriteString(w, `{"config":"`)
		_ = quoted.write(w)
		_, err := io.WriteString(w, `"}`) // an earlier error, too: the connection is gone
		return err
	}}, index: index}, nil
}

// inPortions sends text some kilobytes at a time, in another form, which is that of the portions in a row.
func inPortions(text []byte, pace *service.Pace, form func([]byte) []byte) stream {
	each := func(f func([]byte) error) error {
		for rest := text; len(rest) > 0; {
			pace.Rest()
			n := min(4<<10, len(rest))
			for n < len(rest) && !utf8.RuneStart(rest[n]) {
				n++
			}
			if err := f(form(rest[:n])); err != nil {
				return err
			}
			rest = rest[n:]
		}
		return nil
	}
	size := 0
	_ = each(func(b []byte) error { size += len(b); return nil })
	return stream{size: size, write: func(w io.Writer) error {
		return each(func(b []byte) error { _, err := w.Write(b); return err })
	}}
}

// quote is what stands between the quotes of a JSON string.
func quote(text []byte) []byte {
	b := encode(string(text))
	return b[1 : len(b)-1]
}

// selectTags are those of ?select_tags=a,b. An argument that says nothing, or cannot be read, is refused: the whole configuration would be meant instead.
func selectTags(c *call) ([]string, error) {
	args, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return nil, malformed("the arguments in the URL cannot be read: " + err.Error())
	}
	if !args.Has("select_tags") {
		return nil, nil
	}
	tags := strings.Split(strings.Join(args["select_tags"], ","), ",")
	if slices.Contains(tags, "") {
		return nil, malformed("select_tags names an empty tag: leave the argument out for the whole configuration")
	}
	return tags, nil
}

// flag is a query argument that is on when it is there and does not say no.
func flag(c *call, name string) bool {
	switch strings.ToLower(c.query(name)) {
	case "0", "false", "off", "no":
		return false
	}
	return c.r.URL.Query().Has(name)
}

// load makes the configuration what the document says.
func (a *API) load(c *call, l *declarative.Layout) (answer, error) {
	tags, err := selectTags(c)
	if err != nil {
		return answer{}, err
	}
	pace := a.o.Service.NewPace()
	tree, err := readConfig(c.w, c.r, pace)
	if err != nil {
		return answer{}, err
	}
	doc, form := l.RowsWith(tree, pace.Rest)
	b := service.Bulk{Rows: make([]service.Wanted, len(doc.Rows)), Hashed: !doc.Transform, SelectTags: append(doc.SelectTags, tags...),
		Pace: pace, Merge: c.query("mode") == "merge", DryRun: form != nil || flag(c, "dry_run"), Diff: flag(c, "diff")}
	b.Show = !b.Diff && !b.DryRun
	switch c.query("mode") {
	case "", "replace", "merge":
	default:
		return answer{}, malformed("mode must be replace or merge")
	}
	for i, r := range doc.Rows {
		b.Rows[i] = service.Wanted{Entity: r.Entity, Body: r.Body, Parent: r.Parent, Field: r.Field}
		doc.Rows[i].Body = nil
	}
	if err := b.Pack(); err != nil {
		return answer{}, err
	}
	res, err := a.o.Service.Apply(c.r.Context(), b)
	var wrong *service.BulkError
	if errors.As(err, &wrong) || form != nil {
		var rows map[int]schema.Errors
		if wrong != nil {
			rows = wrong.Rows
		}
		if flag(c, "flatten_errors") {
			flat, rest := l.Flat(doc, rows, form, func(i int) schema.Record { return b.Rows[i].Record() })
			return answer{}, invalidConfig(rest, flat)
		}
		return answer{}, invalidConfig(declarative.Merge(doc.Tree(rows), form), nil)
	}
	if err != nil {
		return answer{}, err
	}
	switch {
	case b.Diff || b.DryRun:
		return answer{status: http.StatusOK, body: summaryOf(res, b), index: res.Index}, nil
	case flag(c, "check_hash") && res.Created+res.Updated+res.Deleted == 0:
		return answer{status: http.StatusNotModified, index: res.Index}, nil
	}
	return answer{status: http.StatusCreated, body: entityMap(b.Rows, res, pace), index: res.Index}, nil
}

// summaryOf is the answer to ?diff and ?dry_run.
func summaryOf(res service.BulkResult, b service.Bulk) map[string]any {
	body := map[string]any{"dry_run": b.DryRun, "index": res.Index, "summary": map[string]any{
		"creating": res.Created, "updating": res.Updated, "deleting": res.Deleted, "unchanged": res.Unchanged}}
	if b.Diff {
		changes := res.Changes
		if changes == nil {
			changes = []service.BulkChange{}
		}
		body["changes"] = changes
	}
	return body
}

// idSize is how long a UUID is as text.
const idSize = 36

// entityMap is Kong's answer: by entity, by id. It is as large as the configuration, so it is never there as a whole.
func entityMap(rows []service.Wanted, res service.BulkResult, pace *service.Pace) stream {
	list := map[string][]int{}
	var order []string
	size := len("{}")
	for i, r := range rows {
		pace.Rest()
		if list[r.Entity] == nil {
			order = append(order, r.Entity)
			size += len(`"":{}`) + len(r.Entity)
		} else {
			size++
		}
		list[r.Entity] = append(list[r.Entity], i)
		size += len(`"":`) + idSize + len(res.Rows[i])
	}
	size += max(0, len(order)-1)
	return stream{size: size, write: func(w io.Writer) error {
		b := bufio.NewWriterSize(w, 16<<10)
		separate := func(n int) {
			if n > 0 {
				_ = b.WriteByte(',')
			}
		}
		_ = b.WriteByte('{')
		for n, entity := range order {
			separate(n)
			_, _ = fmt.Fprintf(b, "%q:{", entity)
			for k, i := range list[entity] {
				pace.Rest()
				separate(k)
				_, _ = b.WriteString(`"` + res.IDs[i].String() + `":`)
				_, _ = b.Write(res.Rows[i])
				res.Rows[i] = nil
			}
			_ = b.WriteByte('}')
		}
		_ = b.WriteByte('}')
		return b.Flush() // an earlier error, too
	}}
}

// configError is Kong's refusal of a document.
type configError struct {
	Code      int                     `json:"code"`
	Name      string                  `json:"name"`
	Message   string                  `json:"message"`
	Fields    schema.Errors           `json:"fields"`
	Flattened []declarative.FlatError `json:"flattened_errors,omitempty"`
}

func (e *configError) Error() string { return e.Message }

func invalidConfig(tree schema.Errors, flat []declarative.FlatError) error {
	return &configError{Code: 14, Name: "invalid declarative configuration", Message: declarative.Message(tree), Fields: tree, Flattened: flat}
}

// readConfig parses the document: the body itself, or its field "config".
func readConfig(w http.ResponseWriter, r *http.Request, pace *service.Pace) (schema.Record, error) {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	data, err := io.ReadAll(paced{http.MaxBytesReader(w, r.Body, declarative.MaxBytes), pace})
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &statusError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", declarative.MaxBytes), ""}
	case err != nil:
		return nil, malformed("the body ended early")
	}
	var fields []field
	switch kind {
	case "application/json", "application/yaml", "text/yaml", "application/x-yaml":
	case "application/x-www-form-urlencoded":
		fields, err = parseURLEncoded(string(data))
	case "multipart/form-data":
		fields, err = parseMultipart(r.Header.Get("Content-Type"), data)
	case "":
		if len(data) > 0 {
			return nil, &statusError{http.StatusUnsupportedMediaType, "the body has no Content-Type", "send Content-Type: application/json or application/yaml"}
		}
	default:
		return nil, &statusError{http.StatusUnsupportedMediaType, fmt.Sprintf("Content-Type %q is not understood", kind),
			"send application/json, application/yaml, or the text as field config of a form"}
	}
	if err != nil {
		return nil, err
	}
	if strings.Contains(kind, "form") {
		data = nil
		for _, f := range fields {
			if text, ok := f.value.(string); ok && f.name == "config" {
				data = []byte(text)
			}
		}
	}
	tree, err := parseConfig(data, pace)
	if text, boxed := tree["config"].(string); boxed && kind == "application/json" {
		return parseConfig([]byte(text), pace)
	}
	return tree, err
}

func parseConfig(text []byte, pace *service.Pace) (schema.Record, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, malformed("expected a declarative configuration")
	}
	tree, err := declarative.ReadWith(text, pace.Rest)
	if err != nil {
		return nil, invalidConfig(schema.Errors{"error": "failed parsing declarative configuration: " + err.Error()}, nil)
	}
	return tree, nil
}

// paced rests between two reads.
type paced struct {
	io.Reader
	pace *service.Pace
}

func (p paced) Read(b []byte) (int, error) {
	p.pace.Rest()
	return p.Reader.Read(b[:min(len(b), 64<<10)])
}
