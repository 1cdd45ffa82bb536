package settings

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"concord/proxy"
	"concord/proxy/listen"
)

// A setter parses a key's text into its field. Its error is the reason alone; Load adds key, value and source.
type setter func(s *Settings, v string) error

func text(f func(*Settings) *string) setter {
	return func(s *Settings, v string) error { *f(s) = v; return nil }
}

// list takes names, of the allowed ones if any are given. "off" is the empty list, not nil.
func list(f func(*Settings) *[]string, allowed ...string) setter {
	return func(s *Settings, v string) error {
		*f(s) = []string{}
		if v == off {
			return nil
		}
		for _, e := range splitList(v) {
			if len(allowed) > 0 && !slices.ContainsFunc(allowed, func(a string) bool { return strings.EqualFold(a, e) }) {
				return fmt.Errorf("%q is not known (%s)", e, strings.Join(allowed, ", "))
			}
			*f(s) = append(*f(s), e)
		}
		return nil
	}
}

// origins takes URLs, of which browsers name the origin only (RFC 6454, 4).
func origins(f func(*Settings) *[]string) setter {
	return func(s *Settings, v string) error {
		if err := list(f)(s, v); err != nil {
			return err
		}
		for i, text := range *f(s) {
			u, err := url.Parse(strings.ToLower(text))
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
				return fmt.Errorf("%q is not a URL such as https://manager.example.com:8445", text)
			}
			if u.Scheme == "http" && u.Port() == "80" || u.Scheme == "https" && u.Port() == "443" {
				u.Host = u.Host[:strings.LastIndexByte(u.Host, ':')]
			}
			(*f(s))[i] = u.Scheme + "://" + u.Host
		}
		return nil
	}
}

const off = "off"

// path resolves a relative path against the prefix; "off" becomes "".
func path(f func(*Settings) *string) setter {
	return func(s *Settings, v string) error {
		*f(s) = ""
		if v != off && v != "" {
			*f(s) = resolve(s, v)
		}
		return nil
	}
}

// certificate takes a path, or the PEM text itself.
func certificate(s *Settings, v string) string {
	if v == "" || isPEM(v) {
		return v
	}
	return resolve(s, v)
}

func isPEM(v string) bool { return strings.HasPrefix(strings.TrimSpace(v), "-----BEGIN ") }

// ReadPEM reads what a certificate key holds: the PEM text itself, or the path of a file with it.
func ReadPEM(v string) ([]byte, error) {
	if isPEM(v) {
		return []byte(v), nil
	}
	return os.ReadFile(v)
}

func resolve(s *Settings, v string) string {
	if filepath.IsAbs(v) {
		return v
	}
	return filepath.Join(s.Prefix, v)
}

func boolean(f func(*Settings) *bool) setter {
	return func(s *Settings, v string) error {
		switch strings.ToLower(v) {
		case "on", "true":
			*f(s) = true
		case off, "false":
			*f(s) = false
		default:
			return errors.New("is neither on nor off")
		}
		return nil
	}
}

func integer(low, high int, f func(*Settings) *int) setter {
	return func(s *Settings, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < low || n > high {
			return fmt.Errorf("is not a whole number from %d to %d", low, high)
		}
		*f(s) = n
		return nil
	}
}

// seconds takes a number of seconds, or a number with a unit (ms, s, m, h), as nginx does.
func seconds(f func(*Settings) *time.Duration) setter {
	return func(s *Settings, v string) error {
		n, err := strconv.ParseFloat(v, 64)
		d := time.Duration(n * float64(time.Second))
		if err != nil {
			d, err = time.ParseDuration(v)
		}
		if err != nil || d < 0 || n > math.MaxInt32 || math.IsNaN(n) {
			return errors.New("is not a number of seconds such as 60, nor a time such as 500ms, 30s or 5m")
		}
		*f(s) = d
		return nil
	}
}

// timeout is seconds that may not be 0.
func timeout(f func(*Settings) *time.Duration) setter {
	return func(s *Settings, v string) error {
		if err := seconds(f)(s, v); err != nil {
			return err
		}
		if *f(s) < time.Millisecond {
			return errors.New("is not above 0: every client must be given some time, and a limit")
		}
		return nil
	}
}

// size takes bytes, or a number with k, m or g, as nginx does.
func size(f func(*Settings) *int64) setter {
	return func(s *Settings, v string) error {
		digits, shift := v, 0
		for i, unit := range []string{"k", "m", "g"} {
			if d, ok := strings.CutSuffix(strings.ToLower(v), unit); ok {
				digits, shift = d, 10*(i+1)
			}
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64>>shift {
			return errors.New("is not a size such as 8192, 8k, 10m or 1g")
		}
		*f(s) = n << shift
		return nil
	}
}

// headerBuffers takes nginx's "number size".
func headerBuffers(s *Settings, v string) error {
	const low, high = 1 << 10, 16 << 20
	number, each, _ := strings.Cut(v, " ")
	var n int64
	count, err := strconv.Atoi(number)
	if err != nil || size(func(*Settings) *int64 { return &n })(s, strings.TrimSpace(each)) != nil {
		return errors.New("is not a number and a size, such as 4 16k")
	}
	if count < 1 || n < low || n > high || int64(count) > high/n {
		return errors.New("is out of range: the size is at least 1k, number times size at most 16m")
	}
	s.MaxTarget, s.MaxHead = int(n), int(n)*count
	return nil
}

func connections(s *Settings, v string) error {
	if v == "auto" {
		v = "65536"
	}
	return integer(1, math.MaxInt32, func(s *Settings) *int { return &s.MaxConns })(s, v)
}

func pathEscapes(s *Settings, v string) error {
	switch v {
	case "check":
		s.PathEscapes = proxy.CheckPathEscapes
	case "refuse":
		s.PathEscapes = proxy.RefusePathEscapes
	case "pass":
		s.PathEscapes = proxy.PassPathEscapes
	default:
		return errors.New("is not check, refuse or pass")
	}
	return nil
}

// template reads the file of an error template. A reload takes over a new text too.
func template(key, mediaType string) setter {
	return func(s *Settings, v string) error {
		if v == "" {
			return nil
		}
		b, err := os.ReadFile(resolve(s, v))
		if err != nil {
			return fmt.Errorf("cannot be read: %w", err)
		}
		if err := proxy.CheckTemplate(string(b)); err != nil {
			return err
		}
		if s.ErrorTemplates == nil {
			s.ErrorTemplates = map[string]string{}
		}
		s.ErrorTemplates[mediaType] = string(b)
		s.keys[key] = sha256.Sum256(b)
		return nil
	}
}

// The levels above slog's own: crit and what Kong has above it silence ordinary errors.
const (
	LevelNotice = slog.LevelInfo + 2
	LevelCrit   = slog.LevelError + 4
)

var levels = []struct {
	name  string
	level slog.Level
}{
	{"debug", slog.LevelDebug}, {"info", slog.LevelInfo}, {"notice", LevelNotice}, {"warn", slog.LevelWarn}, {"error", slog.LevelError},
	{"crit", LevelCrit}, {"alert", LevelCrit}, {"emerg", LevelCrit},
}

// LevelName is the word for a level, for use as slog's level text.
func LevelName(l slog.Level) string {
	name := levels[0].name
	for _, e := range levels {
		if l >= e.level && e.name != "alert" && e.name != "emerg" {
			name = e.name
		}
	}
	return name
}

// ParseLevel is the reverse of LevelName.
func ParseLevel(name string) (slog.Level, bool) {
	for _, e := range levels {
		if e.name == name {
			return e.level, true
		}
	}
	return 0, false
}

func level(s *Settings, v string) error {
	if l, ok := ParseLevel(v); ok {
		s.LogLevel = l
		return nil
	}
	var names []string
	for _, e := range levels {
		names = append(names, e.name)
	}
	return fmt.Errorf("is not a log level (%s)", strings.Join(names, ", "))
}

// networks takes addresses and CIDR ranges. Kong's "unix:" has no meaning here and is left out.
func networks(f func(*Settings) *[]netip.Prefix) setter {
	return func(s *Settings, v string) error {
		*f(s) = nil
		for _, e := range splitList(v) {
			if e == "unix:" {
				continue
			}
			p, err := netip.ParsePrefix(e)
			if err != nil {
				a, err := netip.ParseAddr(e)
				if err != nil {
					return fmt.Errorf("%q is neither an IP address nor a range such as 10.0.0.0/8", e)
				}
				p = netip.PrefixFrom(a, a.BitLen())
			}
			*f(s) = append(*f(s), p.Masked())
		}
		return nil
	}
}

// address takes host:port; "" is allowed where the node chooses for itself.
func address(wild bool, f func(*Settings) *string) setter {
	return func(s *Settings, v string) error {
		if v != "" {
			host, _, err := splitAddr(v)
			if err != nil {
				return err
			}
			if a, perr := netip.ParseAddr(host); !wild && perr == nil && a.IsUnspecified() {
				return errors.New("is an address nobody can connect to: name the address under which the other nodes reach this one")
			}
		}
		*f(s) = v
		return nil
	}
}

func splitAddr(v string) (host string, port int, err error) {
	bad := fmt.Errorf("%q is not an address such as 0.0.0.0:8000 or [::1]:8000", v)
	i := strings.LastIndexByte(v, ':')
	if i <= 0 {
		return "", 0, bad
	}
	host, p := v[:i], v[i+1:]
	if h, ok := strings.CutPrefix(host, "["); ok {
		host, ok = strings.CutSuffix(h, "]")
		if a, aerr := netip.ParseAddr(host); !ok || aerr != nil || !a.Is6() {
			return "", 0, bad
		}
	} else if strings.ContainsAny(host, ":/[] ") {
		return "", 0, bad
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 || p[0] == '+' {
		return "", 0, bad
	}
	return host, port, nil
}

// streamLog takes a path, and behind it the name of the only format there is.
func streamLog(s *Settings, v string) error {
	if fields := strings.Fields(v); len(fields) == 2 {
		if fields[1] != "basic" {
			return fmt.Errorf("%q is not a format of stream logs: write basic, or leave it out", fields[1])
		}
		v = fields[0]
	}
	return path(func(s *Settings) *string { return &s.StreamLog })(s, v)
}

// listeners takes Kong's "address:port flag flag, …".
func listeners(http3 bool, f func(*Settings) *[]listen.Spec) setter {
	return func(s *Settings, v string) error {
		specs, err := listen.Parse(v)
		for _, l := range specs {
			if err == nil && l.UDP {
				err = fmt.Errorf("%q: udp is for stream_listen", l)
			}
			if err == nil && l.HTTP3 && !http3 {
				err = fmt.Errorf("%q: http3 is for proxy_listen", l)
			}
		}
		*f(s) = specs
		return err
	}
}

// streamListeners takes what nginx takes for streams.
func streamListeners(f func(*Settings) *[]listen.Spec) setter {
	return func(s *Settings, v string) error {
		specs, err := listen.Parse(v)
		for _, l := range specs {
			if err == nil && (l.HTTP2 || l.HTTP3) {
				err = fmt.Errorf("%q: http2 and http3 are for proxy_listen: streams know no HTTP", l)
			}
		}
		*f(s) = specs
		return err
	}
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)

func name(s *Settings, v string) error {
	if v == "" {
		v = "concord"
		if h, err := os.Hostname(); err == nil && nameForm.MatchString(h) {
			v = h
		}
	}
	if !nameForm.MatchString(v) {
		return errors.New("is not a node name: use up to 64 letters, digits, dots, dashes and underscores, beginning and ending with a letter or digit")
	}
	s.NodeName = v
	return nil
}

func errorType(s *Settings, v string) error {
	types := []string{"text/plain", "text/html", "application/json", "application/xml"}
	if !slices.Contains(types, v) {
		return fmt.Errorf("is not a type of error body (%s)", strings.Join(types, ", "))
	}
	s.ErrorDefaultType = v
	return nil
}

func logFormat(s *Settings, v string) error {
	if v != "combined" && v != "json" {
		return errors.New("is not a format of access logs: write combined or json")
	}
	s.AccessLogJSON = v == "json"
	return nil
}

// resolvers takes addresses of name servers.
func resolvers(s *Settings, v string) error {
	s.DNSServers = nil
	for _, e := range splitList(v) {
		at, err := netip.ParseAddrPort(e)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(strings.Trim(e, "[]")); err != nil {
				return fmt.Errorf("%q is not the address of a name server, such as 10.0.0.2 or 127.0.0.1:8600", e)
			}
			at = netip.AddrPortFrom(a, 53)
		}
		s.DNSServers = append(s.DNSServers, at.String())
	}
	return nil
}

// dnsOrder takes kinds of records.
func dnsOrder(s *Settings, v string) error {
	s.DNS.Order = nil
	for _, e := range splitList(v) {
		e = strings.ToUpper(e)
		if !slices.Contains([]string{"LAST", "SRV", "A", "AAAA", "CNAME"}, e) {
			return fmt.Errorf("%q is not a kind of record (LAST, SRV, A, AAAA, CNAME)", e)
		}
		s.DNS.Order = append(s.DNS.Order, e)
	}
	if !slices.Contains(s.DNS.Order, "A") && !slices.Contains(s.DNS.Order, "AAAA") {
		return errors.New("lacks A and AAAA: without addresses nothing can be reached")
	}
	return nil
}
