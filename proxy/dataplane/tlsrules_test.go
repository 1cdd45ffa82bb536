package dataplane_test

import (
	"crypto/tls"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	fx "concord/proxy/dataplane/fixture"
	"concord/test/harness"
)

func TestClientRules(t *testing.T) {
	n := newTLSNode(t)
	with := func(name string, service string, snis ...string) *entity.Route {
		r := fx.Route(name, service, "/"+name)
		r.SNIs = snis
		return r
	}
	plugin := func(id, cas, route, service string) *entity.Plugin {
		return fx.Plugin(id, "asker", `{"ca_certificates":["`+strings.ReplaceAll(cas, " ", `","`)+`"]}`, route, service, "")
	}
	check := func(what string, want map[string]string) {
		t.Helper()
		got := map[string]string{}
		rules := n.Holder().Load().ClientRules()
		for name := range want {
			if r := rules.For(name); r != nil {
				got[name] = strings.Join(r.CAs, " ")
			} else {
				got[name] = ""
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	check("nothing", map[string]string{"a.org": "", "": ""})
	n.put(t, fx.Service("s", "up", 80), with("r", "s", "a.org"), with("wild", "s", "*.b.org"), with("prefix", "s", "c.*"), with("none", ""))
	n.put(t, plugin("p", "2 1", "r", ""))
	check("on a route", map[string]string{"a.org": "1 2", "A.Org.": "1 2", "b.a.org": "", "aXorg": "", "": "", strings.Repeat("a", 300): ""})
	n.put(t, plugin("p2", "3", "wild", ""), plugin("p3", "4", "prefix", ""))
	check("wildcards", map[string]string{
		"a.org": "1 2", "x.b.org": "3", "y.x.b.org": "3", "b.org": "", "c.net": "4", "c.x.net": "4", "c.b.org": "3 4", "c": "", ".b.org": "3", "c.": "", ".": "", "xb.org": "",
	})
	n.put(t, with("r", "s", "d.org"))
	check("the route's SNI changed", map[string]string{"a.org": "", "d.org": "1 2"})
	n.put(t, plugin("p", "5", "", "s"))
	check("on a service", map[string]string{"d.org": "5", "x.b.org": "3 5", "c.net": "4 5", "": ""})
	n.put(t, with("more", "s"))
	check("one of its routes has no SNI", map[string]string{"d.org": "5", "x.b.org": "3 5", "any": "5", "": "5"})
	wait(t, n.Compiler, n.db.Delete(with("more", "s"), plugin("p2", "", "wild", ""), plugin("p3", "", "prefix", "")))
	off := plugin("p", "5", "", "s")
	off.Enabled = false
	n.put(t, plugin("all", "6", "", ""), off)
	check("everywhere", map[string]string{"d.org": "6", "": "6"})
	wait(t, n.Compiler, n.db.Delete(plugin("all", "", "", "")))
	if n.Holder().Load().ClientRules() != nil {
		t.Error("rules are left without a plugin")
	}
}

func TestMisdirected(t *testing.T) {
	n := newTLSNode(t)
	for i, sni := range []string{"a.org", "b.org", "c.org"} {
		r := fx.Route(sni, "", "/")
		r.SNIs = []string{sni}
		ca := []string{"1", "2", "1"}[i]
		n.put(t, r, fx.Plugin(sni, "asker", `{"ca_certificates":["`+ca+`"]}`, sni, "", ""))
	}
	rules := n.Holder().Load().ClientRules()
	for _, c := range []struct {
		sni, host string
		want      bool
	}{
		{"a.org", "a.org", false}, {"a.org", "A.ORG", false}, {"a.org", "a.org.", false}, {"a.org", "b.org", true}, {"a.org", "c.org", false},
		{"a.org", "d.org", true}, {"d.org", "a.org", true}, {"", "a.org", true}, {"a.org", "", true}, {"", "d.org", false}, {"d.org", "e.org", false},
	} {
		if got := rules.Misdirected(c.sni, c.host); got != c.want {
			t.Errorf("SNI %q, Host %q: %v", c.sni, c.host, got)
		}
	}
	harness.NoAllocs(t, "Misdirected", func() { rules.Misdirected("a.org", "b.org") })
}

// The names of the CAs are sent when the plugin says so, and only of those that exist.
func TestClientRuleConfig(t *testing.T) {
	n := newTLSNode(t)
	root := (*issuer)(nil).issue(t, "root", true, "ecdsa")
	n.put(t, root.ca("ca"), fx.Plugin("p", "asker", `{"ca_certificates":["`+fx.ID("ca")+`","`+fx.ID("gone")+`"],"send_ca_dn":true}`, "", "", ""))
	var asked [][]byte
	client := tlsClient("a.org", tls.VersionTLS13)
	client.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = r.AcceptableCAs
		return &tls.Certificate{}, nil
	}
	n.shake(t, client)
	if len(asked) != 1 || string(asked[0]) != string(root.cert.RawSubject) {
		t.Errorf("the client was told of %q", asked)
	}
}
