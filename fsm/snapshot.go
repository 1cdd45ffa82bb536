package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"

	"concord/fsm/command"
	"concord/fsm/state"
)

// The snapshot formats. Numbers are unsigned varints unless said otherwise; DESIGN.md shows the layout.
const (
	snapshotMagic = "CONCORD\n"
	formatPlain   = 1
	formatStaged  = 2 // as plain, then what is staged; written only when there is some, which takes level 2
)

// ErrSnapshot says that a snapshot is damaged: not all of it is as Persist wrote it.
var ErrSnapshot = errors.New("snapshot is corrupt")

// Persist writes a view as a snapshot. It may run while entries are applied. Two machines at the same index write the same bytes.
func (m *Machine) Persist(v *state.View, w io.Writer) error {
	sum := sha256.New()
	b := bufio.NewWriterSize(io.MultiWriter(w, sum), 256<<10)
	if err := m.persist(v, b); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := w.Write(sum.Sum(nil)); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// Hash is the checksum that a snapshot of the view would end with. It is equal on all nodes whose views have the same index.
func (m *Machine) Hash(v *state.View) ([sha256.Size]byte, error) {
	sum := sha256.New()
	err := m.persist(v, bufio.NewWriterSize(sum, 64<<10))
	return [sha256.Size]byte(sum.Sum(nil)), err
}

// persist relies on bufio.Writer to keep the first error until Flush.
func (m *Machine) persist(v *state.View, b *bufio.Writer) error {
	var num [binary.MaxVarintLen64]byte
	put := func(n uint64) { _, _ = b.Write(num[:binary.PutUvarint(num[:], n)]) }
	bytes := func(p []byte) { _, _ = b.Write(p) }

	a := auxOf(v)
	_, _ = b.WriteString(snapshotMagic)
	if len(a.stages) > 0 {
		put(formatStaged)
	} else {
		put(formatPlain)
	}
	put(uint64(a.level))
	put(v.Index())
	put(uint64(a.leaderTime))

	var tables []state.AnyTable // without the empty ones, so that a new entity changes no hash until it is used
	for _, t := range m.store.Tables() {
		if t.Len(v) > 0 {
			tables = append(tables, t)
		}
	}
	put(uint64(len(tables)))
	for _, t := range tables {
		put(uint64(t.Number()))
		put(uint64(t.Len(v)))
		t.Raws(v, func(r *state.AnyRow) {
			bytes(r.ID[:])
			put(r.Index)
			put(uint64(r.ExpiresAt))
			put(uint64(len(r.Raw)))
			bytes(r.Raw)
		})
	}
	put(uint64(len(a.recent.list)))
	for _, x := range a.recent.list {
		bytes(x.id[:])
		put(x.index)
		put(uint64(x.to - x.from))
		for _, k := range a.recent.keysOf(x) {
			put(uint64(k.Table))
			bytes(k.ID[:])
		}
	}
	if len(a.stages) > 0 {
		put(uint64(len(a.stages)))
	}
	for _, s := range a.stages {
		bytes(s.id[:])
		put(uint64(s.touched))
		put(uint64(s.next))
		put(uint64(len(s.puts)))
		for i := range s.puts {
			p := &s.puts[i]
			put(uint64(p.Table))
			bytes(p.ID[:])
			put(p.IfIndex)
			put(uint64(p.Expires))
			if p.Raw == nil {
				put(0)
				continue
			}
			put(uint64(len(p.Raw)) + 1)
			bytes(p.Raw)
		}
	}
	return b.Flush()
}

// Restore replaces the whole state by a snapshot's. It reads r to its end. On an error, which says what is wrong where, the
// machine is as before. It wraps ErrSnapshot if the snapshot is damaged, else a *LevelError, a *seal.MissingKeyError or
// a *state.RowError.
func (m *Machine) Restore(r io.Reader) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	body := &bodyReader{r: r, sum: sha256.New()}
	l := m.store.BeginLoad(m.Keys())
	b := bufio.NewReaderSize(body, 256<<10)
	index, a, err := m.load(l, b)
	// The checksum covers what was not understood too: only if it matches is err about this node and not about the file.
	if _, drain := io.Copy(io.Discard, b); drain != nil {
		err = fmt.Errorf("read snapshot: %w", drain)
	} else if !body.intact() {
		err = errors.Join(fmt.Errorf("%w: its SHA-256 does not match", ErrSnapshot), err)
	}
	if err != nil {
		l.Abort()
		return err
	}
	m.replace(l, index, a)
	return nil
}

func (m *Machine) load(l *state.Load, b *bufio.Reader) (index uint64, a aux, err error) {
	d := decoder{b: b}
	magic := make([]byte, len(snapshotMagic))
	if d.full(magic); d.err == nil && string(magic) != snapshotMagic {
		return 0, aux{}, fmt.Errorf("%w: it does not begin like a snapshot", ErrSnapshot)
	}
	format := d.num()
	if d.err == nil && format != formatPlain && format != formatStaged {
		return 0, aux{}, fmt.Errorf("snapshot has format %d, this binary reads up to %d: install the newer version on this node", format, formatStaged)
	}
	a.level = uint32(d.num())
	if d.err == nil && a.level > MaxLevel {
		return 0, aux{}, fmt.Errorf("snapshot: %w", &LevelError{Need: a.level, Have: MaxLevel})
	}
	index = d.num()
	a.leaderTime = int64(d.num())
	tables := d.num()
	if d.err != nil {
		return 0, aux{}, fmt.Errorf("%w: header: %w", ErrSnapshot, d.err)
	}
	for range tables {
		number, count := d.num(), d.num()
		if d.err != nil {
			return 0, aux{}, fmt.Errorf("table: %w", d.err)
		}
		name, known := m.names[uint16(number)]
		if !known || number > 0xffff {
			return 0, aux{}, fmt.Errorf("snapshot: it holds table %d, which this binary does not know: install the newer version on this node", number)
		}
		if err := m.loadTable(l, &d, uint16(number), count); err != nil {
			return 0, aux{}, fmt.Errorf("snapshot: table %s: %w", name, err)
		}
	}
	if a.recent, err = d.recent(); err != nil {
		return 0, aux{}, fmt.Errorf("snapshot: request ids: %w", err)
	}
	if format == formatStaged {
		if a.stages, err = d.stages(); err != nil {
			return 0, aux{}, fmt.Errorf("snapshot: staged transactions: %w", err)
		}
	}
	if _, err := b.ReadByte(); err != io.EOF {
		return 0, aux{}, fmt.Errorf("%w: there is something behind its end", ErrSnapshot)
	}
	if err := l.Build(); err != nil {
		return 0, aux{}, fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	return index, a, nil
}

// batch is how many rows are decoded at once, on all processors, while the batch before is added in order.
const batch = 4096

func (m *Machine) loadTable(l *state.Load, d *decoder, number uint16, count uint64) error {
	decoded := func() ([]state.Decoded, error) { return nil, nil }
	for n := uint64(0); ; n += batch {
		rows := make([]state.AnyRow, 0, batch)
		for n+uint64(len(rows)) < count && len(rows) < batch && d.err == nil {
			rows = append(rows, d.row())
		}
		ready := decoded
		decoded = decodeRows(l, number, rows)
		if err := insert(l, ready); err != nil || len(rows) == 0 {
			return err
		}
		if d.err != nil {
			return fmt.Errorf("row %d of %d: %w", n+uint64(len(rows)), count, d.err)
		}
	}
}

func insert(l *state.Load, ready func() ([]state.Decoded, error)) error {
	rows, err := ready()
	if err != nil {
		return err
	}
	for _, x := range rows {
		if err := l.Add(x); err != nil {
			return fmt.Errorf("%w: %w", ErrSnapshot, err)
		}
	}
	return nil
}

// decodeRows begins to decode rows; the function it returns waits for them.
func decodeRows(l *state.Load, table uint16, rows []state.AnyRow) func() ([]state.Decoded, error) {
	decoded := make([]state.Decoded, len(rows))
	errs := make([]error, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w * len(rows) / len(errs); i < (w+1)*len(rows)/len(errs) && errs[w] == nil; i++ {
				decoded[i], errs[w] = l.Decode(table, rows[i])
			}
		})
	}
	return func() ([]state.Decoded, error) {
		wg.Wait()
		return decoded, errors.Join(errs...)
	}
}

// decoder reads the pieces of a snapshot and keeps the first error.
type decoder struct {
	b   *bufio.Reader
	err error
}

func (d *decoder) fail(err error) {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if d.err == nil && err != nil {
		d.err = fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
}

func (d *decoder) num() uint64 {
	if d.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(d.b)
	d.fail(err)
	return n
}

func (d *decoder) full(p []byte) {
	if d.err == nil {
		_, err := io.ReadFull(d.b, p)
		d.fail(err)
	}
}

func (d *decoder) row() (r state.AnyRow) {
	d.full(r.ID[:])
	r.Index = d.num()
	r.ExpiresAt = int64(d.num())
	n := d.num()
	if n > MaxRow {
		d.fail(fmt.Errorf("length %d is beyond the largest row's", n))
	}
	if d.err == nil {
		r.Raw = make([]byte, n)
		d.full(r.Raw)
	}
	return r
}

func (d *decoder) recent() (r remembered, err error) {
	count := d.num()
	if count > Remember {
		d.fail(fmt.Errorf("%d of them, at most %d are kept", count, Remember))
	}
	for ; count > 0 && d.err == nil; count-- {
		var id [16]byte
		d.full(id[:])
		index := d.num()
		n := d.num()
		if n > rememberKeys {
			d.fail(fmt.Errorf("%d keys of one, at most %d are kept", n, rememberKeys))
		}
		var keys []Key
		for ; n > 0 && d.err == nil; n-- {
			k := Key{Table: uint16(d.num())}
			d.full(k.ID[:])
			keys = append(keys, k)
		}
		r.add(id, index, keys)
	}
	return r, d.err
}

func (d *decoder) stages() ([]stage, error) {
	count := d.num()
	if count > MaxStages {
		d.fail(fmt.Errorf("%d of them, at most %d are kept", count, MaxStages))
	}
	var list []stage
	total := 0
	for ; count > 0 && d.err == nil; count-- {
		var s stage
		d.full(s.id[:])
		s.touched, s.next = int64(d.num()), uint32(d.num())
		for n := d.num(); n > 0 && d.err == nil; n-- {
			p := command.Put{Table: uint16(d.num())}
			d.full(p.ID[:])
			p.IfIndex, p.Expires = d.num(), int64(d.num())
			size := d.num()
			if size > MaxRow+1 {
				d.fail(fmt.Errorf("length %d is beyond the largest row's", size-1))
			}
			if size > 0 && d.err == nil {
				p.Raw = make([]byte, size-1)
				d.full(p.Raw)
			}
			if total += len(p.Raw) + putOverhead; total > MaxStagedBytes {
				d.fail(fmt.Errorf("more than %d bytes", MaxStagedBytes))
			}
			s.puts = append(s.puts, p)
		}
		s.bytes = sizeOf(s.puts)
		list = append(list, s)
	}
	return list, d.err
}

// bodyReader passes on all but the last 32 bytes of r, which are the checksum of what it passes on.
type bodyReader struct {
	r    io.Reader
	sum  hash.Hash
	tail [sha256.Size]byte
	have int // bytes in tail
}

func (b *bodyReader) Read(p []byte) (int, error) {
	if len(p) <= len(b.tail) { // io.Copy and bufio read in large pieces
		return 0, io.ErrShortBuffer
	}
	for {
		copy(p, b.tail[:b.have])
		n, err := b.r.Read(p[b.have:])
		n += b.have
		b.have = min(n, len(b.tail))
		out := n - b.have
		copy(b.tail[:], p[out:n])
		b.sum.Write(p[:out])
		if out > 0 || err != nil {
			return out, err
		}
	}
}

func (b *bodyReader) intact() bool {
	return b.have == len(b.tail) && bytes.Equal(b.sum.Sum(nil), b.tail[:])
}
