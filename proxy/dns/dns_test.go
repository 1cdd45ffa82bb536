package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// book is a resolver of fixed answers that notes what it is asked.
type book struct {
	hosts map[string][]string
	srv   map[string][]*net.SRV
	ttl   time.Duration
	asked []string
}

func (b *book) Addresses(_ context.Context, host string) ([]netip.Addr, time.Duration, error) {
	b.asked = append(b.asked, "A "+host)
	var list []netip.Addr
	for _, a := range b.hosts[host] {
		list = append(list, netip.MustParseAddr(a))
	}
	if list == nil {
		return nil, 0, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return list, b.ttl, nil
}

func (b *book) Services(_ context.Context, name string) ([]*net.SRV, time.Duration, error) {
	b.asked = append(b.asked, "SRV "+name)
	return b.srv[name], b.ttl, nil
}

func TestLookup(t *testing.T) {
	for _, tt := range []struct {
		name, order, host, last string
		services                bool
		want, asked             string
	}{
		{"address", "", "a.test", "", false, "A 10.0.0.1:80", "SRV a.test, A a.test"},
		{"what was found last time", "", "a.test", "A", false, "A 10.0.0.1:80", "A a.test"},
		{"services first", "", "s.test", "", false, "SRV 10.0.0.1:81/5", "SRV s.test, A a.test"},
		{"services last", "A,SRV", "s.test", "", false, "A 10.0.0.2:80", "A s.test"},
		{"services only if there is nothing else", "A,SRV", "only.test", "", false, "SRV 10.0.0.1:81/5", "A only.test, SRV only.test, A a.test"},
		{"services since the last time", "LAST,A,SRV", "s.test", "SRV", false, "SRV 10.0.0.1:81/5", "SRV s.test, A a.test"},
		{"services never", "A", "only.test", "", false, "", "A only.test"},
		{"services wanted", "A", "s.test", "A", true, "SRV 10.0.0.1:81/5", "SRV s.test, A a.test"},
		{"called like a service", "A", "_x.test", "", false, "SRV 10.0.0.1:81/5", "SRV _x.test, A a.test"},
		{"localhost", "", "localhost", "", true, "A 127.0.0.1:80", "A localhost"},
		{"IPv4 before IPv6", "A,AAAA", "both.test", "", false, "A 10.0.0.3:80", "A both.test"},
		{"IPv6 before IPv4", "AAAA,A", "both.test", "", false, "AAAA [2001:db8::1]:80", "A both.test"},
		{"IPv6 alone, though not listed", "A", "six.test", "", false, "AAAA [2001:db8::1]:80", "A six.test"},
		{"nothing", "", "none.test", "", false, "", "SRV none.test, A none.test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			service := []*net.SRV{{Target: "a.test.", Port: 81, Priority: 1, Weight: 5}}
			b := &book{
				hosts: map[string][]string{"a.test": {"10.0.0.1"}, "s.test": {"10.0.0.2"}, "localhost": {"127.0.0.1"}, "both.test": {"2001:db8::1", "::ffff:10.0.0.3"}, "six.test": {"2001:db8::1"}},
				srv:   map[string][]*net.SRV{"s.test": service, "only.test": service, "_x.test": service, "localhost": service},
			}
			var p Policy
			if tt.order != "" {
				p.Order = strings.Split(tt.order, ",")
			}
			p = p.WithDefaults()
			a, err := p.Lookup(t.Context(), b, tt.host, 80, tt.last, tt.services)
			got := ""
			if err == nil {
				got = a.Kind
				for _, r := range a.Records {
					got += " " + r.Addr.String()
					if r.Weight > 0 {
						got += fmt.Sprint("/", r.Weight)
					}
				}
			}
			if got != tt.want || NotFound(err) != (tt.want == "") {
				t.Errorf("got %q, %v", got, err)
			}
			if asked := strings.Join(b.asked, ", "); asked != tt.asked {
				t.Errorf("asked %s", asked)
			}
		})
	}
}

// TestServicesFail: while nobody answers for the services of a name, that it has no address does not mean that there is no such name.
func TestServicesFail(t *testing.T) {
	p := Policy{}.WithDefaults()
	for last, gone := range map[string]bool{"": false, "SRV": false, "A": true} {
		if _, err := p.Lookup(t.Context(), failing{&book{}}, "only.test", 80, last, true); err == nil || NotFound(err) != gone {
			t.Errorf("found %q before: %v", last, err)
		}
	}
}

type failing struct{ *book }

func (failing) Services(context.Context, string) ([]*net.SRV, time.Duration, error) {
	return nil, 0, errors.New("no network")
}

func TestTimes(t *testing.T) {
	p := Policy{}.WithDefaults()
	for ttl, want := range map[time.Duration]time.Duration{0: 5 * time.Second, time.Millisecond: time.Second, time.Minute: time.Minute, 48 * time.Hour: time.Hour} {
		if got := p.hold(ttl); got != want {
			t.Errorf("%v holds %v", ttl, got)
		}
	}
	broken, none := errors.New("broken"), &net.DNSError{IsNotFound: true}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		if got := p.Retry(broken, i); got != want*time.Second {
			t.Errorf("failure %d holds %v", i, got)
		}
	}
	if got := p.Retry(none, 0); got != 30*time.Second {
		t.Errorf("no such name holds %v", got)
	}
	p = Policy{ValidTTL: time.Minute, ErrorTTL: -1, NotFoundTTL: -1}.WithDefaults()
	if p.hold(time.Second) != time.Minute || p.Retry(broken, 9) <= 0 || p.Retry(none, 0) <= 0 {
		t.Errorf("settings: %v, %v, %v", p.hold(time.Second), p.Retry(broken, 9), p.Retry(none, 0))
	}
}

// TestHosts: names of the file are not asked for, and a change of it is seen.
func TestHosts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hosts")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# comment\n10.0.0.1 a.test A2.test # more\n\n::1 six.test\nnonsense x.test\n10.0.0.9\n10.0.0.2 a.test\n")
	h := NewHosts(file)
	r := &System{Servers: []string{nameserver(t)}, Hosts: h}
	for host, want := range map[string]string{
		"a.test": "[10.0.0.1 10.0.0.2]", "a2.TEST.": "[10.0.0.1]", "six.test": "[::1]", "x.test.": "[10.0.0.1 10.0.0.2]", // the last from the name server
	} {
		if got, _, err := r.Addresses(t.Context(), host); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v", host, got, err)
		}
	}
	if list, _, err := r.Services(t.Context(), "a.test"); err != nil || list != nil {
		t.Errorf("services of a name in the file: %v, %v", list, err)
	}
	write("10.0.0.77 a.test\n")
	h.looked = h.looked.Add(-hostsInterval)
	if got := h.addresses("a.test"); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("10.0.0.77")}) {
		t.Errorf("after a change: %v", got)
	}
	if got := NewHosts(file + ".none").addresses("a.test"); got != nil {
		t.Errorf("no file: %v", got)
	}
}

func FuzzHosts(f *testing.F) {
	f.Add("10.0.0.1 a b # c\n::1 d\n")
	f.Fuzz(func(t *testing.T, text string) {
		for name, list := range parseHosts(strings.NewReader(text)) {
			if len(list) == 0 || strings.ContainsAny(name, " \t\n#") {
				t.Errorf("%q: %v", name, list)
			}
		}
	})
}
