package settings

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"concord/fsm/schema"
	"concord/proxy/listen"
	"concord/proxy/vault"
)

// Args is what the command line says.
type Args struct {
	Conf     string // settings file; "" searches
	Prefix   string
	LogLevel string // of --v and --vv
}

// Warning is something the node goes on without, as one line.
type Warning string

// KeyError is a key whose value cannot be used.
type KeyError struct {
	Key, Value, Source, Reason string
}

// Error names the key, the value, where it came from and what would do.
func (e *KeyError) Error() string {
	return fmt.Sprintf("%s has an invalid value: %q %s (set %s)", e.Key, e.Value, e.Reason, e.Source)
}

// SearchPath is where a settings file is looked for when none is named; the first that exists is read.
func SearchPath() []string {
	return []string{"/etc/concord/concord.conf", "/etc/concord.conf", "/etc/kong/kong.conf", "/etc/kong.conf"}
}

// The variables, in falling precedence.
var prefixes = [...]string{"CONCORD_", "KONG_"}

type value struct{ text, source string }

// Load reads the settings: arguments over CONCORD_* over KONG_* variables over the file over the defaults. An empty value
// means the default. All bad keys are reported at once, joined KeyErrors. Keys that mean nothing come back as one Warning.
func Load(args Args, environ []string) (*Settings, []Warning, error) {
	s := &Settings{keys: map[string][32]byte{}, shown: map[string]any{}}
	given := map[string]value{}
	if err := s.readFile(args.Conf, given); err != nil {
		return nil, nil, err
	}
	for _, p := range slices.Backward(prefixes[:]) {
		for _, e := range environ {
			k, v, _ := strings.Cut(e, "=")
			if k, ok := strings.CutPrefix(k, p); ok && isKey(k) {
				given[strings.ToLower(k)] = value{strings.TrimSpace(v), "by " + p + k}
			}
		}
	}
	for k, v := range map[string]string{"prefix": args.Prefix, "log_level": args.LogLevel} {
		if v != "" {
			given[k] = value{v, "on the command line"}
		}
	}

	var errs []error
	for _, k := range Keys() {
		v, ok := given[k.Name]
		delete(given, k.Name)
		if also, found := given[k.Also]; found && also.text != "" {
			v, ok = also, true
		}
		delete(given, k.Also)
		if !ok || v.text == "" {
			v = value{k.Default, "by default"}
		}
		s.show(k, v.text)
		text, err := v.text, error(nil)
		reference := schema.IsVaultReference(text)
		if reference {
			text, err = fromEnvironment(text, environ)
		}
		s.keys[k.Name] = sha256.Sum256([]byte(text))
		if err == nil {
			if err = k.set(s, text); err != nil && reference {
				err = errors.New("is not fit for this key") // the reason may quote the value
			}
		}
		if err != nil {
			if k.Secret && !reference {
				v.text = NewSecret(v.text).String()
			}
			errs = append(errs, &KeyError{k.Name, v.text, v.source, err.Error()})
		}
		if k.Name == "prefix" { // the first key: relative paths of the others hang on it
			if s.Prefix, err = filepath.Abs(s.Prefix); err != nil {
				errs = append(errs, &KeyError{k.Name, v.text, v.source, err.Error()})
			}
		}
	}
	errs = append(errs, s.crossCheck()...)
	return s, ignoredWarning(given), errors.Join(errs...)
}

// fromEnvironment resolves a vault reference. Vaults other than env are entities, which are read with the help of the settings.
func fromEnvironment(reference string, environ []string) (string, error) {
	r := vault.Resolver{Getenv: func(name string) (string, bool) {
		for _, e := range slices.Backward(environ) {
			if k, v, _ := strings.Cut(e, "="); k == name {
				return v, true
			}
		}
		return "", false
	}}
	if ref, err := vault.Parse(reference); err != nil || ref.Vault != "env" {
		return "", errors.Join(err, errors.New("settings can refer to the vault env only: {vault://env/name-of-the-variable}"))
	}
	return r.Resolve(reference)
}

// crossCheck finds keys that are fine alone and not together.
func (s *Settings) crossCheck() (errs []error) {
	for _, pair := range [][3]string{{"ssl_cert", s.SSLCert, s.SSLCertKey.Reveal()}, {"admin_ssl_cert", s.AdminSSLCert, s.AdminSSLCertKey.Reveal()}} {
		if (pair[1] == "") != (pair[2] == "") {
			errs = append(errs, fmt.Errorf("%s and %s_key go together: set both or neither", pair[0], pair[0]))
		}
	}
	if s.SSLCipherSuite == "custom" && len(s.SSLCiphers) == 0 {
		errs = append(errs, errors.New("ssl_cipher_suite is custom: name the suites in ssl_ciphers"))
	}
	if s.ClientSSL && (s.ClientSSLCert == "" || s.ClientSSLCertKey.Reveal() == "") {
		errs = append(errs, errors.New("client_ssl is on: set client_ssl_cert and client_ssl_cert_key too"))
	}
	seen := map[string]string{}
	for _, group := range []struct {
		key  string
		list []listen.Spec
	}{{"proxy_listen", s.ProxyListen}, {"admin_listen", s.AdminListen}, {"status_listen", s.StatusListen}} {
		for _, l := range group.list {
			if other, dup := seen[l.Address]; dup && !strings.HasSuffix(l.Address, ":0") {
				errs = append(errs, fmt.Errorf("%s: %s is already used by %s: give each listener its own address", group.key, l.Address, other))
			}
			seen[l.Address] = group.key
		}
	}
	return errs
}

func (s *Settings) readFile(path string, given map[string]value) error {
	candidates := []string{path}
	if path == "" {
		candidates = SearchPath()
	}
	for _, p := range candidates {
		b, err := os.ReadFile(p)
		if errors.Is(err, os.ErrNotExist) && path == "" {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot read the settings file: %w", err)
		}
		keys, err := parseConf(p, string(b))
		if err != nil {
			return err
		}
		if s.File, err = filepath.Abs(p); err != nil {
			return err
		}
		for k, v := range keys {
			given[k] = value{v, "in " + p}
		}
		return nil
	}
	return nil
}

// ignoredWarning names what is left over in one line, grouped by reason, with the nearest key for what looks like a slip.
func ignoredWarning(left map[string]value) []Warning {
	const unknown = "unknown"
	groups := map[string][]string{}
	for _, k := range slices.Sorted(maps.Keys(left)) {
		why, ok := whyIgnored(k)
		if !ok {
			why = unknown
			if near := nearest(k); near != "" {
				k += " (did you mean " + near + "?)"
			}
		}
		groups[why] = append(groups[why], k)
	}
	if len(groups) == 0 {
		return nil
	}
	var parts []string
	for _, why := range slices.Sorted(maps.Keys(groups)) {
		parts = append(parts, strings.Join(groups[why], ", ")+": "+why)
	}
	return []Warning{Warning("ignored settings: " + strings.Join(parts, "; "))}
}

// nearest is the known key within two slips of the pen, "" if there is none.
func nearest(key string) string {
	best, dist := "", 3
	for _, k := range Keys() {
		if d := distance(key, k.Name); d < dist {
			best, dist = k.Name, d
		}
	}
	return best
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			subst := diag
			if a[i] != b[j] {
				subst++
			}
			diag = row[j+1]
			row[j+1] = min(subst, row[j]+1, diag+1)
		}
	}
	return row[len(b)]
}

// Changed lists the keys in which next differs: those a running node takes over and those that need a restart.
func (s *Settings) Changed(next *Settings) (live, restart []string) {
	for _, k := range Keys() {
		switch {
		case s.keys[k.Name] == next.keys[k.Name]:
		case k.Live:
			live = append(live, k.Name)
		default:
			restart = append(restart, k.Name)
		}
	}
	slices.SortFunc(restart, cmp.Compare[string])
	return live, restart
}
