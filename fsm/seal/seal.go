// Package seal encrypts secret strings inside rows before they are proposed to the log, and opens them again while rows are decoded.
//
// Log, snapshot, backup and the wire between disks thus hold no clear text. A secret string is stored as the object
// {"$sealed":"<key id>.<base64>"} in its place. The package makes no keys on its own and knows neither schemas nor rows'
// types; which strings are secret is said by the schema.
package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// KeySize is the length of a sealing key in bytes, NonceSize that of the nonce of a sealed value.
const (
	KeySize   = 32
	NonceSize = 12
)

const (
	member  = "$sealed"
	closing = `"}`
)

// Opening is what every sealed value begins with.
const Opening = `{"` + member + `":"`

var encoding = base64.RawURLEncoding.Strict()

// MissingKeyError says that a row is sealed with a key this node does not have. The node cannot go on.
type MissingKeyError struct{ Key string }

func (e *MissingKeyError) Error() string {
	return fmt.Sprintf("row is sealed with key %q, which the key file of this node lacks: copy the key file from another node of the cluster, or let this node join again", e.Key)
}

// Keyring holds the sealing keys of a cluster: the current one seals, all of them open. It is immutable.
type Keyring struct {
	current string
	keys    map[string]*Key
}

// Key is a master key and what is derived from it; one subkey per purpose, so that no output of one tells about the other.
type Key struct {
	id     string
	master []byte
	aead   cipher.AEAD
	nonce  []byte // HMAC key of the synthetic nonces
}

var keyID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// New makes a keyring of master keys of KeySize bytes by id; current seals.
func New(current string, keys map[string][]byte) (*Keyring, error) {
	k := &Keyring{current: current, keys: make(map[string]*Key, len(keys))}
	for id, master := range keys {
		if !keyID.MatchString(id) {
			return nil, fmt.Errorf("seal: key id %q: must be 1 to 32 characters of A-Z a-z 0-9 _ -", id)
		}
		if len(master) != KeySize {
			return nil, fmt.Errorf("seal: key %q: has %d bytes, must have %d", id, len(master), KeySize)
		}
		sub, err := derive(id, master)
		if err != nil {
			return nil, fmt.Errorf("seal: key %q: %w", id, err)
		}
		k.keys[id] = sub
	}
	if _, ok := k.keys[current]; !ok {
		return nil, fmt.Errorf("seal: current key %q is not among the keys", current)
	}
	return k, nil
}

func derive(id string, master []byte) (*Key, error) {
	enc, err := hkdf.Key(sha256.New, master, nil, "concord seal 1 aes-256-gcm", 32)
	if err != nil {
		return nil, err
	}
	nonce, err := hkdf.Key(sha256.New, master, nil, "concord seal 1 nonce", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(enc)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &Key{id: id, master: bytes.Clone(master), aead: aead, nonce: nonce}, nil
}

// Generate makes a keyring of one new key. Its id is a hash of the key.
func Generate(random io.Reader) (*Keyring, error) {
	master := make([]byte, KeySize)
	if _, err := io.ReadFull(random, master); err != nil {
		return nil, fmt.Errorf("seal: make a key: %w", err)
	}
	sum := sha256.Sum256(append([]byte("concord seal key id "), master...))
	id := hex.EncodeToString(sum[:4])
	return New(id, map[string][]byte{id: master})
}

// String names the keys without showing them.
func (k *Keyring) String() string {
	return fmt.Sprintf("keyring(current %s of %s)", k.current, strings.Join(slices.Sorted(maps.Keys(k.keys)), ","))
}

// file is the form of a keyring on disk and on its way to a joining node.
type file struct {
	Current string            `json:"current"`
	Keys    map[string][]byte `json:"keys"` // base64
}

// Encode gives the keyring with its keys in clear, for the key file and for a joining node.
func (k *Keyring) Encode() ([]byte, error) {
	f := file{Current: k.current, Keys: map[string][]byte{}}
	for id, x := range k.keys {
		f.Keys[id] = x.master
	}
	return json.MarshalIndent(f, "", "  ")
}

// Decode reads what Encode made.
func Decode(data []byte) (*Keyring, error) {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("seal: keyring is not valid: %w", err)
	}
	return New(f.Current, f.Keys)
}

// Load reads a key file. A file that others than its owner may read is refused.
func Load(path string) (*Keyring, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("seal: key file %s has mode %04o: others may read it; run chmod 600 on it", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	k, err := Decode(data)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return k, nil
}

// Save writes the key file with mode 0600. A crash leaves the old file or the new one.
func (k *Keyring) Save(path string) error {
	data, err := k.Encode()
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	defer dir.Close()
	tmp, err := os.CreateTemp(filepath.Dir(path), ".keys-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("seal: write key file %s: %w", path, err), os.Remove(tmp.Name()))
	}
	return dir.Sync()
}

// appendAAD gives what binds a sealed value to its row: moved to another row it does not open.
func appendAAD(out []byte, table uint16, id [16]byte) []byte {
	return append(binary.BigEndian.AppendUint16(out, table), id[:]...)
}

// Seal encrypts clear for the row and gives the value to put in its place. The same clear text in the same row gives the same
// bytes: the nonce is a MAC of both, so no randomness is needed and a nonce can repeat only with its plain text.
func (k *Keyring) Seal(table uint16, id [16]byte, clear string) (any, error) {
	x := k.keys[k.current]
	mac := hmac.New(sha256.New, x.nonce)
	mac.Write(appendAAD(nil, table, id))
	mac.Write([]byte(clear))
	value := x.AppendSealed(nil, table, id, append(mac.Sum(nil)[:NonceSize], clear...))
	return map[string]any{member: string(value[len(Opening) : len(value)-len(closing)])}, nil
}

// Open replaces every sealed value in a row's canonical JSON by its string. Without any, raw itself comes back.
//
// The search for the opening bytes is safe on text chosen by users: canonical JSON escapes each quote inside a string, so the
// bytes {"$ can only begin an object whose first key begins with $, and schemas refuse such keys.
func (k *Keyring) Open(table uint16, id [16]byte, raw []byte) ([]byte, error) {
	at := bytes.Index(raw, []byte(Opening))
	if at < 0 {
		return raw, nil
	}
	out := make([]byte, 0, len(raw))
	for ; at >= 0; at = bytes.Index(raw, []byte(Opening)) {
		out = append(out, raw[:at]...)
		text, rest, _ := Cut(raw[at:])
		if text == nil {
			return nil, errors.New("sealed value has no end")
		}
		x, err := k.KeyOf(text)
		if err != nil {
			return nil, err
		}
		opened, err := x.AppendOpened(nil, table, id, text)
		if err != nil {
			return nil, err
		}
		out = AppendString(out, string(opened[NonceSize:]))
		raw = rest
	}
	return append(out, raw...), nil
}

// Cut takes the text of a sealed value off raw, which begins with it. With ok false raw begins with something else, or text is nil and
// the value has no end.
func Cut(raw []byte) (text, rest []byte, ok bool) {
	if text, ok = bytes.CutPrefix(raw, []byte(Opening)); !ok {
		return nil, raw, false
	}
	if text, rest, ok = bytes.Cut(text, []byte(closing)); !ok {
		return nil, raw, false
	}
	return text, rest, true
}

// KeyOf finds the key that the text of a sealed value names.
func (k *Keyring) KeyOf(text []byte) (*Key, error) {
	name, _, _ := bytes.Cut(text, []byte("."))
	x, ok := k.keys[string(name)]
	switch {
	case !ok && keyID.Match(name):
		return nil, &MissingKeyError{Key: string(name)}
	case !ok:
		return nil, errors.New("sealed value has no key id")
	}
	return x, nil
}

// ID is the name by which sealed values refer to the key.
func (x *Key) ID() string { return x.id }

// AppendOpened appends the nonce of a sealed value, NonceSize bytes, and its clear text: all that is needed to seal it again.
func (x *Key) AppendOpened(out []byte, table uint16, id [16]byte, text []byte) ([]byte, error) {
	box, err := encoding.AppendDecode(out, text[min(len(text), len(x.id)+1):])
	if err != nil || len(box) < len(out)+NonceSize || bytes.ContainsAny(text, "\r\n") { // which the decoder skips
		return nil, errors.New("sealed value is malformed")
	}
	opened, box := box[:len(out)+NonceSize], box[len(out):]
	if opened, err = x.aead.Open(opened, box[:NonceSize], box[NonceSize:], appendAAD(nil, table, id)); err != nil {
		return nil, fmt.Errorf("sealed value does not open with key %q: it was altered, moved from another row, or the key file holds another key under this id", x.id)
	}
	return opened, nil
}

// AppendSealed appends the JSON of the sealed value that AppendOpened opened, to the byte.
func (x *Key) AppendSealed(out []byte, table uint16, id [16]byte, opened []byte) []byte {
	out = append(append(append(out, Opening...), x.id...), '.')
	size := len(opened) + x.aead.Overhead()
	at := len(out) + encoding.EncodedLen(size) // work behind the text that is to come, so that nothing is allocated
	out = slices.Grow(out, at-len(out)+size+18)
	bind := appendAAD(out[at+size:at+size], table, id)
	box := append(out[at:at], opened[:NonceSize]...)
	box = x.aead.Seal(box, box, opened[NonceSize:], bind)
	return append(encoding.AppendEncode(out, box), closing...)
}

// AppendString appends s as a string of canonical JSON.
func AppendString(out []byte, s string) []byte {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) {
		return append(append(append(out, '"'), s...), '"')
	}
	buf := bytes.NewBuffer(out)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s)                // strings can always be encoded, and a buffer takes all
	return buf.Bytes()[:buf.Len()-1] // without the encoder's newline
}
