package router

import "testing"

// Kong's path handling v0. A route path "-" is a route without paths, matched by host.
func TestUpstreamPath(t *testing.T) {
	const either, yes, no = 0, 1, 2
	for _, c := range []struct {
		service, route string
		strip          int
		request, want  string
	}{
		{"/", "/", either, "/route/", "/route/"},
		{"/", "/", either, "/", "/"},
		{"/", "/route", no, "/routereq", "/routereq"},
		{"/", "/route", yes, "/route", "/"},
		{"/", "/route", yes, "/route/", "/"},
		{"/", "/route", yes, "/routereq", "/req"},
		{"/", "/route/", yes, "/route/req", "/req"},
		{"/srv", "/rou", no, "/roureq", "/srv/roureq"},
		{"/srv", "/rou", yes, "/roureq", "/srv/req"},
		{"/srv/", "/rou", no, "/rou", "/srv/rou"},
		{"/srv/", "/rou", yes, "/rou", "/srv"},
		{"/service", "/", either, "/", "/service"},
		{"/service", "/", either, "/route", "/service/route"},
		{"/service", "/", either, "/route/", "/service/route/"},
		{"/service", "/route", no, "/route", "/service/route"},
		{"/service", "/route", yes, "/route", "/service"},
		{"/service", "/route", yes, "/route/", "/service/"},
		{"/service", "/route", yes, "/routereq", "/service/req"},
		{"/service", "/route/", yes, "/route/", "/service/"},
		{"/service", "/route/", yes, "/route/req", "/service/req"},
		{"/service/", "/", either, "/", "/service/"},
		{"/service/", "/", either, "/route", "/service/route"},
		{"/service/", "/route", yes, "/route", "/service"},
		{"/service/", "/route", yes, "/route/", "/service/"},
		{"/service/", "/route", yes, "/routereq", "/service/req"},
		{"/service/", "/route/", yes, "/route/req", "/service/req"},
		{"/", "-", either, "*", "/"},
		{"/service", "-", either, "*", "/service"},
		{"/service/", "-", either, "*", "/service/"},
		{"/service", "-", either, "/", "/service"},
		{"/service", "-", either, "/route", "/service/route"},
		{"/service/", "-", either, "/", "/service/"},
		{"/service", "/route", yes, "/route./req", "/service/req"},
		{"/service", "/route", yes, "/route../req", "/service/req"},
		{"/service", "/route", yes, "/route..", "/service"},
		{"/service", "/route", no, "/route../req", "/service/route../req"},
		{"", "/route", yes, "/route/a b/c", "/a b/c"},
		{"/s", "~/u/[0-9]+", yes, "/u/12/x", "/s/x"},
	} {
		for _, strip := range []bool{true, false} {
			if c.strip == yes && !strip || c.strip == no && strip {
				continue
			}
			route := rt("x", hosts("h"))
			if c.route != "-" {
				route.Paths = []string{c.route}
			}
			m, ok := build(t, route).Find(req("h", c.request))
			if !ok {
				t.Fatalf("%+v: no match", c)
			}
			if got := string(AppendUpstreamPath(nil, c.service, strip, m.Prefix(c.request), c.request)); got != c.want {
				t.Errorf("service %q route %q strip %t request %q: %q, want %q", c.service, c.route, strip, c.request, got, c.want)
			}
		}
	}
}
