package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"concord/fsm/schema"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

func build(t *testing.T, g *plugintest.Gateway, config schema.Record) *instance {
	t.Helper()
	config["account_email"], config["tos_accepted"] = "ops@example.com", true
	i := g.Build(New().Plugin(), config).(*instance)
	t.Cleanup(func() { _ = i.Close(context.Background()) })
	return i
}

func TestAllowed(t *testing.T) {
	g := plugintest.New(t)
	some := build(t, g, schema.Record{"domains": []any{"a.example.com", "*.Apps.example.com"}})
	all := build(t, g, schema.Record{"allow_any_domain": true})
	for name, want := range map[string][2]bool{
		"a.example.com": {true, true}, "b.example.com": {false, true}, "x.apps.example.com": {true, true}, "apps.example.com": {false, true}, "example.com": {false, true},
		"": {}, "localhost": {}, "10.0.0.1": {}, "a..example.com": {}, ".example.com": {}, "a_b.example.com": {}, "a.example.com/x": {}, "a.example.com.": {},
		strings.Repeat("a.", 130) + "com": {}, "[::1]": {}, "*.apps.example.com": {},
	} {
		if got := [2]bool{some.allowed(name), all.allowed(name)}; got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

func TestChallenge(t *testing.T) {
	g := plugintest.New(t)
	i := build(t, g, schema.Record{"domains": []any{"example.test"}})
	g.Put("acme_storage", schema.Record{"key": challengeKey("token"), "value": "token.thumbprint"})
	g.PutUntil("acme_storage", schema.Record{"key": challengeKey("old"), "value": "x"}, time.Now().Add(-time.Second))
	for target, want := range map[string]string{
		challenges + "token": "200 token.thumbprint", challenges + "old": "404 Not found\n", challenges + "x": "404 Not found\n", challenges: "404 Not found\n", "/": "",
		challenges + "../token": "404 Not found\n",
	} {
		for host, applies := range map[string]bool{"example.test": true, "Example.test:80": true, "other.test": false} {
			x := plugintest.Request("GET", target)
			x.Request.Host = host
			got := ""
			if err := i.Rewrite(x); err != nil {
				e := err.(*plugin.Exit) //nolint:errorlint // the plugin returns nothing else
				got = map[int]string{200: "200 ", 404: "404 "}[e.Status] + string(e.Body.([]byte))
			}
			if !applies && got != "" || applies && got != want {
				t.Errorf("%s at %s: %q, want %q", target, host, got, want)
			}
		}
	}
}

func TestDue(t *testing.T) {
	i := build(t, plugintest.New(t), schema.Record{})
	const day = 24 * time.Hour
	for _, c := range []struct {
		life, left time.Duration
		want       bool
	}{{90 * day, 20 * day, false}, {90 * day, 13 * day, true}, {6 * day, 3 * day, false}, {6 * day, day, true}, {day, -day, true}} {
		end := time.Now().Add(c.left)
		if got := i.due(&tls.Certificate{Leaf: &x509.Certificate{NotBefore: end.Add(-c.life), NotAfter: end}}); got != c.want {
			t.Errorf("life %v, left %v: %v", c.life, c.left, got)
		}
	}
}

// Without a way to write, or with a damaged row, the default certificate is shown and nothing breaks.
func TestNoCertificate(t *testing.T) {
	g := plugintest.New(t)
	i := build(t, g, schema.Record{"allow_any_domain": true})
	g.Put("acme_storage", schema.Record{"key": certificateKey("b.example.com"), "value": "{"})
	for _, name := range []string{"a.example.com", "b.example.com", "", "x"} {
		if c := i.Certificate(&tls.ClientHelloInfo{ServerName: name}); c != nil {
			t.Errorf("%q has a certificate", name)
		}
	}
}

func TestRefusedSettings(t *testing.T) {
	good := schema.Record{"account_email": "a@b.example", "tos_accepted": true}
	for want, change := range map[string]schema.Record{
		"":                                       {},
		"terms of service must be":               {"tos_accepted": false},
		"tos_accepted: value must":               {"tos_accepted": false, "api_uri": "https://acme-staging-v02.api.letsencrypt.org"},
		"redis is not supported":                 {"storage": "redis"},
		"consul is not supported":                {"storage": "consul"},
		"account_key: is not":                    {"account_key": schema.Record{"key_id": "x"}},
		"eab_hmac_key: must be the value itself": {"eab_kid": "k", "eab_hmac_key": "{vault://env/eab}"},
		"unknown field":                          {"storage_config": schema.Record{"redis": schema.Record{"host": "h"}}},
		"cert_type: expected one of":             {"cert_type": "dsa"},
		"account_email":                          {"account_email": "x"},
	} {
		config := schema.Record{}
		for _, r := range []schema.Record{good, change} {
			for k, v := range r {
				config[k] = v
			}
		}
		_, errs := plugintest.Validate(New().Plugin(), config)
		if want == "" && errs != nil || want != "" && (errs == nil || !strings.Contains(errs.Message(), want)) {
			t.Errorf("%v: got %v, want %q", change, errs, want)
		}
	}
}
