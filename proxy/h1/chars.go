package h1

import "unsafe"

// What a byte may be, one bit each.
const (
	isToken  = 1 << iota // RFC 9110 §5.6.2 tchar
	isTarget             // what a request target may hold: no control characters, spaces or '#'; pickier rules are the path normaliser's
	isURI                // the same without what is not ASCII: clients write UTF-8 as it is and nginx takes that, but it is sent escaped
	isHost               // RFC 3986 reg-name, ':' included; '@' is not, so there is no userinfo
	isDigit
)

var class = func() (t [256]uint8) {
	for c := range 256 {
		b := byte(c)
		alnum := '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
		if alnum || inSet(b, "!#$%&'*+-.^_`|~") {
			t[c] |= isToken
		}
		if b > 0x20 && b != 0x7f && b != '#' {
			t[c] |= isTarget
			if b < 0x7f {
				t[c] |= isURI
			}
		}
		if alnum || inSet(b, "-._~!$&'()*+,;=%:") {
			t[c] |= isHost
		}
		if '0' <= b && b <= '9' {
			t[c] |= isDigit
		}
	}
	return t
}()

func inSet(c byte, set string) bool {
	for i := 0; i < len(set); i++ {
		if set[i] == c {
			return true
		}
	}
	return false
}

func allOf(b []byte, mask uint8) bool {
	for _, c := range b {
		if class[c]&mask == 0 {
			return false
		}
	}
	return len(b) > 0
}

// validValue tells whether b may be a field value: no control characters but HTAB (RFC 9110 §5.5). Eight bytes at a time.
func validValue(b []byte) bool {
	const (
		ones = 0x0101010101010101
		high = 0x8080808080808080
	)
	i := 0
	for ; i+8 <= len(b); i += 8 {
		v := *(*uint64)(unsafe.Pointer(&b[i]))
		// A byte below 0x20 borrows into its high bit; a byte 0x7f xor 0x7f is zero and does the same.
		low := (v - ones*0x20) & ^v & high
		del := v ^ ones*0x7f
		del = (del - ones) & ^del & high
		if low|del != 0 && !validSlow(b[i:i+8]) {
			return false
		}
	}
	return validSlow(b[i:])
}

func validSlow(b []byte) bool {
	for _, c := range b {
		if c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// fold tells whether b equals s, which is lower case, ignoring the case of b.
func fold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if c != s[i] && (c|0x20 != s[i] || c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// trim removes optional whitespace (RFC 9110 §5.6.3) from both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// parseLength reads 1 to 18 decimal digits and nothing else, so that it cannot overflow.
func parseLength(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if class[c]&isDigit == 0 {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// str is a string over the bytes of a connection buffer.
func str(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf is the read-only bytes of a string.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
