package rpc_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"concord/admin/service"
	adminv1 "concord/proto/concord/admin/v1"
)

// TestApply: a transaction is checked whole, made whole or not at all, and says what it did.
func TestApply(t *testing.T) {
	b := start(t, service.Options{})
	c := b.config()
	want := func(kind string, m map[string]any) *adminv1.Wanted {
		return &adminv1.Wanted{Kind: kind, Entity: fields(t, m)}
	}
	apply := func(m *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
		res, err := c.Apply(t.Context(), connect.NewRequest(m))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	summary := func(m *adminv1.ApplyResponse) string {
		return fmt.Sprintf("+%d ~%d -%d =%d", m.GetCreated(), m.GetUpdated(), m.GetDeleted(), m.GetUnchanged())
	}
	first := &adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{
		want("routes", map[string]any{"name": "r", "paths": []any{"/r"}, "service": "s", "tags": []any{"mine"}}), // before what it refers to
		want("services", map[string]any{"name": "s", "url": "http://h/", "tags": []any{"mine"}}),
		want("consumers", map[string]any{"username": "c"}),
		want("keyauth_credentials", map[string]any{"consumer": map[string]any{"username": "c"}, "key": "very-secret"}),
	}, DryRun: true}
	dry, err := apply(first)
	if err != nil || summary(dry) != "+4 ~0 -0 =0" || len(dry.GetDifferences()) != 4 || b.Index() != dry.GetIndex() || len(dry.GetEntities()) != 0 {
		t.Fatalf("dry run: %v, %v", dry, err)
	}
	if strings.Contains(dry.String(), "very-secret") {
		t.Errorf("the diff tells a secret: %v", dry)
	}
	first.DryRun = false
	made, err := apply(first)
	if err != nil || summary(made) != "+4 ~0 -0 =0" || len(made.GetEntities()) != 4 || len(made.GetDifferences()) != 0 || made.GetIndex() <= dry.GetIndex() {
		t.Fatalf("apply: %v, %v", made, err)
	}
	if again, err := apply(first); err != nil || summary(again) != "+0 ~0 -0 =4" || again.GetIndex() != made.GetIndex() {
		t.Errorf("the same again: %v, %v", again, err)
	}
	etag := func(kind, ref string) string {
		t.Helper()
		res, err := c.Get(t.Context(), connect.NewRequest(&adminv1.GetRequest{Target: &adminv1.Target{Kind: kind, Ref: ref}}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.GetEntity().GetEtag()
	}
	s := func(host string) *adminv1.Wanted { return want("services", map[string]any{"name": "s", "host": host}) }
	with := func(w *adminv1.Wanted, match, none string) *adminv1.Wanted {
		w.IfMatch, w.IfNoneMatch = match, none
		return w
	}
	old := etag("services", "s")
	for _, x := range []struct {
		name string
		m    *adminv1.ApplyRequest
		code connect.Code
		text string
	}{
		{"unknown kind", &adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{want("servces", nil)}}, connect.CodeInvalidArgument, "wanted[0]"},
		{"one of two is wrong", &adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{want("consumers", map[string]any{"username": "x"}), want("services", map[string]any{"name": "y"})}},
			connect.CodeInvalidArgument, "wanted[1].host"},
		{"refers to nothing", &adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{want("routes", map[string]any{"paths": []any{"/"}, "service": "nope"})}}, connect.CodeInvalidArgument, "nope"},
		{"refers to what goes", &adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{want("keyauth_credentials", map[string]any{"consumer": "c", "key": "k2"})},
			Removals: []*adminv1.Removal{{Kind: "consumers", Ref: "c"}}}, connect.CodeInvalidArgument, "no such entry"},
		{"exists already", &adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{with(s("h2"), "", "*")}}, connect.CodeAborted, "exists already"},
		{"does not exist", &adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{with(want("services", map[string]any{"name": "new", "host": "h"}), "*", "")}}, connect.CodeAborted, "no such"},
		{"another version", &adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{with(s("h2"), `"1"`, "")}}, connect.CodeAborted, "changed"},
		{"removes another version", &adminv1.ApplyRequest{Removals: []*adminv1.Removal{{Kind: "consumers", Ref: "c", IfMatch: `"1"`}}}, connect.CodeAborted, "changed"},
		{"removes what is held", &adminv1.ApplyRequest{Removals: []*adminv1.Removal{{Kind: "services", Ref: "s"}}}, connect.CodeFailedPrecondition, "routes"},
		{"removes and wants", &adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{s("h2")}, Removals: []*adminv1.Removal{{Kind: "services", Ref: "s"}, {Kind: "routes", Ref: "r"}}},
			connect.CodeInvalidArgument, "both"},
		{"removes nothing named", &adminv1.ApplyRequest{Removals: []*adminv1.Removal{{Kind: "services"}}}, connect.CodeInvalidArgument, "ref is missing"},
	} {
		for _, dry := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, dry %t", x.name, dry), func(t *testing.T) {
				x.m.DryRun = dry
				before := b.Index()
				res, err := apply(x.m)
				if connect.CodeOf(err) != x.code || !strings.Contains(err.Error(), x.text) || b.Index() != before {
					t.Errorf("%v, %v, want %v and %q", res, err, x.code, x.text)
				}
			})
		}
	}
	res, err := apply(&adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{with(s("h2"), old, "")}, Removals: []*adminv1.Removal{{Kind: "consumers", Ref: "c"}, {Kind: "consumers", Ref: "gone"}}, Diff: true})
	if err != nil || summary(res) != "+0 ~1 -2 =0" || len(res.GetDifferences()) != 3 { // the consumer's key goes with it
		t.Fatalf("update and removal: %v, %v", res, err)
	}
	d := res.GetDifferences()[0]
	if d.GetAction() != adminv1.Action_ACTION_UPDATE || d.GetBefore().AsMap()["host"] != "h" || d.GetAfter().AsMap()["host"] != "h2" {
		t.Errorf("the difference is %v", d)
	}
	create(t, c, "consumers", map[string]any{"username": "stays"})
	res, err = apply(&adminv1.ApplyRequest{Prune: true, SelectTags: []string{"mine"}})
	if err != nil || summary(res) != "+0 ~0 -1 =0" { // the service lost its tag with the update
		t.Errorf("prune by tag: %v, %v", res, err)
	}
	res, err = apply(&adminv1.ApplyRequest{Prune: true, Wanted: []*adminv1.Wanted{s("h2")}, Format: adminv1.Format_FORMAT_TYPED})
	if err != nil || summary(res) != "+0 ~0 -1 =1" || res.GetEntities()[0].GetService().GetHost() != "h2" {
		t.Errorf("prune: %v, %v", res, err)
	}
}

// TestApplyNames: the names in a certificate's list become entities, which the service would otherwise not know of.
func TestApplyNames(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	c := start(t, service.Options{}).config()
	apply := func(names ...string) (*connect.Response[adminv1.ApplyResponse], error) {
		return c.Apply(t.Context(), connect.NewRequest(&adminv1.ApplyRequest{Wanted: []*adminv1.Wanted{{Kind: "certificates", Entity: &adminv1.Entity{
			Value: &adminv1.Entity_Certificate{Certificate: &adminv1.Certificate{Cert: text("CERTIFICATE", raw), Key: text("PRIVATE KEY", secret), Snis: names}},
		}}}}))
	}
	res, err := apply("a.test", "b.test")
	if err != nil || res.Msg.GetCreated() != 3 || len(res.Msg.GetEntities()) != 1 {
		t.Fatalf("%v, %v", res, err)
	}
	got, err := c.Get(t.Context(), connect.NewRequest(&adminv1.GetRequest{Target: &adminv1.Target{Kind: "certificates", Ref: "a.test"}, Format: adminv1.Format_FORMAT_TYPED}))
	if err != nil || fmt.Sprint(got.Msg.GetEntity().GetCertificate().GetSnis()) != "[a.test b.test]" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := apply("not a name"); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "wanted[0].snis[0]") {
		t.Errorf("a bad name: %v", err)
	}
}
