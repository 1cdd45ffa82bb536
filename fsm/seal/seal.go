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

// KeySize is the length of a sealing key in bytes.
const KeySize = 32

const (
	member    = "$sealed"
	opening   = `{"` + member + `":"`
	closing   = `"}`
	nonceSize = 12
)

var encoding = base64.RawURLEncoding.Strict()

// MissingKeyError says that a row is sealed with a key this node does not have. The node cannot go on.
type MissingKeyError struct{ Key string }

func (e *MissingKeyError) Error() string {
	return fmt.Sprintf("row is sealed with key %q, which the key file of this node lacks: copy the key file from another node of the cluster, or let this node join again", e.Key)
}

// Keyring holds the sealing keys of a cluster: the current one seals, all of them open. It is immutable.
type Keyring struct {
	current string
	keys    map[string]key
}

// key is a master key and what is derived from it; one subkey per purpose, so that no output of one tells about the other.
type key struct {
	master []byte
	aead   cipher.AEAD
	nonce  []byte // HMAC key of the synthetic nonces
}

var keyID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// New makes a keyring of master keys of KeySize bytes by id; current seals.
func New(current string, keys map[string][]byte) (*Keyring, error) {
	k := &Keyring{current: current, keys: make(map[string]key, len(keys))}
	for id, master := range keys {
		if !keyID.MatchString(id) {
			return nil, fmt.Errorf("seal: key id %q: must be 1 to 32 characters of A-Z a-z 0-9 _ -", id)
		}
		if len(master) != KeySize {
			return nil, fmt.Errorf("seal: key %q: has %d bytes, must have %d", id, len(master), KeySize)
		}
		sub, err := derive(master)
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

func derive(master []byte) (key, error) {
	enc, err := hkdf.Key(sha256.New, master, nil, "concord seal 1 aes-256-gcm", 32)
	if err != nil {
		return key{}, err
	}
	nonce, err := hkdf.Key(sha256.New, master, nil, "concord seal 1 nonce", 32)
	if err != nil {
		return key{}, err
	}
	block, err := aes.NewCipher(enc)
	if err != nil {
		return key{}, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return key{}, err
	}
	return key{master: bytes.Clone(master), aead: aead, nonce: nonce}, nil
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

// aad binds a sealed value to its row: moved to another row it does not open.
func aad(table uint16, id [16]byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, 18), table), id[:]...)
}

// Seal encrypts clear for the row and gives the value to put in its place. The same clear text in the same row gives the same
// bytes: the nonce is a MAC of both, so no randomness is needed and a nonce can repeat only with its plain text.
func (k *Keyring) Seal(table uint16, id [16]byte, clear string) (any, error) {
	x, bind := k.keys[k.current], aad(table, id)
	mac := hmac.New(sha256.New, x.nonce)
	mac.Write(bind)
	mac.Write([]byte(clear))
	nonce := mac.Sum(nil)[:nonceSize]
	box := x.aead.Seal(nonce, nonce, []byte(clear), bind)
	return map[string]any{member: k.current + "." + encoding.EncodeToString(box)}, nil
}

// Open replaces every sealed value in a row's canonical JSON by its string. Without any, raw itself comes back.
//
// The search for the opening bytes is safe on text chosen by users: canonical JSON escapes each quote inside a string, so the
// bytes {"$ can only begin an object whose first key begins with $, and schemas refuse such keys.
func (k *Keyring) Open(table uint16, id [16]byte, raw []byte) ([]byte, error) {
	at := bytes.Index(raw, []byte(opening))
	if at < 0 {
		return raw, nil
	}
	out := make([]byte, 0, len(raw))
	for ; at >= 0; at = bytes.Index(raw, []byte(opening)) {
		out = append(out, raw[:at]...)
		raw = raw[at+len(opening):]
		text, rest, ok := bytes.Cut(raw, []byte(closing))
		if !ok {
			return nil, errors.New("sealed value has no end")
		}
		clear, err := k.open(table, id, string(text))
		if err != nil {
			return nil, err
		}
		if out, err = appendString(out, clear); err != nil {
			return nil, err
		}
		raw = rest
	}
	return append(out, raw...), nil
}

func (k *Keyring) open(table uint16, id [16]byte, text string) (string, error) {
	name, data, _ := strings.Cut(text, ".")
	x, ok := k.keys[name]
	switch {
	case !ok && keyID.MatchString(name):
		return "", &MissingKeyError{Key: name}
	case !ok:
		return "", errors.New("sealed value has no key id")
	}
	box, err := encoding.DecodeString(data)
	if err != nil || len(box) < nonceSize {
		return "", errors.New("sealed value is malformed")
	}
	clear, err := x.aead.Open(box[nonceSize:nonceSize], box[:nonceSize], box[nonceSize:], aad(table, id))
	if err != nil {
		return "", fmt.Errorf("sealed value does not open with key %q: it was altered, moved from another row, or the key file holds another key under this id", name)
	}
	return string(clear), nil
}

func appendString(out []byte, s string) ([]byte, error) {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) {
		return append(append(append(out, '"'), s...), '"'), nil
	}
	buf := bytes.NewBuffer(out)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return nil, err
	}
	b := buf.Bytes()
	return b[:len(b)-1], nil // without the encoder's newline
}
