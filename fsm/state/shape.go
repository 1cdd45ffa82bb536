package state

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"concord/fsm/entity"
	"concord/fsm/seal"
)

// kind is the form of a member's value, and with it the form of its data in a row.
type kind byte

const (
	kindNull   kind = iota + 1 // no data
	kindFalse                  // no data
	kindTrue                   // no data
	kindOwn                    // the row's id as a string: no data
	kindInt                    // an integer: zigzag varint
	kindText                   // a string: length, text
	kindRef                    // {"id":"…"}: length, text
	kindSealed                 // {"$sealed":"…"}: length, nonce and clear text
	kindList                   // a list of strings without escapes: length, JSON
	kindJSON                   // anything else: length, JSON
	kindMixed                  // anything else with sealed values in it: length, JSON
)

// shape is what rows have in common that have the same members of the same kinds: their names, and where their values go in T. A row
// itself holds only the values. Clients do not choose the names of members, so there are few shapes: as many as there are combinations
// of fields set and not set.
type shape struct {
	m       *meta
	number  uint64
	members []member
	parts   [][]int // by index: the numbers of the members that make up its keys, -1 for one that is not there
	err     error   // why a row cannot have this shape
	direct  bool    // T can be filled member by member; else encoding/json does it
	check   bool    // encoding/json must look at new rows: it alone knows whether they are valid
}

type member struct {
	name   string
	prefix string // what precedes the value in JSON
	kind   kind
	key    *seal.Key // of a sealed value
	set    setter
	offset uintptr // in T
}

// setter is how a member's value gets into T.
type setter byte

const (
	setNothing   setter = iota
	setString           // also the ID of a Ref
	setRef              // *entity.Ref
	setFloat            // float64 of an integer
	setFloatText        // float64 of JSON
	setInt
	setIntPtr
	setTrue
	setBoolPtr
	setStrings // []string of a list
	setRaw     // json.RawMessage of JSON
	setByJSON  // none of these
)

// dict holds the shapes of a table's rows by number and the keys that their secrets are opened with. It only grows.
type dict struct {
	m    *meta
	keys *seal.Keyring
	list atomic.Pointer[[]*shape]

	mu    sync.RWMutex
	byKey map[string]*shape
}

func newDict(m *meta, keys *seal.Keyring) *dict {
	d := &dict{m: m, keys: keys, byKey: map[string]*shape{}}
	d.list.Store(&[]*shape{})
	return d
}

// shape finds or makes the shape with the key, which lists the members: kind, name and 0 of each, and the id of the sealing key and 0
// of a sealed one.
func (d *dict) shape(key []byte) *shape {
	d.mu.RLock()
	s := d.byKey[string(key)]
	d.mu.RUnlock()
	if s != nil {
		return s
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if s = d.byKey[string(key)]; s == nil {
		list := *d.list.Load()
		s = newShape(d, string(key))
		s.number = uint64(len(list))
		list = append(list, s)
		d.list.Store(&list)
		d.byKey[string(key)] = s
	}
	return s
}

func newShape(d *dict, key string) *shape {
	s := &shape{m: d.m, direct: true}
	for key != "" {
		x := member{kind: kind(key[0])}
		x.name, key, _ = strings.Cut(key[1:], "\x00")
		if x.kind == kindSealed {
			var id string
			id, key, _ = strings.Cut(key, "\x00")
			x.key, s.err = d.keys.KeyOf([]byte(id))
		}
		if s.position(x.name) >= 0 {
			s.err = fmt.Errorf("member %q occurs twice", x.name)
		}
		x.prefix = `,"` + x.name + `":`
		switch x.kind {
		case kindNull:
			x.prefix += "null"
		case kindFalse:
			x.prefix += "false"
		case kindTrue:
			x.prefix += "true"
		}
		if f, ok := d.m.field(x.name); ok {
			x.set, x.offset = f.setter(x.kind), f.offset
		} else {
			for _, f := range d.m.fields { // encoding/json would take it for that field, the indexes would not
				if strings.EqualFold(f.name, x.name) {
					s.err = fmt.Errorf("member %q must be written %q", x.name, f.name)
				}
			}
		}
		s.direct = s.direct && x.set != setByJSON
		s.check = s.check || x.kind >= kindJSON
		s.members = append(s.members, x)
	}
	s.check = s.check || !s.direct
	for _, ix := range d.m.indexes {
		parts := make([]int, len(ix.parts))
		for i, name := range ix.parts {
			parts[i] = s.position(name)
		}
		s.parts = append(s.parts, parts)
	}
	return s
}

func (s *shape) position(name string) int {
	for i := range s.members {
		if s.members[i].name == name {
			return i
		}
	}
	return -1
}

// setter says how a value of a kind gets into the field.
func (f *field) setter(k kind) setter {
	type pair struct {
		k kind
		t reflect.Type
	}
	if k == kindJSON && f.typ == reflect.TypeFor[json.RawMessage]() {
		return setRaw
	}
	if !f.direct {
		return setByJSON
	}
	if k == kindNull {
		return setNothing
	}
	s, ok := map[pair]setter{
		{kindFalse, reflect.TypeFor[bool]()}:      setNothing,
		{kindTrue, reflect.TypeFor[bool]()}:       setTrue,
		{kindFalse, reflect.TypeFor[*bool]()}:     setBoolPtr,
		{kindTrue, reflect.TypeFor[*bool]()}:      setBoolPtr,
		{kindOwn, reflect.TypeFor[string]()}:      setString,
		{kindText, reflect.TypeFor[string]()}:     setString,
		{kindSealed, reflect.TypeFor[string]()}:   setString,
		{kindInt, reflect.TypeFor[float64]()}:     setFloat,
		{kindJSON, reflect.TypeFor[float64]()}:    setFloatText,
		{kindInt, reflect.TypeFor[int]()}:         setInt,
		{kindInt, reflect.TypeFor[*int]()}:        setIntPtr,
		{kindRef, reflect.TypeFor[entity.Ref]()}:  setString, // its only field
		{kindRef, reflect.TypeFor[*entity.Ref]()}: setRef,
		{kindList, reflect.TypeFor[[]string]()}:   setStrings,
	}[pair{k, f.typ}]
	if !ok {
		return setByJSON
	}
	return s
}

// record is a row as it lies in a slab.
type record struct {
	shape   *shape
	id      []byte // text
	index   uint64
	expires int64
	values  []byte
}

// expired says whether the row has expired at a time; not at 0.
func (r *record) expired(now int64) bool { return now != 0 && r.expires != 0 && r.expires <= now }

// parse reads a row.
func (d *dict) parse(b []byte, r *record) {
	r.id, b = b[:idSize:idSize], b[idSize:]
	length, n := binary.Uvarint(b)
	b = b[n : n+int(length)]
	number, n := binary.Uvarint(b)
	r.shape, b = (*d.list.Load())[number], b[n:]
	r.index, n = binary.Uvarint(b)
	b = b[n:]
	expires, n := binary.Uvarint(b)
	r.expires, r.values = int64(expires), b[n:]
}

// value takes the data of a value of kind k off b.
func (k kind) value(b []byte) (n int64, text, rest []byte) {
	switch {
	case k < kindInt:
		return 0, nil, b
	case k == kindInt:
		n, size := binary.Varint(b)
		return n, nil, b[size:]
	}
	length, size := binary.Uvarint(b)
	end := size + int(length)
	return 0, b[size:end:end], b[end:]
}

// member gives the data of member i.
func (r *record) member(i int) (k kind, n int64, text []byte) {
	b := r.values
	for j := range r.shape.members[:i] {
		_, _, b = r.shape.members[j].kind.value(b)
	}
	k = r.shape.members[i].kind
	n, text, _ = k.value(b)
	switch k {
	case kindOwn:
		text = r.id
	case kindSealed:
		text = text[seal.NonceSize:]
	}
	return k, n, text
}

// share is a string in the memory of a slab, which never changes.
func share(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// text is the text of member i as part of a key; "" stands for null. References are by the id in lower case.
func (r *record) text(i int) string {
	if i < 0 {
		return ""
	}
	switch k, n, text := r.member(i); k {
	case kindOwn, kindText, kindSealed:
		return share(text)
	case kindRef:
		return strings.ToLower(share(text)) // which gives back its argument when nothing changes
	case kindInt:
		return strconv.FormatInt(n, 10)
	case kindFalse:
		return "false"
	case kindTrue:
		return "true"
	case kindJSON:
		var v any
		_ = json.Unmarshal(text, &v) // it was valid when it was written
		switch v := v.(type) {
		case string:
			return v
		case map[string]any:
			var ref struct { // not v["id"]: the row's value has what encoding/json takes for the id, in whatever case it is written
				ID string `json:"id"`
			}
			_ = json.Unmarshal(text, &ref)
			return strings.ToLower(ref.ID)
		}
		return share(text)
	}
	return ""
}

// list is the strings of member i.
func (r *record) list(i int) (list []string) {
	if i < 0 {
		return nil
	}
	switch k, _, text := r.member(i); k {
	case kindList:
		return split(text)
	case kindJSON:
		_ = json.Unmarshal(text, &list) // it was valid when it was written
	}
	return list
}

// split gives the strings of a list.
func split(text []byte) []string {
	if len(text) == len("[]") {
		return []string{}
	}
	return strings.Split(share(text[2:len(text)-2]), `","`)
}

// fill sets the fields of the zero T at p.
func (r *record) fill(p unsafe.Pointer) {
	b := r.values
	for i := range r.shape.members {
		x := &r.shape.members[i]
		var n int64
		var text []byte
		n, text, b = x.kind.value(b)
		switch to := unsafe.Add(p, x.offset); x.set {
		case setNothing:
		case setString:
			switch x.kind {
			case kindOwn:
				text = r.id
			case kindSealed:
				text = text[seal.NonceSize:]
			}
			*(*string)(to) = share(text)
		case setRef:
			*(**entity.Ref)(to) = &entity.Ref{ID: share(text)}
		case setFloat:
			*(*float64)(to) = float64(n)
		case setFloatText:
			*(*float64)(to), _ = strconv.ParseFloat(share(text), 64) // it was valid when it was written
		case setInt:
			*(*int)(to) = int(n)
		case setIntPtr:
			v := int(n)
			*(**int)(to) = &v
		case setTrue:
			*(*bool)(to) = true
		case setBoolPtr:
			v := x.kind == kindTrue
			*(**bool)(to) = &v
		case setStrings:
			*(*[]string)(to) = split(text)
		case setRaw:
			*(*json.RawMessage)(to) = text
		}
	}
}

// decode makes a *T of the row.
func (d *dict) decode(r *record) reflect.Value {
	v := reflect.New(d.m.typ)
	if r.shape.direct {
		r.fill(v.UnsafePointer())
		return v
	}
	id := r.rowID()
	clear, err := d.keys.Open(d.m.def.Table, id, r.appendRaw(nil))
	if err == nil {
		err = json.Unmarshal(clear, v.Interface())
	}
	if err != nil { // it could be decoded when it was written
		panic(fmt.Sprintf("state: %s %s does not decode any more: %v", d.m.def.Schema.Name, id, err))
	}
	return v
}

// appendRaw appends the row's canonical JSON with its secrets sealed: the bytes that it was made of.
func (r *record) appendRaw(out []byte) []byte {
	if len(r.shape.members) == 0 {
		return append(out, "{}"...)
	}
	id, table := r.rowID(), r.shape.m.def.Table
	start := len(out)
	b := r.values
	for i := range r.shape.members {
		x := &r.shape.members[i]
		var n int64
		var text []byte
		n, text, b = x.kind.value(b)
		out = append(out, x.prefix...)
		switch x.kind {
		case kindOwn:
			out = append(append(append(out, '"'), r.id...), '"')
		case kindInt:
			out = strconv.AppendInt(out, n, 10)
		case kindText:
			out = seal.AppendString(out, share(text))
		case kindRef:
			out = append(append(append(out, refOpening...), text...), refClosing...)
		case kindSealed:
			out = x.key.AppendSealed(out, table, id, text)
		case kindList, kindJSON, kindMixed:
			out = append(out, text...)
		}
	}
	out[start] = '{' // in place of the first comma
	return append(out, '}')
}

func (r *record) rowID() ID { return readID(r.id) }
