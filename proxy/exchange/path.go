package exchange

import (
	"errors"
	"strings"
)

// Errors of NormalizePath. Both are answered with 400.
var (
	ErrPathEscape    = errors.New("path: a % is not followed by two hexadecimal digits")
	ErrPathAmbiguous = errors.New(`path: contains %00 or a raw backslash`)
)

// What a byte means in a path.
const (
	pathPlain    = 0
	pathPercent  = 1 << iota
	pathDot      // may begin a dot segment
	pathBad      // refused when raw: backslash
	pathReserved // stays escaped: RFC 3986 §2.2, and '%' itself so that nothing is decoded twice
	pathEscape   // must be escaped when sent
)

var pathClass = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case c <= 0x20 || c >= 0x7f:
			t[c] = pathEscape
		case strings.IndexByte("\"<>^`{|}", byte(c)) >= 0:
			t[c] = pathEscape
		case strings.IndexByte(":/?#[]@!$&'()*+,;=", byte(c)) >= 0:
			t[c] = pathReserved
		}
	}
	t['#'] |= pathEscape
	t['?'] |= pathEscape
	t['%'] = pathPercent | pathReserved
	t['.'] = pathDot
	t['\\'] = pathBad | pathReserved | pathEscape
	return t
}()

// NormalizePath brings a path to the one form that is routed on and sent upstream, as Kong does: escapes of bytes that are
// not reserved are decoded, remaining ones get upper-case digits, "//" is merged, "." and ".." segments are removed.
// Escaped separators stay data, and what else they may be taken for is for OtherReading to say; %00, which ends the path
// for some upstreams, is refused. Control characters stay escaped.
// A path that is already normal is returned as it is, without allocating.
func NormalizePath(path string) (string, error) {
	plain, err := pathIsNormal(path)
	if plain || err != nil {
		return path, err
	}
	b, err := appendNormalPath(make([]byte, 0, len(path)+1), path)
	return string(b), err
}

// NormalizePath is NormalizePath with the result in the exchange's own memory.
func (x *Exchange) NormalizePath(path string) (string, error) {
	plain, err := pathIsNormal(path)
	if plain || err != nil {
		return path, err
	}
	b, err := appendNormalPath(x.Scratch(), path)
	if err != nil {
		return "", err
	}
	return x.Keep(b), nil
}

func pathIsNormal(path string) (bool, error) {
	if path == "" || path[0] != '/' {
		return false, nil
	}
	var seen uint8
	double := false
	last := byte(0)
	for i := 0; i < len(path); i++ {
		c := path[i]
		seen |= pathClass[c]
		double = double || (c == '/' && last == '/')
		last = c
	}
	if seen&pathBad != 0 {
		return false, ErrPathAmbiguous
	}
	if double || seen&pathPercent != 0 {
		return false, nil
	}
	if seen&pathDot != 0 {
		for i := strings.Index(path, "/."); i >= 0; {
			rest := path[i+2:]
			if rest == "" || rest[0] == '/' || rest == "." || strings.HasPrefix(rest, "./") {
				return false, nil
			}
			j := strings.Index(rest, "/.")
			if j < 0 {
				break
			}
			i += 2 + j
		}
	}
	return true, nil
}

func appendNormalPath(dst []byte, path string) ([]byte, error) {
	base := len(dst)
	dst = append(dst, '/')
	for i := 0; i < len(path); i++ {
		c := path[i]
		escaped := false
		if c == '%' {
			if i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2]) {
				return nil, ErrPathEscape
			}
			c = unhex(path[i+1])<<4 | unhex(path[i+2])
			if c == 0 {
				return nil, ErrPathAmbiguous
			}
			escaped = pathClass[c]&pathReserved != 0 || c < 0x20 || c == 0x7f
			i += 2
		} else if c == '\\' {
			return nil, ErrPathAmbiguous
		}
		switch {
		case escaped:
			dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
		case c == '/':
			dst = endSegment(dst, base)
		default:
			dst = append(dst, c)
		}
	}
	// The last segment: "." and ".." leave the slash before them.
	switch seg := lastSegment(dst, base); {
	case seg == ".":
		dst = dst[:len(dst)-1]
	case seg == "..":
		dst = parent(dst, base)
	}
	return dst, nil
}

// endSegment adds a slash unless one is there already, dropping a dot segment that ends here.
func endSegment(dst []byte, base int) []byte {
	switch lastSegment(dst, base) {
	case "":
		return dst
	case ".":
		return dst[:len(dst)-1]
	case "..":
		return parent(dst, base)
	}
	return append(dst, '/')
}

// lastSegment is what stands behind the last slash: "", ".", ".." or something else.
func lastSegment(dst []byte, base int) string {
	n := len(dst)
	switch {
	case dst[n-1] == '/':
		return ""
	case dst[n-1] != '.':
		return "x"
	case dst[n-2] == '/':
		return "."
	case dst[n-2] == '.' && n-3 >= base && dst[n-3] == '/':
		return ".."
	}
	return "x"
}

// parent removes "/seg/.." and leaves the slash before seg; the root has no parent.
func parent(dst []byte, base int) []byte {
	dst = dst[:len(dst)-len("..")]
	for n := len(dst) - 1; n > base; {
		n--
		if dst[n] == '/' {
			return dst[:n+1]
		}
	}
	return dst[:base+1]
}

// HasOtherReading tells whether a normalised path holds what upstreams are known to read in different ways: an escaped
// separator, or parameters of a segment (";"). It is quick for the ordinary path.
func HasOtherReading(path string) bool {
	return strings.IndexByte(path, ';') >= 0 || HasEscapedSeparator(path)
}

// HasEscapedSeparator tells whether a normalised path holds %2F, %5C, %23, %3B or %3F.
func HasEscapedSeparator(path string) bool {
	for {
		i := strings.IndexByte(path, '%')
		if i < 0 || i+2 >= len(path) {
			return false
		}
		if separator(path[i:]) != 0 {
			return true
		}
		path = path[i+3:]
	}
}

// separator is the separator whose escape s begins with; 0: none.
func separator(s string) byte {
	if len(s) < 3 || s[0] != '%' {
		return 0
	}
	switch s[1:3] {
	case "2F":
		return '/'
	case "5C":
		return '\\'
	case "23":
		return '#'
	case "3B":
		return ';'
	case "3F":
		return '?'
	}
	return 0
}

// OtherReading is what a careless upstream makes of a normalised path: it decodes the separators that are escaped, takes a
// backslash for a slash, ends the path at # and ?, and drops the parameters of segments. ok is false when that brings a
// dot segment to light, which no honest client sends.
func (x *Exchange) OtherReading(path string) (other string, ok bool) {
	b := append(x.Scratch(), '/')
	params := false
	for i := 0; i < len(path); i++ {
		c, n := path[i], 1
		if s := separator(path[i:]); s != 0 {
			c, n = s, 3
		}
		switch c {
		case '/', '\\':
			if seg := lastSegment(b, 0); seg == "." || seg == ".." {
				return "", false
			}
			b, params = endSegment(b, 0), false
		case '#', '?':
			path = ""
		case ';':
			params = true
		default:
			if !params {
				b = append(b, c)
			}
		}
		i += n - 1
	}
	seg := lastSegment(b, 0)
	return x.Keep(b), seg != "." && seg != ".."
}

// AppendEscapedPath appends path with every byte escaped that may not stand in a path (RFC 3986 §3.3). Escapes that are
// there already stay as they are.
func AppendEscapedPath(dst []byte, path string) []byte {
	for i := 0; i < len(path); i++ {
		if c := path[i]; pathClass[c]&pathEscape != 0 {
			dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}

// AppendEscapedQuery appends query with every byte escaped that would end it or the request line.
func AppendEscapedQuery(dst []byte, query string) []byte {
	for i := 0; i < len(query); i++ {
		if c := query[i]; c <= 0x20 || c >= 0x7f || c == '#' {
			dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}

const upperHex = "0123456789ABCDEF"

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}
