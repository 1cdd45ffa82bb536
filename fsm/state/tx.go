package state

import (
	"fmt"
	"slices"
	"strings"
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

// Tx is the one open write transaction of a store. It changes the writer's tables in place and remembers how to undo it.
type Tx struct {
	s     *Store
	work  []*table
	dirty []bool
	log   []write
	marks []mark
	read  int

	Yield func() // called after every few dozen rows; nil: never
}

// yieldEvery is how many rows are read or written between two calls of Yield, some 30 µs of work.
const yieldEvery = 8

func (tx *Tx) yield(n int) {
	if tx.Yield != nil && n%yieldEvery == yieldEvery-1 {
		tx.Yield()
	}
}

// write is one change of one row: old or new is 0 where there is none.
type write struct {
	slot     int
	id       ID
	old, new place
}

// Begin opens the write transaction; it waits for the one before. Every Begin needs a Commit or an Abort.
func (s *Store) Begin() *Tx {
	s.writer.Lock()
	return &Tx{s: s, work: s.work, dirty: make([]bool, len(s.work))}
}

func (tx *Tx) table(number uint16) (*table, bool) { return find(tx.work, number) }

func find(tables []*table, number uint16) (*table, bool) {
	i := slices.IndexFunc(tables, func(t *table) bool { return t.m.def.Table == number })
	if i < 0 {
		return nil, false
	}
	return tables[i], true
}

// Decoded is a row that is not in the store yet.
type Decoded struct {
	t   *table
	id  ID
	row []byte
}

// ID is the row's id.
func (d Decoded) ID() ID { return d.id }

// Table is the row's table number.
func (d Decoded) Table() uint16 { return d.t.m.def.Table }

// Decode checks a row and gives it the form that it has in the store. The error is a *RowError; it wraps a *seal.MissingKeyError when
// that is the reason. It may be called on several goroutines at once.
func (tx *Tx) Decode(table uint16, r AnyRow) (Decoded, error) {
	return decode(tx.work, table, r, false)
}

// Own is Decode for a row that the program made and that is known to be one: encoding/json does not look at it.
func (tx *Tx) Own(table uint16, r AnyRow) (Decoded, error) { return decode(tx.work, table, r, true) }

func decode(tables []*table, number uint16, r AnyRow, own bool) (Decoded, error) {
	t, ok := find(tables, number)
	if !ok {
		return Decoded{}, &RowError{Table: fmt.Sprintf("table %d", number), ID: r.ID, Err: fmt.Errorf("no such table")}
	}
	if r.ID.IsZero() {
		return Decoded{}, &RowError{Table: t.m.def.Schema.Name, ID: r.ID, Err: fmt.Errorf("the zero id is no row's")}
	}
	row, err := t.dict.encode(r, own)
	if err != nil {
		return Decoded{}, &RowError{Table: t.m.def.Schema.Name, ID: r.ID, Err: err}
	}
	return Decoded{t, r.ID, row}, nil
}

// Stored is a row as a transaction sees it.
type Stored struct {
	ID        ID
	Index     uint64
	ExpiresAt int64
	record
}

// Raw is the row's canonical JSON, secrets sealed.
func (r Stored) Raw() []byte { return r.appendRaw(nil) }

// Text is the text of a member that is a string; "" when there is none.
func (r Stored) Text(name string) string { return r.text(r.shape.position(name)) }

func stored(id ID, r record) Stored { return Stored{id, r.index, r.expires, r} }

// Get finds a row.
func (tx *Tx) Get(table uint16, id ID) (Stored, bool) {
	tx.read++
	tx.yield(tx.read)
	if t, ok := tx.table(table); ok {
		if at := t.get(t.m, &id); at != 0 {
			return stored(id, t.record(at)), true
		}
	}
	return Stored{}, false
}

// Conflict finds the first key of a row, in the order of the schema's indexes, that another row holds.
func (tx *Tx) Conflict(d Decoded) (c Conflict, found bool) {
	var r record
	d.t.dict.parse(d.row, &r)
	for i, ix := range d.t.m.indexes {
		if !ix.unique || found {
			continue
		}
		r.keys(i, func(key string) bool {
			if at := d.t.by(d.t.m, i, key, 0, new(record)); at != 0 && d.t.idAt(at) != d.id {
				c, found = Conflict{Index: ix.name, Key: strings.Clone(key), Existing: d.t.idAt(at)}, true
			}
			return !found
		})
	}
	return c, found
}

// Set writes a row over the one with the same id, if any. Conflict must have found nothing.
func (tx *Tx) Set(d Decoded) {
	tx.write(write{d.t.m.slot, d.id, d.t.get(d.t.m, &d.id), d.t.add(d.row)})
}

// Delete removes a row; false when there is none.
func (tx *Tx) Delete(table uint16, id ID) bool {
	t, ok := tx.table(table)
	if !ok {
		return false
	}
	at := t.get(t.m, &id)
	if at != 0 {
		tx.write(write{t.m.slot, id, at, 0})
	}
	return at != 0
}

func (tx *Tx) write(w write) {
	tx.log = append(tx.log, w)
	tx.yield(len(tx.log))
	tx.apply(w.slot, w.old, w.new)
}

func (tx *Tx) apply(slot int, old, next place) {
	tx.dirty[slot] = true
	t := tx.work[slot]
	if old == 0 || next == 0 || !t.swap(old, next) {
		if old != 0 {
			t.unlink(old)
		}
		if next != 0 {
			t.link(0, next)
		}
	}
	if next != 0 {
		tx.rehint(t, next)
	}
}

func (tx *Tx) rehint(t *table, at place) {
	t.rehint(at, func(slot int) { tx.dirty[slot] = true })
}

// Mark is a point to roll back to.
func (tx *Tx) Mark() int { return len(tx.log) }

// Rollback undoes what was written since the mark.
func (tx *Tx) Rollback(mark int) {
	for i := len(tx.log) - 1; i >= mark; i-- {
		w := &tx.log[i]
		tx.apply(w.slot, w.new, w.old)
	}
	tx.log = tx.log[:mark]
}

// Ref is the id in a foreign field of a row; ok is false when it is null.
func (tx *Tx) Ref(field string, r Stored) (id string, ok bool) {
	if ix := r.shape.m.index(field); ix >= 0 {
		id = r.text(r.shape.parts[ix][0])
	}
	return id, id != ""
}

// Referring lists the rows of the table whose foreign field holds id, by id.
func (tx *Tx) Referring(table uint16, field string, id ID) (list []Stored) {
	tx.read++
	tx.yield(tx.read)
	if t, ok := tx.table(table); ok {
		v := View{tables: make([]*content, len(tx.work))}
		v.tables[t.m.slot] = &t.content
		t.m.scan(&v, field, id.String(), ID{}, func(r *record) bool {
			list = append(list, stored(r.rowID(), *r))
			return true
		})
	}
	return list
}

// NextExpired is the first row of the table, in the order of expiry and id, that expires after the row (at, id) and
// before the limit (Unix milliseconds).
func (tx *Tx) NextExpired(table uint16, at int64, id ID, before int64) (Stored, bool) {
	t, ok := tx.table(table)
	if !ok {
		return Stored{}, false
	}
	after := point{headOfTime(at), id}
	k := t.trees[byExpiry].seek(&t.content, &after)
	it := k.next()
	if it != nil && it.head() == after.head && t.idAt(it.at) == id {
		it = k.next()
	}
	if it == nil || it.head() >= headOfTime(before) {
		return Stored{}, false
	}
	return stored(t.idAt(it.at), t.record(it.at)), true
}

// Commit publishes what was written as the view of the log index, with aux attached to it, and tells the subscribers.
func (tx *Tx) Commit(index uint64, aux any) {
	s := tx.s
	defer s.writer.Unlock()
	subs, follows := s.subscribers(), s.followers()
	c := Changes{Index: index}
	written := tx.written(follows) // before compact moves rows
	if len(subs) > 0 {
		c.List = tx.changes()
	}
	for i, t := range tx.work {
		if tx.dirty[i] {
			t.compact(func(at place) { tx.rehint(t, at) })
		}
	}
	s.view.Store(&View{index: index, aux: aux, tables: s.publish(s.View().tables, tx.dirty)})
	for _, sub := range subs {
		sub.f(c)
	}
	for i, f := range follows {
		f.f(History{Index: index, Writes: written[i]})
	}
}

// Abort undoes everything and closes the transaction.
func (tx *Tx) Abort() {
	tx.Rollback(0)
	tx.s.writer.Unlock()
}

// Written calls f with the net effect on each row since the mark, in the order in which the rows were first touched: the row's JSON
// before and after, nil for none. f must not keep them.
func (tx *Tx) Written(mark int, f func(table uint16, id ID, before, after []byte)) {
	var bufs [2][]byte
	for _, w := range tx.net(mark, len(tx.log)) {
		if w.old == w.new {
			continue
		}
		t := tx.work[w.slot]
		raw := func(buf *[]byte, at place) []byte {
			if at == 0 {
				return nil
			}
			r := t.record(at)
			*buf = r.appendRaw((*buf)[:0])
			return *buf
		}
		f(t.m.def.Table, w.id, raw(&bufs[0], w.old), raw(&bufs[1], w.new))
	}
}

// changes is the net effect of the log on each row, in the order in which the rows were first touched.
func (tx *Tx) changes() []Change {
	net := tx.net(0, len(tx.log))
	list := make([]Change, 0, len(net))
	for i, w := range net {
		tx.yield(i)
		if t := tx.work[w.slot]; w.old != w.new && !t.m.def.Journal { // not both 0: a row that came and went within the batch
			list = append(list, Change{Table: t.m.def.Table, ID: w.id, Old: t.value(w.old), New: t.value(w.new)})
		}
	}
	return list
}

// few is the number of writes up to which looking through a list is quicker than a map.
const few = 8

// net is a part of the log with one write for each row.
func (tx *Tx) net(from, to int) []write {
	log := tx.log[from:to]
	if len(log) <= few {
		net := make([]write, 0, few)
		for _, w := range log {
			if i := slices.IndexFunc(net, func(n write) bool { return n.slot == w.slot && n.id == w.id }); i >= 0 {
				net[i].new = w.new
			} else {
				net = append(net, w)
			}
		}
		return net
	}
	type key struct {
		slot int
		id   ID
	}
	at := make(map[key]int, len(log))
	net := make([]write, 0, len(log))
	for i, w := range log {
		tx.yield(i)
		k := key{w.slot, w.id}
		if n, ok := at[k]; ok {
			net[n].new = w.new
			continue
		}
		at[k] = len(net)
		net = append(net, w)
	}
	return net
}

// value is a *T of the row at a place, nil for none.
func (t *table) value(at place) any {
	if at == 0 {
		return nil
	}
	r := t.record(at)
	return t.dict.decode(&r).Interface()
}
