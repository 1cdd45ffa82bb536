package balancer

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"concord/proxy/dns"
)

// live lists the addresses in use, with their weights where they differ from 100.
func (p *Pool) live() string {
	var list []string
	for _, m := range p.plan.Load().live {
		s := m.peer.key.addr.String()
		if m.weight != 100 {
			s += fmt.Sprint(" ", m.weight)
		}
		list = append(list, s)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &book{hosts: map[string]page{"a.test": {addrs: addrs("10.0.0.1"), ttl: 30 * time.Second}}}
		s := newSet(t, Options{Resolver: r, DNS: dns.Policy{StaleTTL: time.Minute}})
		s.Update(true, change(t, `{}`, "a.test:80"))
		p := s.Pool("up")
		after := func(d time.Duration, live string, questions int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := p.live(); got != live {
				t.Errorf("live are %q, want %q", got, live)
			}
			if got := r.questions("A a.test"); got != questions {
				t.Errorf("asked %d times, want %d", got, questions)
			}
		}
		after(0, "10.0.0.1:80", 1)
		r.write(func(b *book) { b.hosts["a.test"] = page{addrs: addrs("10.0.0.2", "10.0.0.1"), ttl: 10 * time.Second} })
		after(29*time.Second, "10.0.0.1:80", 1)
		after(time.Second, "10.0.0.1:80, 10.0.0.2:80", 2)
		// The old answer serves while the resolver fails, which is asked again ever more seldom: after 1, 2, 4, … s.
		r.write(func(b *book) { b.hosts["a.test"] = page{err: errors.New("no network")} })
		after(10*time.Second, "10.0.0.1:80, 10.0.0.2:80", 3)
		after(time.Second, "10.0.0.1:80, 10.0.0.2:80", 4)
		after(30*time.Second, "10.0.0.1:80, 10.0.0.2:80", 8)
		// A minute after it had to be renewed it is too old.
		after(30*time.Second, "", 9)
		view, _ := s.TargetHealth(upstreamID)
		if v := view["a.test:80"]; v["health"] != DNSError || v["data"].(map[string]any)["dns"] != "no network" {
			t.Errorf("view is %v", v)
		}
		// That there is no such name holds for 30 s.
		r.write(func(b *book) { delete(b.hosts, "a.test") })
		time.Sleep(30 * time.Second)
		synctest.Wait()
		n := r.questions("A a.test")
		after(29*time.Second, "", n)
		r.write(func(b *book) { b.hosts["a.test"] = page{addrs: addrs("10.0.0.3")} })
		time.Sleep(time.Second)
		synctest.Wait()
		n++
		after(0, "10.0.0.3:80", n)
		after(5*time.Second, "10.0.0.3:80", n+1) // no time to live: the default
		// That there is no such name is an answer: the old one does not serve any longer.
		r.write(func(b *book) { delete(b.hosts, "a.test") })
		after(5*time.Second, "", n+2)
		// A target that is gone is not asked for.
		s.Update(false, change(t, `{}`))
		after(time.Hour, "", n+2)
	})
}

func TestExpansion(t *testing.T) {
	srv := func(target string, port, priority, weight uint16) *net.SRV {
		return &net.SRV{Target: target, Port: port, Priority: priority, Weight: weight}
	}
	hosts := map[string]page{
		"both.test":  {addrs: addrs("2001:db8::1", "10.0.0.2", "10.0.0.1", "10.0.0.2")},
		"six.test":   {addrs: addrs("2001:db8::1")},
		"four6.test": {addrs: addrs("::ffff:10.0.0.9")},
		"empty.test": {},
		"s1.test":    {addrs: addrs("10.0.1.1")},
		"s2.test":    {addrs: addrs("10.0.1.2", "10.0.1.3")},
		"svc.test":   {addrs: addrs("10.0.9.9")},
		"localhost":  {addrs: addrs("127.0.0.1")},
	}
	services := map[string]page{
		"svc.test":       {srv: []*net.SRV{srv("s1.test.", 81, 1, 30), srv("s2.test.", 82, 1, 60), srv("s1.test.", 99, 2, 10)}},
		"_web._tcp.test": {srv: []*net.SRV{srv("s1.test.", 0, 1, 0), srv("missing.test.", 84, 1, 5)}},
		"ip.test":        {srv: []*net.SRV{srv("10.0.2.1.", 85, 1, 7)}},
		"dead.test":      {srv: []*net.SRV{srv("missing.test.", 84, 1, 5)}},
		"localhost":      {srv: []*net.SRV{srv("10.6.6.6.", 85, 1, 7)}},
	}
	for _, tt := range []struct{ name, settings, target, live, dns string }{
		{"IPv4 first", `{}`, "both.test:80", "10.0.0.1:80, 10.0.0.2:80", "A"},
		{"IPv6", `{}`, "six.test:80", "[2001:db8::1]:80", "AAAA"},
		{"IPv4 in IPv6", `{}`, "four6.test:80", "10.0.0.9:80", "A"},
		{"nothing", `{}`, "empty.test:80", "", "the name has no address"},
		{"unknown", `{}`, "what.test:80", "", "lookup what.test: no such host"},
		{"services in spite of a port", `{}`, "svc.test:80", "10.0.1.1:81 30, 10.0.1.2:82 30, 10.0.1.3:82 30", "SRV"},
		{"services", `{}`, "svc.test:8000", "10.0.1.1:81 30, 10.0.1.2:82 30, 10.0.1.3:82 30", "SRV"},
		{"services with use_srv_name", `{"use_srv_name":true}`, "svc.test:80", "10.0.1.1:81 30, 10.0.1.2:82 30, 10.0.1.3:82 30", "SRV"},
		{"called like a service", `{}`, "_web._tcp.test:83", "10.0.1.1:83 1", "SRV"},
		{"service by address", `{}`, "ip.test:8000", "10.0.2.1:85 7", "SRV"},
		{"no server has an address", `{}`, "dead.test:8000", "", "lookup dead.test: no such host"},
		{"no services, default port", `{}`, "both.test:8000", "10.0.0.1:8000, 10.0.0.2:8000", "A"},
		{"localhost is no service", `{}`, "localhost:8000", "127.0.0.1:8000", "A"},
		{"weight 0 of a service", `{}`, "svc.test:8000 0", "", "SRV"},
		{"weight of every address", `{}`, "both.test:80 7", "10.0.0.1:80 7, 10.0.0.2:80 7", "A"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSet(t, Options{Resolver: &book{hosts: hosts, srv: services}})
				s.Update(true, change(t, tt.settings, tt.target))
				synctest.Wait()
				if got := s.Pool("up").live(); got != tt.live {
					t.Errorf("live are %q, want %q", got, tt.live)
				}
				view, _ := s.TargetHealth(upstreamID)
				for _, v := range view {
					if got := v["data"].(map[string]any)["dns"]; got != tt.dns {
						t.Errorf("dns is %q, want %q", got, tt.dns)
					}
				}
			})
		})
	}
}

// TestSRVName: the Host of a service is its target's name, or with use_srv_name the server's.
func TestSRVName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &book{
			hosts: map[string]page{"s1.test": {addrs: addrs("10.0.1.1")}, "svc.test": {addrs: addrs("10.0.0.9")}},
			srv:   map[string]page{"svc.test": {srv: []*net.SRV{{Target: "s1.test.", Port: 80, Weight: 1}}}},
		}
		s := newSet(t, Options{Resolver: r})
		for settings, want := range map[string]string{`{}`: "svc.test", `{"use_srv_name":true}`: "s1.test", `{"use_srv_name":true,"host_header":"h.test"}`: "h.test"} {
			s.Update(true, change(t, settings, "svc.test:8000"))
			synctest.Wait()
			x := newExchange()
			s.Pool("up").ask(t, x, 200)
			if x.Upstream.HostHeader != want || at(x) != "10.0.1.1:80" {
				t.Errorf("%s: Host %q at %s", settings, x.Upstream.HostHeader, at(x))
			}
		}
	})
}

// TestSRVSwitched: use_srv_name changes what a target with a port stands for, at once and both ways.
func TestSRVSwitched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &book{
			hosts: map[string]page{"svc.test": {addrs: addrs("10.0.0.9"), ttl: time.Hour}},
			srv:   map[string]page{"svc.test": {srv: []*net.SRV{{Target: "10.0.1.1.", Port: 81, Weight: 100}}, ttl: time.Hour}},
		}
		s := newSet(t, Options{Resolver: r, DNS: dns.Policy{Order: []string{"A"}}})
		for _, step := range []struct{ settings, live string }{
			{`{}`, "10.0.0.9:80"}, {`{"use_srv_name":true}`, "10.0.1.1:81"}, {`{"use_srv_name":true,"slots":11}`, "10.0.1.1:81"}, {`{}`, "10.0.0.9:80"},
		} {
			s.Update(false, change(t, step.settings, "svc.test:80", "10.0.0.1:80 0"))
			synctest.Wait()
			if got := s.Pool("up").live(); got != step.live {
				t.Errorf("%s: live are %q, want %q", step.settings, got, step.live)
			}
		}
		if a, b := r.questions("A svc.test"), r.questions("SRV svc.test"); a != 2 || b != 1 {
			t.Errorf("asked %d and %d times", a, b)
		}
	})
}

// TestFirstLookup: requests wait for the first answer, but not for ever and not when there is somebody to ask.
func TestFirstLookup(t *testing.T) {
	for _, tt := range []struct {
		name    string
		delay   time.Duration
		others  []string
		connect time.Duration
		err     error
		took    time.Duration
	}{
		{"soon", time.Second, nil, 0, nil, time.Second},
		{"another target", time.Second, []string{"10.0.0.9:80"}, 0, nil, 0},
		{"too late", 8 * time.Second, nil, time.Minute, ErrNoPeer, 5 * time.Second},
		{"connect timeout", 8 * time.Second, nil, 2 * time.Second, ErrNoPeer, 2 * time.Second},
		{"the first of several", time.Second, []string{"slow.test:80"}, 0, nil, time.Second},
		{"unknown", 0, nil, 0, ErrNoPeer, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &book{hosts: map[string]page{"a.test": {addrs: addrs("10.0.0.1"), delay: tt.delay}, "slow.test": {delay: time.Hour}}}
				if tt.delay == 0 {
					delete(r.hosts, "a.test")
				}
				s := newSet(t, Options{Resolver: r})
				s.Update(true, change(t, `{}`, append(tt.others, "a.test:80")...))
				x := newExchange()
				x.Upstream.ConnectTimeout = tt.connect
				begin := time.Now()
				d, err := s.Pool("up").Dispatch(x, false)
				if err != tt.err || time.Since(begin) != tt.took {
					t.Errorf("got %v after %v", err, time.Since(begin))
				}
				if err == nil {
					d.End()
				}
			})
		})
	}
}

// TestAddressesKeepHealth: an address that stays keeps its health, one that is new begins healthy.
func TestAddressesKeepHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &book{hosts: map[string]page{"a.test": {addrs: addrs("10.0.0.1", "10.0.0.2"), ttl: 10 * time.Second}}}
		s := newSet(t, Options{Resolver: r})
		s.Update(true, change(t, `{"healthchecks":{"passive":{"unhealthy":{"tcp_failures":1}}}}`, "a.test:80"))
		synctest.Wait()
		if err := s.SetHealth(upstreamID, "a.test:80", "10.0.0.1:80", false); err != nil {
			t.Fatal(err)
		}
		r.write(func(b *book) {
			b.hosts["a.test"] = page{addrs: addrs("10.0.0.1", "10.0.0.3"), ttl: 10 * time.Second}
		})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := s.Pool("up").live(); got != "10.0.0.3:80" {
			t.Errorf("live are %q", got)
		}
	})
}

// TestLookupFlood: a large configuration does not ask everything at once.
func TestLookupFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &book{hosts: map[string]page{}}
		var targets []string
		for i := range 100 {
			name := fmt.Sprintf("t%d.test", i)
			r.hosts[name] = page{addrs: addrs(fmt.Sprint("10.0.0.", i)), delay: time.Second, ttl: time.Hour}
			targets = append(targets, name+":80")
		}
		s := newSet(t, Options{Resolver: r, DNS: dns.Policy{Order: []string{"A"}}})
		s.Update(true, change(t, `{}`, targets...))
		for _, want := range []int{32, 64, 96, 100} {
			synctest.Wait()
			r.mu.Lock()
			if n := len(r.asked); n != want {
				t.Errorf("%d names are asked for, want %d", n, want)
			}
			r.mu.Unlock()
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := len(s.Pool("up").plan.Load().live); n != 100 {
			t.Errorf("%d live", n)
		}
	})
}
