package service_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"concord/admin/service"
	"concord/admin/service/logtest"
	"concord/cluster"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

func newService(o service.Options) (*service.Service, *logtest.Log) {
	log := logtest.New()
	o.Log, o.Machine = log, log.Machine
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Second
	}
	return service.New(o), log
}

func mutate(t *testing.T, s *service.Service, verb service.Verb, entity, ref string, body schema.Record) (schema.Record, uint64) {
	t.Helper()
	res, err := s.Mutate(t.Context(), service.Mutation{Verb: verb, Target: service.Target{Entity: entity, Ref: ref}, Body: body})
	if err != nil {
		t.Fatalf("%s %s %s: %v", verb, entity, ref, err)
	}
	var rec schema.Record
	if res.Row != nil {
		if err := json.Unmarshal(res.Row, &rec); err != nil {
			t.Fatal(err)
		}
	}
	return rec, res.Index
}

func kind(err error) service.Kind {
	var e *service.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

func count(t *testing.T, s *service.Service, entity string) int {
	t.Helper()
	page, err := s.List(t.Context(), service.Target{Entity: entity}, service.ListOptions{Size: "1000"})
	if err != nil {
		t.Fatal(err)
	}
	return len(page.Rows)
}

// TestRace: of many clients that create the same unique name at once, exactly one wins; the others hear of a unique violation.
func TestRace(t *testing.T) {
	s, log := newService(service.Options{})
	var gate sync.WaitGroup
	const clients = 16
	gate.Add(clients)
	once := sync.Map{}
	log.BeforePropose = func(c command.Command) error {
		if _, again := once.LoadOrStore(c.RequestID, true); !again {
			gate.Done() // all have planned against a view without the name
		}
		gate.Wait()
		return nil
	}
	kinds := make(chan service.Kind, clients)
	for range clients {
		go func() {
			_, err := s.Mutate(context.Background(), service.Mutation{Verb: service.Create, Target: service.Target{Entity: "consumers"}, Body: schema.Record{"username": "one"}})
			kinds <- kind(err)
		}()
	}
	won := 0
	for range clients {
		switch k := <-kinds; k {
		case 0:
			won++
		case service.UniqueTaken:
		default:
			t.Errorf("kind %d", k)
		}
	}
	if n := count(t, s, "consumers"); won != 1 || n != 1 {
		t.Errorf("%d clients won and %d rows exist, want 1 and 1", won, n)
	}
}

// TestConflict: a PATCH whose row changes between plan and log entry merges into the newer row.
func TestConflict(t *testing.T) {
	s, log := newService(service.Options{})
	mutate(t, s, service.Create, "services", "", schema.Record{"name": "s", "host": "h"})
	times := 0
	log.BeforePropose = func(command.Command) error {
		hook := log.BeforePropose
		log.BeforePropose = nil
		defer func() { log.BeforePropose = hook }()
		if times++; times <= 2 {
			mutate(t, s, service.Update, "services", "s", schema.Record{"retries": float64(times)})
		}
		return nil
	}
	rec, _ := mutate(t, s, service.Update, "services", "s", schema.Record{"host": "new"})
	if rec["retries"] != 2.0 || rec["host"] != "new" || times != 3 {
		t.Errorf("after %d attempts: %v", times, rec)
	}
}

// TestConflictForEver gives up with a refusal that stores nothing.
func TestConflictForEver(t *testing.T) {
	s, log := newService(service.Options{})
	mutate(t, s, service.Create, "services", "", schema.Record{"name": "s", "host": "h"})
	log.BeforePropose = func(command.Command) error {
		hook := log.BeforePropose
		log.BeforePropose = nil
		defer func() { log.BeforePropose = hook }()
		mutate(t, s, service.Update, "services", "s", schema.Record{"tags": nil})
		return nil
	}
	_, err := s.Mutate(t.Context(), service.Mutation{Verb: service.Update, Target: service.Target{Entity: "services", Ref: "s"}, Body: schema.Record{"host": "new"}})
	if kind(err) != service.Unavailable {
		t.Errorf("error %v", err)
	}
}

// TestUpsertRace: two PUTs by the same new name make one row, the later one replaces.
func TestUpsertRace(t *testing.T) {
	s, log := newService(service.Options{})
	log.BeforePropose = func(command.Command) error {
		log.BeforePropose = nil
		mutate(t, s, service.Upsert, "services", "s", schema.Record{"host": "first"})
		return nil
	}
	rec, _ := mutate(t, s, service.Upsert, "services", "s", schema.Record{"host": "second"})
	if n := count(t, s, "services"); n != 1 || rec["host"] != "second" {
		t.Errorf("%d rows, %v", n, rec)
	}
}

// TestRepeatedForward: an entry that was committed before the answer got lost is not written again; the first result is answered.
func TestRepeatedForward(t *testing.T) {
	for _, lost := range []error{cluster.ErrOutcomeUnknown, cluster.ErrNotLeader} {
		s, log := newService(service.Options{})
		proposed := 0
		log.BeforePropose = func(command.Command) error { proposed++; return nil }
		log.AfterPropose = func() error { log.AfterPropose = nil; return lost }
		rec, index := mutate(t, s, service.Create, "consumers", "", schema.Record{"username": "u"})
		if n := count(t, s, "consumers"); n != 1 || proposed != 1 || index != 1 || rec["username"] != "u" {
			t.Errorf("%v: %d rows, %d proposals, index %d, %v", lost, n, proposed, index, rec)
		}
		log.AfterPropose = func() error { log.AfterPropose = nil; return lost }
		if rec, index = mutate(t, s, service.Delete, "consumers", "u", nil); rec != nil || index != 2 || count(t, s, "consumers") != 0 {
			t.Errorf("%v: delete answered %v at %d", lost, rec, index)
		}
	}
}

// TestNotAppended: a proposal that certainly was not appended is made again.
func TestNotAppended(t *testing.T) {
	s, log := newService(service.Options{})
	fails := 3
	log.BeforePropose = func(command.Command) error {
		if fails--; fails > 0 {
			return cluster.ErrNotLeader
		}
		return nil
	}
	mutate(t, s, service.Create, "consumers", "", schema.Record{"username": "u"})
	if n := count(t, s, "consumers"); n != 1 {
		t.Errorf("%d rows", n)
	}
}

func TestNoLeader(t *testing.T) {
	s, log := newService(service.Options{MinIndexTimeout: 20 * time.Millisecond})
	mutate(t, s, service.Create, "services", "", schema.Record{"name": "s", "host": "h"})
	log.NoLeader = true
	_, err := s.Mutate(t.Context(), service.Mutation{Verb: service.Delete, Target: service.Target{Entity: "services", Ref: "s"}})
	if kind(err) != service.Unavailable || !strings.Contains(err.Error(), "majority") || !strings.Contains(err.Error(), "nothing was stored") {
		t.Errorf("error %v", err)
	}
	if n := count(t, s, "services"); n != 1 {
		t.Error("reading must not need a leader")
	}
	if err := s.WaitIndex(t.Context(), 1); err != nil {
		t.Errorf("an index that is here needs no leader: %v", err)
	}
	if err := s.WaitIndex(t.Context(), 2); kind(err) != service.Unavailable {
		t.Errorf("error %v", err)
	}
}

// TestBehind: a node that knows that it lacks what others answered does not answer without it.
func TestBehind(t *testing.T) {
	s, log := newService(service.Options{})
	mutate(t, s, service.Create, "services", "", schema.Record{"name": "s", "host": "h"})
	log.Behind = 1
	get := func(c service.Consistency) error {
		_, err := s.Get(service.WithConsistency(t.Context(), c), service.Target{Entity: "services", Ref: "s"})
		return err
	}
	if err := get(service.Default); kind(err) != service.Unavailable || !strings.Contains(err.Error(), "this node is at index") {
		t.Errorf("a stale answer: %v", err)
	}
	if err := get(service.Local); err != nil {
		t.Errorf("what this node has needs nobody: %v", err)
	}
}

// TestUncertain: when a leader may have appended the entry and none comes back, the refusal says so.
func TestUncertain(t *testing.T) {
	s, log := newService(service.Options{})
	log.BeforePropose = func(command.Command) error { log.NoLeader = true; return cluster.ErrOutcomeUnknown }
	_, err := s.Mutate(t.Context(), service.Mutation{Verb: service.Create, Target: service.Target{Entity: "consumers"}, Body: schema.Record{"username": "u"}})
	if kind(err) != service.Unknown {
		t.Errorf("error %v", err)
	}
}

func TestWaitIndex(t *testing.T) {
	published := make(chan uint64, 1)
	block := make(chan struct{})
	s, _ := newService(service.Options{MinIndexTimeout: 50 * time.Millisecond, Published: func(ctx context.Context, index uint64) error {
		select {
		case published <- index:
			return nil
		case <-block:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	mutate(t, s, service.Create, "consumers", "", schema.Record{"username": "u"})
	if got := <-published; got != 1 {
		t.Errorf("published %d", got)
	}
	if err := s.WaitIndex(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if err := s.WaitIndex(t.Context(), 1); kind(err) != service.Unavailable { // nobody drains published
		t.Errorf("error %v", err)
	}
	if err := s.WaitIndex(t.Context(), 99); kind(err) != service.IndexAhead || !strings.Contains(err.Error(), "the newest is 1") {
		t.Errorf("error %v", err)
	}
}

// TestSecrets: what reaches the log holds no secret in clear, what is read does.
func TestSecrets(t *testing.T) {
	s, log := newService(service.Options{})
	var entries bytes.Buffer
	log.BeforePropose = func(c command.Command) error { entries.Write(command.Encode(c)); return nil }
	mutate(t, s, service.Create, "consumers", "", schema.Record{"username": "u"})
	owner := schema.Record{"username": "u"}
	mutate(t, s, service.Create, "keyauth_credentials", "", schema.Record{"consumer": owner, "key": "planted-key"})
	mutate(t, s, service.Create, "jwt_secrets", "", schema.Record{"consumer": owner, "key": "iss", "secret": "planted-secret"})
	mutate(t, s, service.Create, "basicauth_credentials", "", schema.Record{"consumer": owner, "username": "b", "password": "planted-password"})
	mutate(t, s, service.Update, "jwt_secrets", "iss", schema.Record{"tags": []any{"x"}})
	mutate(t, s, service.Create, "hmacauth_credentials", "", schema.Record{"consumer": owner, "username": "h", "secret": "planted-hmac"})
	app, _ := mutate(t, s, service.Create, "oauth2_credentials", "", schema.Record{"consumer": owner, "name": "app", "client_secret": "planted-client"})
	hashed, _ := mutate(t, s, service.Create, "oauth2_credentials", "", schema.Record{"consumer": owner, "name": "app", "client_secret": "planted-hashed", "hash_secret": true})
	if hash, _ := hashed["client_secret"].(string); !entity.VerifySecret(hash, "planted-hashed") {
		t.Errorf("hashed to %q", hash)
	}
	credential := schema.Record{"id": app["id"]}
	mutate(t, s, service.Create, "oauth2_tokens", "", schema.Record{"credential": credential, "expires_in": 5.0, "access_token": "planted-access", "refresh_token": "planted-refresh"})
	mutate(t, s, service.Create, "oauth2_authorization_codes", "", schema.Record{"credential": credential, "code": "planted-code"})
	mutate(t, s, service.Create, "sessions", "", schema.Record{"session_id": "planted-session", "data": "planted-data"})
	cert, key := pair(t)
	mutate(t, s, service.Create, "certificates", "", schema.Record{"cert": cert, "key": "planted-tls\n" + key, "snis": []any{"a.example"}})
	mutate(t, s, service.Update, "certificates", "a.example", schema.Record{"tags": []any{"x"}, "snis": []any{"b.example"}})
	mutate(t, s, service.Create, "keys", "", schema.Record{"kid": "1", "pem": schema.Record{"private_key": "planted-pem\n" + key}})
	mutate(t, s, service.Create, "keys", "", schema.Record{"kid": "2", "jwk": `{"kid":"2","kty":"OKP","crv":"X25519","x":"jffJ7r6fHiBnhKlCAZBqLTJhoCzVQUNGsaUAg9ebX9s","note":"planted-jwk"}`})
	if !bytes.Contains(entries.Bytes(), []byte("a.example")) {
		t.Error("this test does not see what goes to the log")
	}
	if bytes.Contains(entries.Bytes(), []byte("planted")) {
		t.Error("a secret went to the log in clear")
	}
	res, err := s.Get(t.Context(), service.Target{Entity: "jwt_secrets", Ref: "iss"})
	if err != nil || !bytes.Contains(res.Row, []byte(`"secret":"planted-secret"`)) {
		t.Errorf("%s %v", res.Row, err)
	}
	if res, err = s.Get(t.Context(), service.Target{Entity: "keyauth_credentials", Ref: "planted-key"}); err != nil {
		t.Errorf("look-up by a sealed key: %v", err)
	}
	for entity, ref := range map[string]string{"oauth2_tokens": "planted-access", "sessions": "planted-session", "certificates": "b.example"} {
		if res, err = s.Get(t.Context(), service.Target{Entity: entity, Ref: ref}); err != nil || !bytes.Contains(res.Row, []byte("planted")) {
			t.Errorf("%s %s: %v", entity, ref, err)
		}
	}
	_, err = s.Mutate(t.Context(), service.Mutation{Verb: service.Create, Target: service.Target{Entity: "keyauth_credentials"}, Body: schema.Record{"consumer": owner, "key": "planted-key"}})
	if kind(err) != service.UniqueTaken {
		t.Errorf("a sealed key must be unique: %v", err)
	}
}

// pair is a certificate and its key.
func pair(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

// TestMembersRace: of certificates that claim one SNI at once, one gets it; the others are not stored at all.
func TestMembersRace(t *testing.T) {
	s, log := newService(service.Options{})
	cert, key := pair(t)
	var gate sync.WaitGroup
	const clients = 8
	gate.Add(clients)
	once := sync.Map{}
	log.BeforePropose = func(c command.Command) error {
		if _, again := once.LoadOrStore(c.RequestID, true); !again {
			gate.Done()
		}
		gate.Wait()
		return nil
	}
	kinds := make(chan service.Kind, clients)
	for i := range clients {
		go func() {
			_, err := s.Mutate(context.Background(), service.Mutation{Verb: service.Create, Target: service.Target{Entity: "certificates"},
				Body: schema.Record{"cert": cert, "key": key, "snis": []any{"shared.example", fmt.Sprintf("own%d.example", i)}}})
			kinds <- kind(err)
		}()
	}
	won := 0
	for range clients {
		switch k := <-kinds; k {
		case 0:
			won++
		case service.SchemaViolation:
		default:
			t.Errorf("kind %d", k)
		}
	}
	if won != 1 || count(t, s, "certificates") != 1 || count(t, s, "snis") != 2 {
		t.Errorf("%d won, %d certificates, %d snis", won, count(t, s, "certificates"), count(t, s, "snis"))
	}
}

// TestMembersMoved: an SNI that moves away between plan and log entry is not taken from its new certificate.
func TestMembersMoved(t *testing.T) {
	s, log := newService(service.Options{})
	cert, key := pair(t)
	body := func(snis ...any) schema.Record { return schema.Record{"cert": cert, "key": key, "snis": snis} }
	one, _ := mutate(t, s, service.Create, "certificates", "", body("a.example"))
	two, _ := mutate(t, s, service.Create, "certificates", "", body())
	log.BeforePropose = func(command.Command) error {
		log.BeforePropose = nil
		mutate(t, s, service.Update, "snis", "a.example", schema.Record{"certificate": schema.Record{"id": two["id"]}})
		return nil
	}
	got, _ := mutate(t, s, service.Upsert, "certificates", one["id"].(string), body("b.example"))
	if fmt.Sprint(got["snis"]) != "[b.example]" {
		t.Errorf("%v", got["snis"])
	}
	res, err := s.Get(t.Context(), service.Target{Entity: "certificates", Ref: "a.example"})
	if err != nil || !bytes.Contains(res.Row, []byte(two["id"].(string))) || !bytes.Contains(res.Row, []byte(`"snis":["a.example"]`)) {
		t.Errorf("%s %v", res.Row, err)
	}
}

// TestDryBuild: what the data plane cannot build is refused before the log.
func TestDryBuild(t *testing.T) {
	var seen []state.Change
	s, log := newService(service.Options{DryBuild: func(_ context.Context, changes []state.Change) error {
		if seen = append(seen, changes...); len(seen) == 2 {
			return errors.New("cannot build this")
		}
		return nil
	}})
	proposed := 0
	log.BeforePropose = func(command.Command) error { proposed++; return nil }
	mutate(t, s, service.Create, "services", "", schema.Record{"name": "s", "host": "h"})
	_, err := s.Mutate(t.Context(), service.Mutation{Verb: service.Update, Target: service.Target{Entity: "services", Ref: "s"}, Body: schema.Record{"host": "x"}})
	if kind(err) != service.SchemaViolation || !strings.Contains(err.Error(), "cannot build this") || proposed != 1 {
		t.Errorf("error %v after %d proposals", err, proposed)
	}
	if seen[0].Old != nil || seen[1].Old == nil || seen[1].New == nil || seen[1].Table != 1 {
		t.Errorf("changes %+v", seen)
	}
}

// TestExpired: rows past their time are not there, and their keys are free, before the log deletes them.
func TestExpired(t *testing.T) {
	s, log := newService(service.Options{})
	mutate(t, s, service.Create, "consumers", "", schema.Record{"username": "u"})
	before := time.Now().UnixMilli()
	rec, _ := mutate(t, s, service.Create, "keyauth_credentials", "", schema.Record{"consumer": schema.Record{"username": "u"}, "key": "k", "ttl": 1.0})
	after := time.Now().UnixMilli()
	id, err := state.ParseID(rec["id"].(string))
	if err != nil {
		t.Fatal(err)
	}
	table, _ := log.Machine.Store().Table("keyauth_credentials")
	row, ok := table.Get(log.Machine.Store().View(), id)
	if at := row.ExpiresAt; !ok || at < before+1000 || at > after+1000 {
		t.Fatalf("expires %d ms after it was made", at-before)
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		if _, err := s.Get(t.Context(), service.Target{Entity: "keyauth_credentials", Ref: "k"}); kind(err) == service.Missing {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the credential does not expire")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if count(t, s, "keyauth_credentials") != 0 {
		t.Error("expired rows are listed")
	}
	again, _ := mutate(t, s, service.Create, "keyauth_credentials", "", schema.Record{"consumer": schema.Record{"username": "u"}, "key": "k"})
	if again["id"] == rec["id"] || again["ttl"] != nil {
		t.Errorf("%v", again)
	}
}

// TestHidden: an entity of the cluster's own is out of reach.
func TestHidden(t *testing.T) {
	s, _ := newService(service.Options{})
	for _, e := range []string{"cluster_tokens", "nothing"} {
		if _, err := s.Get(t.Context(), service.Target{Entity: e, Ref: "x"}); kind(err) != service.Missing {
			t.Errorf("get %s: %v", e, err)
		}
		if _, err := s.Mutate(t.Context(), service.Mutation{Verb: service.Create, Target: service.Target{Entity: e}}); kind(err) != service.Missing {
			t.Errorf("create %s: %v", e, err)
		}
	}
}

// TestPaging: pages of any size, with and without tags, put together are the whole list in order.
func TestPaging(t *testing.T) {
	s, _ := newService(service.Options{})
	for i := range 57 {
		tags := []any{"all"}
		if i%3 == 0 {
			tags = append(tags, "third")
		}
		mutate(t, s, service.Create, "consumers", "", schema.Record{"username": fmt.Sprint("u", i), "tags": tags})
	}
	for tags, want := range map[string]int{"": 57, "all": 57, "all,third": 19, "third/all": 57, "third": 19, "third/none": 19} {
		for _, size := range []string{"1", "7", "19", "57", "1000"} {
			o, ids, last := service.ListOptions{Size: size}, 0, ""
			if tags != "" {
				o.Tags = &tags
			}
			for {
				page, err := s.List(t.Context(), service.Target{Entity: "consumers"}, o)
				if err != nil {
					t.Fatal(err)
				}
				for _, row := range page.Rows {
					var rec struct{ ID string }
					if json.Unmarshal(row, &rec) != nil || rec.ID <= last {
						t.Fatalf("tags %q size %s: %s after %s", tags, size, rec.ID, last)
					}
					last, ids = rec.ID, ids+1
				}
				if o.Offset = page.Offset; o.Offset == "" {
					break
				}
			}
			if ids != want {
				t.Errorf("tags %q size %s: %d rows, want %d", tags, size, ids, want)
			}
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	s, _ := newService(service.Options{})
	b.ReportAllocs()
	for i := range b.N {
		_, err := s.Mutate(b.Context(), service.Mutation{Verb: service.Create, Target: service.Target{Entity: "consumers"}, Body: schema.Record{"username": fmt.Sprint("u", i)}})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// TestOldNames: every answer about a plugin has the deprecated names of its settings, which are stored nowhere.
func TestOldNames(t *testing.T) {
	plugins := func(name string) (*schema.Schema, bool) {
		config := schema.Field{Name: "config", Type: schema.RecordT, Required: true,
			Fields:     []schema.Field{{Name: "redis", Type: schema.RecordT, Fields: []schema.Field{{Name: "host", Type: schema.String}}}},
			Shorthands: []schema.Shorthand{{Name: "redis_host", Type: schema.String, ReplacedWith: []string{"redis", "host"}}}}
		return &schema.Schema{Name: name, Fields: []schema.Field{config}}, true
	}
	s, _ := newService(service.Options{Plugins: plugins})
	created, _ := mutate(t, s, service.Create, "plugins", "", schema.Record{"name": "p", "config": schema.Record{"redis_host": "h"}})
	id := created["id"].(string)
	patched, _ := mutate(t, s, service.Update, "plugins", id, schema.Record{"enabled": false})
	res, err := s.Get(t.Context(), service.Target{Entity: "plugins", Ref: id})
	if err != nil {
		t.Fatal(err)
	}
	read, err := schema.Decode(res.Row)
	if err != nil {
		t.Fatal(err)
	}
	want := schema.Record{"redis": schema.Record{"host": "h"}, "redis_host": "h"}
	for name, rec := range map[string]schema.Record{"create": created, "update": patched, "get": read} {
		if diff := cmp.Diff(want, rec["config"]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
