package service

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"concord/cluster"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// Kong's page sizes, and its limit on the tags of a query.
const (
	defaultSize = 100
	maxSize     = 1000
	maxTags     = 5
)

// readIndexTimeout bounds how long the look-up of a token or its rights waits for the leader before it is made in what this node has.
const readIndexTimeout = time.Second

// ListOptions are the query options of a listing as the client wrote them.
type ListOptions struct {
	Size   string // "" : 100
	Offset string
	Tags   *string           // "a,b" all, "a/b" any
	Filter map[string]string // unique field → value, of those in Def.Filters
}

// Page is one page of a listing.
type Page struct {
	Index  uint64
	Rows   [][]byte // entities as JSON with secrets in clear
	Tags   []string // the entity tags of Rows
	Offset string   // token of the next page, "" on the last
}

// Get reads one entity.
func (s *Service) Get(ctx context.Context, t Target) (Result, error) {
	table, ok := s.tables[t.Entity]
	if !ok {
		return Result{}, notFound()
	}
	l, err := s.reader(ctx)
	if err == nil {
		err = l.grant.reads(table.Def())
	}
	if err != nil {
		return Result{}, err
	}
	p, err := l.place(t, "")
	switch {
	case err != nil:
	case !p.found:
		err = l.absent(table, t.Ref)
	default:
		err = errors.Join(l.enters(t, p), l.reachable(table, p.row))
	}
	if err != nil {
		return Result{}, l.grant.tell(err)
	}
	row, refusal := l.show(table, p.row)
	if refusal != nil {
		return Result{}, refusal
	}
	return Result{Index: l.view.Index(), Row: row, Tag: l.tag(table, p.row)}, nil
}

// List reads one page of a collection in the order of the ids, or the newest first.
func (s *Service) List(ctx context.Context, t Target, o ListOptions) (Page, error) {
	table, ok := s.tables[t.Entity]
	if !ok {
		return Page{}, notFound()
	}
	newest := table.Def().NewestFirst && t.Parent != nil
	skip := 0
	if newest && o.Offset != "" {
		var err error
		if skip, err = positionOffset(o.Offset); err != nil {
			return Page{}, err
		}
		o.Offset = ""
	}
	q, err := parseQuery(o)
	if err != nil {
		return Page{}, err
	}
	l, err := s.reader(ctx)
	if err == nil {
		err = l.grant.reads(table.Def())
	}
	if err != nil {
		return Page{}, err
	}
	p, err := l.place(t, "")
	if err == nil {
		err = l.enters(t, p)
	}
	if err != nil {
		return Page{}, l.grant.tell(err)
	}
	size := q.size
	if newest {
		q.size = math.MaxInt - 1 // all of them are needed to know which are the newest
	}
	rows := l.within(table, l.rows(table, t, p, q))
	if newest {
		rows = newestFirst(rows, skip)
	}
	page := Page{Index: l.view.Index()}
	var last state.ID
	for row := range rows {
		if len(page.Rows) == size {
			if page.Offset = offsetToken(last); newest {
				page.Offset = positionToken(skip + size)
			}
			break
		}
		text, refusal := l.show(table, row)
		if refusal != nil {
			return Page{}, refusal
		}
		page.Rows, page.Tags = append(page.Rows, text), append(page.Tags, l.tag(table, row))
		last = row.ID
	}
	return page, nil
}

// newestFirst sorts by created_at and leaves the first ones out.
func newestFirst(rows iter.Seq[state.AnyRow], skip int) iter.Seq[state.AnyRow] {
	type dated struct {
		at  float64
		row state.AnyRow
	}
	var list []dated
	for row := range rows {
		var rec struct {
			At float64 `json:"created_at"`
		}
		_ = json.Unmarshal(row.Raw, &rec) // a stored row
		list = append(list, dated{rec.At, row})
	}
	slices.SortFunc(list, func(a, b dated) int { return cmp.Or(cmp.Compare(b.at, a.at), bytes.Compare(b.row.ID[:], a.row.ID[:])) })
	return func(yield func(state.AnyRow) bool) {
		for _, d := range list[min(skip, len(list)):] {
			if !yield(d.row) {
				return
			}
		}
	}
}

// rows selects the rows of a listing behind q.after, by id.
func (l lookup) rows(table state.AnyTable, t Target, p place, q query) iter.Seq[state.AnyRow] {
	for field, value := range q.filter {
		return func(yield func(state.AnyRow) bool) {
			if row, ok := table.By(l.view, field, value); ok {
				yield(row)
			}
		}
	}
	index, key := "", ""
	if t.Parent != nil {
		index, key = t.Parent.Field, p.parent.ID.String()
	}
	if len(q.tags) == 0 && len(l.grant.tags) == 1 && table.Def().HasTags() {
		q.tags = l.grant.tags // by their index: there may be many rows that are out of reach
	}
	if len(q.tags) == 0 {
		return table.Scan(l.view, index, key, q.after)
	}
	tagged := l.tagged(table, q)
	if t.Parent == nil {
		return tagged
	}
	return func(yield func(state.AnyRow) bool) {
		for row := range tagged {
			if foreignID(row, index) == key && !yield(row) {
				return
			}
		}
	}
}

// tagged yields the rows with all (or any) of the tags, by id.
func (l lookup) tagged(table state.AnyTable, q query) iter.Seq[state.AnyRow] {
	if !q.anyTag {
		return func(yield func(state.AnyRow) bool) {
			for row := range table.Scan(l.view, "tags", q.tags[0], q.after) {
				have := tagsOf(row)
				if !slices.ContainsFunc(q.tags, func(t string) bool { return !slices.Contains(have, t) }) && !yield(row) {
					return
				}
			}
		}
	}
	return func(yield func(state.AnyRow) bool) {
		// The next size+1 rows of the union are among the next size+1 of each tag.
		var rows []state.AnyRow
		for _, tag := range q.tags {
			n := 0
			for row := range table.Scan(l.view, "tags", tag, q.after) {
				rows = append(rows, row)
				if n++; n > q.size {
					break
				}
			}
		}
		slices.SortFunc(rows, func(a, b state.AnyRow) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		for i, row := range rows {
			if (i == 0 || rows[i-1].ID != row.ID) && !yield(row) {
				return
			}
		}
	}
}

// Tagging is one tag of one entity.
type Tagging struct {
	Tag    string `json:"tag"`
	Entity string `json:"entity_name"`
	ID     string `json:"entity_id"`
}

// Tags lists the tags of all entities, or with tag not "" the entities that have it, one page.
func (s *Service) Tags(ctx context.Context, tag string, o ListOptions) ([]Tagging, string, error) {
	q, err := parseQuery(ListOptions{Size: o.Size})
	if err != nil {
		return nil, "", err
	}
	skip := 0
	if o.Offset != "" {
		if skip, err = positionOffset(o.Offset); err != nil {
			return nil, "", err
		}
	}
	l, err := s.reader(ctx)
	if err != nil {
		return nil, "", err
	}
	out := []Tagging{}
	at := 0
	for _, table := range s.store.Tables() {
		if !table.Def().HasTags() || table.Def().Schema.Internal || l.grant.reads(table.Def()) != nil {
			continue
		}
		index := ""
		if tag != "" {
			index = "tags"
		}
		for row := range l.within(table, table.Scan(l.view, index, tag, state.ID{})) {
			for _, t := range tagsOf(row) {
				if tag != "" && t != tag {
					continue
				}
				if at++; at <= skip {
					continue
				}
				if len(out) == q.size {
					return out, positionToken(at - 1), nil
				}
				out = append(out, Tagging{t, table.Name(), row.ID.String()})
			}
		}
	}
	return out, "", nil
}

// positionToken is the offset of lists that are not in the order of ids: how many rows come before.
func positionToken(n int) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "[%d]", n))
}

func positionOffset(token string) (int, error) {
	raw, refusal := decodeOffset(token)
	if refusal != nil {
		return 0, refusal
	}
	var at []int
	if json.Unmarshal(raw, &at) != nil || len(at) != 1 || at[0] < 0 {
		return 0, invalidOffset(token, "bad json encoding")
	}
	return at[0], nil
}

// query is ListOptions understood.
type query struct {
	size   int
	after  state.ID
	tags   []string
	anyTag bool
	filter map[string]string
}

func parseQuery(o ListOptions) (query, error) {
	q := query{size: defaultSize, filter: o.Filter}
	if o.Size != "" {
		n, err := strconv.ParseFloat(o.Size, 64)
		if err != nil || n != n {
			return q, refuse(InvalidSize, nil, "size must be a number")
		}
		if n < 1 || n > maxSize || n != float64(int(n)) {
			return q, refuse(InvalidSize, nil, "size must be an integer between 1 and %d", maxSize)
		}
		q.size = int(n)
	}
	if o.Offset != "" {
		raw, refusal := decodeOffset(o.Offset)
		if refusal != nil {
			return q, refusal
		}
		var keys []string
		if json.Unmarshal(raw, &keys) != nil || len(keys) != 1 {
			return q, invalidOffset(o.Offset, "bad json encoding")
		}
		id, err := state.ParseID(keys[0])
		if err != nil {
			return q, invalidOffset(o.Offset, err.Error())
		}
		q.after = id
	}
	if o.Tags != nil {
		if err := q.parseTags(*o.Tags); err != nil {
			return q, err
		}
	}
	return q, nil
}

func (q *query) parseTags(text string) error {
	bad := func(why string) error {
		e := refuse(InvalidOptions, nil, "invalid option (tags: %s)", why)
		e.Options = map[string]any{"tags": why}
		return e
	}
	if text == "" {
		return bad("cannot be null")
	}
	and, or := strings.Contains(text, ","), strings.Contains(text, "/")
	switch {
	case and && or, !utf8.ValidString(text):
		return bad("invalid filter syntax")
	case or:
		q.tags, q.anyTag = strings.Split(text, "/"), true
	default:
		q.tags = strings.Split(text, ",")
	}
	if len(q.tags) > maxTags {
		return bad(fmt.Sprintf("cannot query more than %d tags", maxTags))
	}
	for _, t := range q.tags {
		if t == "" {
			return bad("invalid filter syntax")
		}
		if strings.ContainsFunc(t, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return bad("must only contain printable ascii (except `,` and `/`) or valid utf-8")
		}
	}
	return nil
}

func offsetToken(id state.ID) string {
	return base64.RawURLEncoding.EncodeToString([]byte(`["` + id.String() + `"]`))
}

func decodeOffset(token string) ([]byte, error) {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(token), "="))
	if err != nil {
		return nil, invalidOffset(token, "bad base64 encoding")
	}
	return raw, nil
}

func invalidOffset(token, why string) error {
	return refuse(InvalidOffset, nil, "'%s' is not a valid offset: %s", token, why)
}

func tagsOf(row state.AnyRow) []string {
	var rec struct {
		Tags []string `json:"tags"`
	}
	_ = json.Unmarshal(row.Raw, &rec)
	return rec.Tags
}

// record is a stored row as a record with secrets in clear.
func (s *Service) record(table state.AnyTable, row state.AnyRow) (schema.Record, error) {
	clear, err := s.o.Machine.Keys().Open(table.Number(), row.ID, row.Raw)
	if err != nil {
		return nil, err
	}
	return schema.Decode(clear)
}

// show is a stored row as clients see it.
func (l lookup) show(table state.AnyTable, row state.AnyRow) ([]byte, *Error) {
	clear, err := l.s.o.Machine.Keys().Open(table.Number(), row.ID, row.Raw)
	if err != nil {
		return nil, asError(err)
	}
	var members *membership
	if table.Def().Members != nil {
		members = &membership{names: l.memberNames(table, row.ID)}
	}
	return shown(table.Def(), l.s.present(table.Def(), l.grant.redact(l.s, table.Def(), clear)), row.ExpiresAt, time.Now(), members), nil
}

// present adds to a plugin's row the deprecated names of settings, which clients still read.
func (s *Service) present(def entity.Def, row []byte) []byte {
	if def.Schema.SubKey == "" || def.Schema.Subs != nil {
		return row
	}
	rec, err := schema.Decode(row)
	if err != nil {
		return row
	}
	text, err := schema.Encode(def.Schema.Present(rec, s.o.Plugins))
	if err != nil {
		return row
	}
	return text
}

// shown adds to a row what is not stored in it: its members, and for entities that may expire the remaining seconds, null
// when they never do (Kong).
func shown(def entity.Def, row []byte, expires int64, now time.Time, members *membership) []byte {
	add := func(name string, v []byte) {
		row = slices.Concat(row[:len(row)-1], []byte(`,"`+name+`":`), v, []byte("}"))
	}
	if members != nil {
		names, _ := json.Marshal(members.names) // texts
		add(def.Members.Field, names)
	}
	switch {
	case !def.Schema.TTL:
	case expires == 0:
		add("ttl", []byte("null"))
	default:
		// Whole seconds that are still to come: one of 300 is answered as 299, as Kong does (clients check that it has begun to run).
		add("ttl", strconv.AppendInt(nil, max(0, (expires-1-now.UnixMilli())/1000), 10))
	}
	return row
}

// Index is the log index this node's entities reflect.
func (s *Service) Index() uint64 { return s.store.View().Index() }

// fresh is a view that holds every write answered by any node before the call, if that can be had quickly.
func (s *Service) fresh(ctx context.Context) *state.View {
	ctx, cancel := context.WithTimeout(ctx, readIndexTimeout)
	defer cancel()
	if index, err := s.o.Log.ReadIndex(ctx); err == nil {
		_ = s.o.Log.Wait(ctx, index)
	}
	return s.store.View().At(time.Now().UnixMilli())
}

// WaitIndex returns once this node holds and serves index. The log answers for an index that does not exist at once, and
// bounds how many wait, so that the wish is no lever for a denial of service.
func (s *Service) WaitIndex(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.MinIndexTimeout)
	defer cancel()
	err := s.o.Log.Wait(ctx, index)
	if err == nil && s.o.Published != nil {
		err = s.o.Published(ctx, index)
	}
	var ahead *cluster.FutureIndexError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ahead):
		return &Error{Kind: IndexAhead, Message: ahead.Error()}
	}
	return &Error{Kind: Unavailable, Message: fmt.Sprintf("this node is at index %d and did not serve %d in time: %v", s.Index(), index, err)}
}
