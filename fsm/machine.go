// Package fsm is the replicated state machine: it applies the entries of the log to the store, in order, the same way on every node.
//
// It re-checks what only the order of the log can decide (compare-and-set, unique keys, references, cascades) and nothing else:
// rows were validated before they were proposed. It has no clock, no randomness and no dependence on map order, does no
// network or disk I/O, and knows neither raft nor HTTP. DESIGN.md tells more.
package fsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/seal"
	"concord/fsm/state"
)

// MaxLevel is the highest cluster level this binary understands; clusters begin at level 1. Level 2 has transactions in pieces, admin tokens and the audit log,
// level 3 groups of consumers and what entity.SharedLevel says, level 4 what command.AuditLevel says.
const MaxLevel uint32 = 4

// MaxRow is the largest row in bytes.
const MaxRow = 16 << 20

// Options of a Machine.
type Options struct {
	Defs []entity.Def
	Keys *seal.Keyring
	// Yield is called now and then in the middle of an entry with many rows, so that requests get their share of the processors; it must
	// not use the machine. nil: entries are applied as fast as can be.
	Yield func()
}

// Machine applies commands. One goroutine at a time applies, restores or resets; everything else may be called at any time.
type Machine struct {
	store  *state.Store
	recent recent
	yield  func()

	names    map[uint16]string
	refs     map[uint16][]reference // by the table that refers
	referrer map[uint16][]reference // by the table referred to
	expiring []uint16               // tables whose rows may expire

	kept uint64 // auditKept, but in tests

	mu     sync.Mutex // held while applying
	chain  chain
	causes map[string]Cause // decoded
	fatal  error
}

// reference is a foreign field. The lists of them are in the order of table numbers and schema fields.
type reference struct {
	table    uint16
	field    string
	ref      string // name of the table referred to
	to       uint16
	exists   bool // there is such a table
	onDelete schema.RefAction
}

// Entry is one entry of the log. Data is made by command.Encode.
type Entry struct {
	Index uint64
	Data  []byte
}

// Result of one entry. With Err set the entry changed nothing.
type Result struct {
	Index uint64 // of the entry; of the first one for a repeated request id
	Err   error
	Keys  []Key // rows written: those of the puts, then those reached by cascades
}

// aux is the machine's own part of a committed state; it travels with the view so that a snapshot is of one moment.
type aux struct {
	level      uint32
	leaderTime int64
	recent     remembered
	stages     []stage // oldest first
}

// New makes an empty machine. Like state.New it panics on definitions that contradict each other.
func New(o Options) *Machine {
	m := &Machine{
		store: state.New(o.Defs, o.Keys), kept: auditKept, causes: map[string]Cause{}, yield: o.Yield,
		names: map[uint16]string{}, refs: map[uint16][]reference{}, referrer: map[uint16][]reference{},
	}
	for _, t := range m.store.Tables() {
		m.names[t.Number()] = t.Name()
		if t.Def().Schema.TTL {
			m.expiring = append(m.expiring, t.Number())
		}
		for _, f := range t.Def().Schema.Fields {
			if f.Type != schema.Foreign {
				continue
			}
			r := reference{table: t.Number(), field: f.Name, ref: f.Ref, onDelete: f.OnDelete}
			if to, ok := m.store.Table(f.Ref); ok {
				r.to, r.exists = to.Number(), true
				m.referrer[r.to] = append(m.referrer[r.to], r)
			}
			m.refs[t.Number()] = append(m.refs[t.Number()], r)
		}
	}
	m.Reset()
	return m
}

// Store is where the machine's state is read.
func (m *Machine) Store() *state.Store { return m.store }

// Keys is the keyring the machine opens rows with.
func (m *Machine) Keys() *seal.Keyring { return m.store.Keys() }

func auxOf(v *state.View) aux {
	a, _ := v.Aux().(aux)
	return a
}

// Level is the level of the cluster.
func (m *Machine) Level() uint32 { return auxOf(m.store.View()).level }

// LeaderTime is the highest proposer's time applied so far, in Unix milliseconds.
func (m *Machine) LeaderTime() int64 { return auxOf(m.store.View()).leaderTime }

// Remembered finds the result of a request that succeeded. Failed requests changed nothing and are not remembered: when they come
// again they are judged again. Of a result only the first 16 keys are kept.
func (m *Machine) Remembered(requestID [16]byte) (Result, bool) { return m.recent.get(requestID) }

// Fatal is the error that ended the machine, if any.
func (m *Machine) Fatal() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fatal
}

// Reset empties the machine, for a node that joins a cluster and forgets its own state.
func (m *Machine) Reset() { m.ResetKeys(m.Keys()) }

// ResetKeys is Reset for a node that goes on with the keyring of another cluster.
func (m *Machine) ResetKeys(keys *seal.Keyring) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.replace(m.store.BeginLoad(keys), 0, aux{level: 1})
}

// replace commits a fresh store.
func (m *Machine) replace(l *state.Load, index uint64, a aux) {
	m.recent.reset(a.recent)
	a.recent = m.recent.snapshot()
	m.fatal, m.chain = nil, chain{}
	l.Commit(index, a)
}

// ApplyAll applies entries in order and commits them as one new view. Each entry is applied whole or not at all; one that fails
// leaves the others alone, except for a *FatalError, which stops the machine.
func (m *Machine) ApplyAll(entries []Entry) []Result {
	m.mu.Lock()
	defer m.mu.Unlock()
	results := make([]Result, len(entries))
	view := m.store.View()
	last, a := view.Index(), auxOf(view)
	tx := m.store.Begin()
	tx.Yield = m.yield
	for i, e := range entries {
		results[i].Index = e.Index
		if m.fatal != nil {
			results[i].Err = m.fatal
			continue
		}
		if e.Index <= last {
			panic(fmt.Sprintf("fsm: log entry %d comes after entry %d was applied: the log and the state diverge", e.Index, last))
		}
		tx.Entry(e.Index)
		mark, before, head := tx.Mark(), a, m.chain
		res, err := m.apply(tx, e, &a)
		if err != nil {
			tx.Rollback(mark)
			m.chain = head
			res = Result{Index: e.Index, Err: err}
			if m.fatal = fatal(e.Index, err); m.fatal != nil {
				a = before
				results[i].Err = m.fatal
				continue
			}
		}
		results[i], last = res, e.Index
	}
	a.recent = m.recent.snapshot()
	m.writeChain(tx)
	tx.Commit(last, a)
	return results
}

// fatal wraps the errors after which this node may not go on: they speak of this node, not of the entry, so that peers may well
// have applied it.
func fatal(index uint64, err error) error {
	var level *LevelError
	var key *seal.MissingKeyError
	if errors.As(err, &level) || errors.As(err, &key) || errors.Is(err, command.ErrCorrupt) || errors.Is(err, command.ErrUnknown) {
		return &FatalError{Index: index, Err: err}
	}
	return nil
}

// apply judges and applies one entry.
func (m *Machine) apply(tx *state.Tx, e Entry, a *aux) (Result, error) {
	c, err := command.Decode(e.Data)
	if c.Level > MaxLevel { // also when the rest could not be read: this is why
		return Result{}, &LevelError{Need: c.Level, Have: MaxLevel}
	}
	if err != nil {
		return Result{}, err
	}
	known := c.RequestID != [16]byte{}
	if known {
		if res, ok := m.recent.get(c.RequestID); ok {
			return res, nil
		}
	}
	now, mark := max(a.leaderTime, c.LeaderTime), tx.Mark()
	a.leaderTime = now
	res := Result{Index: e.Index}
	switch op := c.Op.(type) {
	case command.Txn:
		if res.Keys, err = m.transact(tx, e.Index, now, op.Puts); err != nil {
			return Result{}, err
		}
	case command.Stage:
		if err := a.stage(op, now); err != nil {
			return Result{}, err
		}
	case command.Commit:
		puts, err := a.unstage(op)
		if err != nil {
			return Result{}, err
		}
		if res.Keys, err = m.transact(tx, e.Index, now, puts); err != nil {
			return Result{}, err
		}
	case command.ExpireBefore:
		a.dropStages(now)
		t := txn{Machine: m, tx: tx, index: e.Index, now: now}
		t.expire(min(op.T, now), op.Limit)
		res.Keys = t.keys
	case command.SetLevel:
		if op.Level > MaxLevel {
			return Result{}, &LevelError{Need: op.Level, Have: MaxLevel}
		}
		a.level = max(a.level, op.Level)
	case command.TrimAudit:
		if err := m.trimAudit(tx, e.Index, op); err != nil {
			return Result{}, err
		}
	}
	if cause, ok := m.causeOf(c); ok {
		if err := m.audit(tx, mark, e.Index, now, cause); err != nil {
			return Result{}, err
		}
		if a.level < command.AuditLevel {
			if err := m.trimAudit(tx, e.Index, command.TrimAudit{First: m.chain.seq - min(m.chain.seq, m.kept-1), Limit: 1}); err != nil {
				return Result{}, err
			}
		}
	}
	if known {
		m.recent.add(c.RequestID, res)
	}
	return res, nil
}

func (m *Machine) transact(tx *state.Tx, index uint64, now int64, puts []command.Put) ([]Key, error) {
	t := txn{Machine: m, tx: tx, index: index, now: now}
	err := t.run(puts)
	return t.keys, err
}

// txn is the work of one entry.
type txn struct {
	*Machine
	tx    *state.Tx
	index uint64
	now   int64 // leader time: what expired by it is treated as gone

	keys    []Key
	removed []Key // deleted rows whose referrers must still be seen to
}

func (t *txn) expired(r state.Stored) bool { return r.ExpiresAt != 0 && r.ExpiresAt <= t.now }

// run applies the puts as if at once: first all rows they replace or delete are taken out, then the new ones are put in, then
// references are checked. So the order of the puts does not matter, and two rows may swap a unique key.
func (t *txn) run(puts []command.Put) error {
	if err := t.take(puts); err != nil {
		return err
	}
	rows := make([]state.Decoded, 0, len(puts))
	for i := range puts {
		p := &puts[i]
		t.keys = append(t.keys, Key{p.Table, p.ID})
		if p.Raw == nil {
			t.removed = append(t.removed, Key{p.Table, p.ID})
			continue
		}
		d, err := t.put(p)
		if err != nil {
			return err
		}
		rows = append(rows, d)
	}
	for _, d := range rows {
		if err := t.checkRefs(d); err != nil {
			return err
		}
	}
	return t.cascade()
}

// take checks the puts' expectations against the state before and removes the rows they are about.
func (t *txn) take(puts []command.Put) error {
	var seen map[Key]bool
	if len(puts) > 1 {
		seen = make(map[Key]bool, len(puts))
	}
	for i := range puts {
		p := &puts[i]
		name := t.names[p.Table]
		if p.Table == entity.TableAuditRecords {
			return &state.RowError{Table: name, ID: p.ID, Err: errors.New("the audit log writes itself")}
		}
		if seen[Key{p.Table, p.ID}] {
			return &TwiceError{Table: name, ID: p.ID}
		}
		if seen != nil {
			seen[Key{p.Table, p.ID}] = true
		}
		cur, found := t.tx.Get(p.Table, p.ID)
		live := found && !t.expired(cur)
		if !live {
			cur.Index = 0
		}
		switch {
		case p.IfIndex == command.IfAbsent && live, p.IfIndex != 0 && p.IfIndex != command.IfAbsent && p.IfIndex != cur.Index:
			return &ConflictError{Table: name, ID: p.ID, Index: cur.Index}
		case p.Raw == nil && !live:
			return &NotFoundError{Table: name, ID: p.ID}
		case found:
			t.tx.Delete(p.Table, p.ID)
		}
	}
	return nil
}

func (t *txn) put(p *command.Put) (state.Decoded, error) {
	name := t.names[p.Table]
	if len(p.Raw) > MaxRow {
		return state.Decoded{}, &state.RowError{Table: name, ID: p.ID, Err: fmt.Errorf("row of %d bytes, at most %d are allowed", len(p.Raw), MaxRow)}
	}
	d, err := t.tx.Decode(p.Table, state.AnyRow{ID: p.ID, Index: t.index, ExpiresAt: p.Expires, Raw: p.Raw})
	if err != nil {
		return d, err
	}
	return d, t.set(d)
}

// set writes a row unless a living one holds one of its keys; expired rows make room.
func (t *txn) set(d state.Decoded) error {
	for {
		c, found := t.tx.Conflict(d)
		if !found {
			t.tx.Set(d)
			return nil
		}
		if other, _ := t.tx.Get(d.Table(), c.Existing); !t.expired(other) {
			return &UniqueError{Table: t.names[d.Table()], Index: c.Index, Key: c.Key, Existing: c.Existing}
		}
		t.delete(Key{d.Table(), c.Existing})
	}
}

func (t *txn) delete(k Key) {
	if t.tx.Delete(k.Table, k.ID) {
		t.keys = append(t.keys, k)
		t.removed = append(t.removed, k)
	}
}

func (t *txn) checkRefs(d state.Decoded) error {
	r, found := t.tx.Get(d.Table(), d.ID())
	if !found { // it had expired before it was written and made room for a later put
		return nil
	}
	for _, ref := range t.refs[d.Table()] {
		text, ok := t.tx.Ref(ref.field, r)
		if !ok {
			continue
		}
		id, err := state.ParseID(text)
		if err != nil {
			return &state.RowError{Table: t.names[d.Table()], ID: d.ID(), Err: fmt.Errorf("field %s: %w", ref.field, err)}
		}
		if to, found := t.tx.Get(ref.to, id); !ref.exists || !found || t.expired(to) {
			return &ForeignKeyError{Table: t.names[d.Table()], Field: ref.field, Ref: ref.ref, ID: id}
		}
	}
	return nil
}

// cascade sees to the rows that refer to removed ones, over as many levels as there are. A restriction counts only for rows
// that are left at the end, whatever the order in which the others went.
func (t *txn) cascade() error {
	type restriction struct {
		Key
		reference
	}
	var restricted []restriction
	for len(t.removed) > 0 {
		k := t.removed[0]
		t.removed = t.removed[1:]
		for _, ref := range t.referrer[k.Table] {
			switch ref.onDelete {
			case schema.Cascade:
				for _, r := range t.tx.Referring(ref.table, ref.field, k.ID) {
					t.delete(Key{ref.table, r.ID})
				}
			case schema.SetNull:
				for _, r := range t.tx.Referring(ref.table, ref.field, k.ID) {
					if err := t.clear(ref, r); err != nil {
						return err
					}
				}
			default:
				restricted = append(restricted, restriction{k, ref})
			}
		}
	}
	for _, x := range restricted {
		if left := t.tx.Referring(x.reference.table, x.field, x.ID); len(left) > 0 {
			return &RestrictedError{Table: t.names[x.Key.Table], ID: x.ID, By: t.names[x.reference.table], ByID: left[0].ID}
		}
	}
	return nil
}

// clear sets the foreign field of a row to null.
func (t *txn) clear(ref reference, r state.Stored) error {
	raw, err := setNull(r.Raw(), ref.field)
	if err != nil {
		return &state.RowError{Table: t.names[ref.table], ID: r.ID, Err: err}
	}
	d, err := t.tx.Decode(ref.table, state.AnyRow{ID: r.ID, Index: t.index, ExpiresAt: r.ExpiresAt, Raw: raw})
	if err != nil {
		return err
	}
	t.keys = append(t.keys, Key{ref.table, r.ID})
	return t.set(d)
}

// setNull sets a member of a row's canonical JSON to null and leaves everything else as it is, to the byte.
func setNull(raw []byte, field string) ([]byte, error) {
	var rec map[string]json.RawMessage
	if err := json.Unmarshal(raw, &rec); err != nil {
		return nil, err
	}
	rec[field] = json.RawMessage("null")
	var out bytes.Buffer
	enc := json.NewEncoder(&out) // sorts the members, as canonical JSON does
	enc.SetEscapeHTML(false)
	if err := enc.Encode(rec); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// expire deletes up to limit rows that expire before the time, oldest first over all tables. A row that another one holds by a
// restriction stays, hidden, until that one is gone.
func (t *txn) expire(before int64, limit int) {
	type cursor struct {
		at int64
		id state.ID
	}
	at := make([]cursor, len(t.expiring))
	for limit > 0 {
		var next state.Stored
		from := -1
		for i, table := range t.expiring {
			r, ok := t.tx.NextExpired(table, at[i].at, at[i].id, before)
			if ok && (from < 0 || r.ExpiresAt < next.ExpiresAt) {
				next, from = r, i
			}
		}
		if from < 0 {
			return
		}
		at[from] = cursor{next.ExpiresAt, next.ID}
		mark, keys := t.tx.Mark(), t.keys
		t.delete(Key{t.expiring[from], next.ID})
		if err := t.cascade(); err != nil {
			t.tx.Rollback(mark)
			t.keys, t.removed = slices.Clip(keys), nil
			continue
		}
		limit--
	}
}
