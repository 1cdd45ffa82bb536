package state

import (
	"encoding/json"
	"fmt"
	"reflect"
	"unsafe"

	"github.com/tidwall/btree"
)

// RowError says why bytes are no row of the table.
type RowError struct {
	Table string
	ID    ID
	Err   error
}

func (e *RowError) Error() string { return fmt.Sprintf("%s %s: %v", e.Table, e.ID, e.Err) }
func (e *RowError) Unwrap() error { return e.Err }

// Conflict is a key of a unique index that another row holds.
type Conflict struct {
	Index    string
	Key      string
	Existing ID
}

// Tx is the one open write transaction of a store. It changes the writer's trees in place and remembers how to undo it.
type Tx struct {
	s     *Store
	work  []*trees
	dirty []bool
	log   []write
	reset bool
}

// write is one change of one row: old or new is nil where there is none.
type write struct {
	m        *meta
	old, new *row
}

// Begin opens the write transaction; it waits for the one before. Every Begin needs a Commit or an Abort.
func (s *Store) Begin() *Tx {
	s.writer.Lock()
	return &Tx{s: s, work: s.work, dirty: make([]bool, len(s.work))}
}

// BeginEmpty opens a write transaction that sees no rows; its commit replaces everything.
func (s *Store) BeginEmpty() *Tx {
	s.writer.Lock()
	return &Tx{s: s, work: s.empty(), dirty: make([]bool, len(s.work)), reset: true}
}

func (tx *Tx) meta(table uint16) (*meta, bool) {
	for _, m := range tx.s.metas {
		if m.def.Table == table {
			return m, true
		}
	}
	return nil, false
}

// Decoded is a row that is not in the store yet.
type Decoded struct {
	m *meta
	r *row
}

// ID is the row's id.
func (d Decoded) ID() ID { return d.r.ID }

// Table is the row's table number.
func (d Decoded) Table() uint16 { return d.m.def.Table }

// Decode unseals and decodes a row. The error is a *RowError; it wraps a *seal.MissingKeyError when that is the reason.
// It may be called on several goroutines at once.
func (tx *Tx) Decode(table uint16, r AnyRow) (Decoded, error) {
	m, ok := tx.meta(table)
	if !ok {
		return Decoded{}, &RowError{Table: fmt.Sprintf("table %d", table), ID: r.ID, Err: fmt.Errorf("no such table")}
	}
	fail := func(err error) (Decoded, error) {
		return Decoded{}, &RowError{Table: m.def.Schema.Name, ID: r.ID, Err: err}
	}
	if r.ID.IsZero() {
		return fail(fmt.Errorf("the zero id is no row's"))
	}
	clear, err := tx.s.Keys().Open(table, r.ID, r.Raw)
	if err != nil {
		return fail(err)
	}
	val := reflect.New(m.typ)
	if err := json.Unmarshal(clear, val.Interface()); err != nil {
		return fail(err)
	}
	if m.id.field != nil {
		if text, ok := m.id.text(val.Elem()); ok {
			if id, err := ParseID(text); err != nil || id != r.ID {
				return fail(fmt.Errorf("field id: is %q, the row's is %s", text, r.ID))
			}
		}
	}
	return Decoded{m, &row{ID: r.ID, Index: r.Index, ExpiresAt: r.ExpiresAt, Raw: r.Raw, Val: (*opaque)(val.UnsafePointer())}}, nil
}

// Get finds a row as the transaction sees it.
func (tx *Tx) Get(table uint16, id ID) (AnyRow, bool) {
	if m, ok := tx.meta(table); ok {
		if e, ok := tx.work[m.slot].rows.Get(entry{id: id}); ok {
			return m.anyOf(e.row), true
		}
	}
	return AnyRow{}, false
}

// Conflict finds the first key of a row, in the order of the schema's indexes, that another row holds.
func (tx *Tx) Conflict(d Decoded) (c Conflict, found bool) {
	v := reflect.NewAt(d.m.typ, unsafe.Pointer(d.r.Val)).Elem()
	for i := range d.m.indexes {
		ix := &d.m.indexes[i]
		if !ix.unique {
			continue
		}
		ix.keys(v, func(key string) bool {
			if it, ok := tx.work[d.m.slot].indexes[i].Get(newItem(key, nil)); ok && it.row.ID != d.r.ID {
				c, found = Conflict{Index: ix.name, Key: key, Existing: it.row.ID}, true
			}
			return !found
		})
		if found {
			return c, true
		}
	}
	return Conflict{}, false
}

// Set writes a row over the one with the same id, if any. Conflict must have found nothing.
func (tx *Tx) Set(d Decoded) {
	e, _ := tx.work[d.m.slot].rows.Get(entry{id: d.r.ID})
	tx.write(write{d.m, e.row, d.r})
}

// Delete removes a row; false when there is none.
func (tx *Tx) Delete(table uint16, id ID) bool {
	m, ok := tx.meta(table)
	if !ok {
		return false
	}
	e, ok := tx.work[m.slot].rows.Get(entry{id: id})
	if ok {
		tx.write(write{m, e.row, nil})
	}
	return ok
}

func (tx *Tx) write(w write) {
	if !tx.reset { // a fresh store is not rolled back and reports no single changes
		tx.log = append(tx.log, w)
	}
	tx.apply(w)
}

func (tx *Tx) apply(w write) {
	tx.dirty[w.m.slot] = true
	t := tx.work[w.m.slot]
	if w.old != nil {
		t.drop(w.m, w.old)
	}
	if w.new != nil {
		t.add(w.m, w.new)
	}
}

func (t *trees) drop(m *meta, r *row) {
	t.rows.Delete(entry{id: r.ID})
	if r.ExpiresAt != 0 {
		t.expiry.Delete(deadline{at: r.ExpiresAt, id: r.ID})
	}
	t.each(m, r, func(x *btree.BTreeG[item], it item) { x.Delete(it) })
}

func (t *trees) add(m *meta, r *row) {
	t.rows.Set(entry{r.ID, r})
	if r.ExpiresAt != 0 {
		t.expiry.Set(deadline{r.ExpiresAt, r.ID, r})
	}
	t.each(m, r, func(x *btree.BTreeG[item], it item) { x.Set(it) })
}

func (t *trees) each(m *meta, r *row, f func(*btree.BTreeG[item], item)) {
	v := reflect.NewAt(m.typ, unsafe.Pointer(r.Val)).Elem()
	for i := range m.indexes {
		m.indexes[i].keys(v, func(key string) bool {
			f(t.indexes[i], newItem(key, r))
			return true
		})
	}
}

// Mark is a point to roll back to.
func (tx *Tx) Mark() int { return len(tx.log) }

// Rollback undoes what was written since the mark.
func (tx *Tx) Rollback(mark int) {
	for i := len(tx.log) - 1; i >= mark; i-- {
		w := tx.log[i]
		tx.apply(write{w.m, w.new, w.old})
	}
	clear(tx.log[mark:])
	tx.log = tx.log[:mark]
}

// Ref is the id in a foreign field of a row of the table; ok is false when it is null.
func (tx *Tx) Ref(table uint16, field string, r AnyRow) (id string, ok bool) {
	if m, found := tx.meta(table); found {
		for i := range m.indexes {
			if ix := &m.indexes[i]; ix.name == field && len(ix.parts) == 1 {
				return ix.parts[0].text(reflect.ValueOf(r.Val).Elem())
			}
		}
	}
	return "", false
}

// Referring lists the rows of the table whose foreign field holds id, by id.
func (tx *Tx) Referring(table uint16, field string, id ID) []AnyRow {
	var list []AnyRow
	if m, ok := tx.meta(table); ok {
		v := View{tables: tx.work}
		m.scan(&v, field, id.String(), ID{}, func(r *row) bool { list = append(list, m.anyOf(r)); return true })
	}
	return list
}

// NextExpired is the first row of the table, in the order of expiry and id, that expires after the row (at, id) and
// before the limit (Unix milliseconds).
func (tx *Tx) NextExpired(table uint16, at int64, id ID, before int64) (r AnyRow, found bool) {
	if m, ok := tx.meta(table); ok {
		tx.work[m.slot].expiry.Ascend(deadline{at: at, id: id}, func(d deadline) bool {
			if d.at == at && d.id == id {
				return true
			}
			if d.at < before {
				r, found = m.anyOf(d.row), true
			}
			return false
		})
	}
	return r, found
}

// Commit publishes what was written as the view of the log index, with aux attached to it, and tells the subscribers.
func (tx *Tx) Commit(index uint64, aux any) {
	s := tx.s
	defer s.writer.Unlock()
	var prev []*trees
	if !tx.reset {
		prev = s.View().tables
	}
	s.work = tx.work
	s.view.Store(&View{index: index, aux: aux, tables: s.publish(prev, tx.dirty)})
	c := Changes{Index: index, Reset: tx.reset}
	if !tx.reset {
		c.List = tx.changes()
	}
	for _, sub := range s.subscribers() {
		sub.f(c)
	}
}

// Abort undoes everything and closes the transaction.
func (tx *Tx) Abort() {
	tx.Rollback(0)
	tx.s.writer.Unlock()
}

// changes is the net effect of the log on each row, in the order in which the rows were first touched.
func (tx *Tx) changes() []Change {
	type key struct {
		slot int
		id   ID
	}
	at := make(map[key]int, len(tx.log))
	net := make([]write, 0, len(tx.log))
	for _, w := range tx.log {
		k := key{w.m.slot, w.id()}
		if i, ok := at[k]; ok {
			net[i].new = w.new
			continue
		}
		at[k] = len(net)
		net = append(net, w)
	}
	list := make([]Change, 0, len(net))
	for _, w := range net {
		if w.old != w.new { // not both nil: a row that came and went within the batch
			list = append(list, Change{Table: w.m.def.Table, ID: w.id(), Old: w.m.value(w.old), New: w.m.value(w.new)})
		}
	}
	return list
}

func (w write) id() ID {
	if w.new != nil {
		return w.new.ID
	}
	return w.old.ID
}
