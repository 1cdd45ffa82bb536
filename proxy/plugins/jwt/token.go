package jwt

import (
	"encoding/base64"
	"errors"
	"strings"
)

// maxToken bounds a token in bytes. Servers' header limits are far lower; cookies and queries are bounded by them as well.
const maxToken = 32 << 10

// The texts behind "Bad token; ".
var (
	errNoPEM            = errors.New("not PEM")
	errInvalidJSON      = errors.New("invalid JSON")
	errInvalidAlg       = errors.New("invalid alg")
	errInvalidClaims    = errors.New("invalid claims")
	errInvalidSignature = errors.New("invalid signature")
	errInvalidCrit      = errors.New("invalid crit") // not Kong's: it ignores critical extensions
)

// base64url is the alphabet and form RFC 7515 §2 prescribes: no padding, no stray bits. Kong tolerates padding, but then one
// token has several spellings, and no library that signs tokens pads them.
var base64url = base64.RawURLEncoding.Strict()

// token is a parsed token. It and all it points to live in one buffer and are reused.
type token struct {
	buf    []byte
	signed []byte // header and claims as they were signed
	sig    []byte
	alg    *algorithm
	header []member
	claims []member
}

// parse reads a token in compact form (RFC 7515 §7.1) without judging its signature. Key material in the header (jwk, jku,
// x5u, x5c) is not looked at: the key is the credential's.
func (t *token) parse(text string) error {
	t.header, t.claims, t.alg, t.sig = t.header[:0], t.claims[:0], nil, nil
	if len(text) > maxToken {
		return errInvalidJSON
	}
	dot1 := strings.IndexByte(text, '.')
	if dot1 < 0 {
		return errInvalidJSON
	}
	dot2 := strings.IndexByte(text[dot1+1:], '.')
	if dot2 < 0 {
		return errInvalidJSON
	}
	dot2 += dot1 + 1

	if need := 2 * len(text); cap(t.buf) < need {
		t.buf = make([]byte, 0, need)
	}
	t.buf = append(t.buf[:0], text...)
	t.signed = t.buf[:dot2:dot2]
	header, ok := t.decode(t.signed[:dot1])
	if !ok {
		return errInvalidJSON
	}
	claims, ok := t.decode(t.signed[dot1+1:])
	if !ok {
		return errInvalidJSON
	}
	var err error
	if t.header, err = object(header, t.header); err != nil {
		return errInvalidJSON
	}
	if t.claims, err = object(claims, t.claims); err != nil {
		if wellFormed(claims) {
			return errInvalidClaims
		}
		return errInvalidJSON
	}

	if alg := find(t.header, "alg"); alg != nil && alg.kind == kindString {
		t.alg = algorithmOf(alg.text())
	}
	if t.alg == nil {
		return errInvalidAlg
	}
	// RFC 7515 §4.1.11: a critical extension that is not understood makes the token invalid, and none is. RFC 7797 §6: a
	// payload that is not encoded (b64 false) must be marked critical; it is refused even when it is not.
	if b64 := find(t.header, "b64"); find(t.header, "crit") != nil || b64 != nil && b64.kind != kindTrue {
		return errInvalidCrit
	}
	// A fourth part (JWE has five) ends up here as a '.' in the signature.
	if t.sig, ok = t.decode(t.buf[dot2+1 : len(text)]); !ok {
		return errInvalidSignature
	}
	return nil
}

// decode appends the decoded part to the buffer, which has room for it.
func (t *token) decode(part []byte) ([]byte, bool) {
	for _, c := range part {
		if c == '\r' || c == '\n' { // encoding/base64 skips them
			return nil, false
		}
	}
	start := len(t.buf)
	n, err := base64url.Decode(t.buf[start:cap(t.buf)], part)
	if err != nil {
		return nil, false
	}
	t.buf = t.buf[:start+n]
	return t.buf[start:], true
}
