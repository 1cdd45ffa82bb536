package jwt

import (
	"crypto/elliptic"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/plugin/plugintest"
	"concord/test/harness"
)

// TestKnownTokens: a token that was accepted is judged again whenever it comes, by what holds then.
func TestKnownTokens(t *testing.T) {
	ok := answer{Status: 200}
	for _, alg := range []string{"HS256", "ES256"} {
		_, pub := signingKey(t, alg)
		otherPub := ""
		if pub != "" {
			otherPub = publicPEM(t, ecKey(elliptic.P256()))
		}
		// row is the credential with fields changed.
		row := func(b *bench, id string, change schema.Record) schema.Record {
			rec := schema.Record{"id": id, "consumer": plugintest.Ref(b.bob), "key": "known", "algorithm": alg, "secret": hsSecret, "rsa_public_key": pub}
			for k, v := range change {
				rec[k] = v
			}
			return rec
		}
		var alice, name string
		for _, c := range []struct {
			name   string
			change func(b *bench, id string)
			want   answer
		}{
			{"nothing changes", func(*bench, string) {}, ok},
			{"credential deleted", func(b *bench, id string) { b.Delete("jwt_secrets", id) }, refused("No credentials found for given 'iss'")},
			{"consumer deleted", func(b *bench, _ string) { b.Delete("consumers", b.bob) }, refused("No credentials found for given 'iss'")},
			{"key renamed", func(b *bench, id string) { b.Put("jwt_secrets", row(b, id, schema.Record{"key": "other"})) }, refused("No credentials found for given 'iss'")},
			{"secret changed", func(b *bench, id string) {
				b.Put("jwt_secrets", row(b, id, schema.Record{"secret": strings.ToUpper(hsSecret), "rsa_public_key": otherPub}))
			}, refused("Invalid signature")},
			{"algorithm changed", func(b *bench, id string) { b.Put("jwt_secrets", row(b, id, schema.Record{"algorithm": "HS512"})) }, refused("Invalid algorithm")},
			{"written again", func(b *bench, id string) { b.Put("jwt_secrets", row(b, id, nil)) }, ok},
			{"given to another consumer", func(b *bench, id string) {
				alice = b.Consumer("alice")
				b.Put("jwt_secrets", row(b, id, schema.Record{"consumer": plugintest.Ref(alice)}))
			}, ok},
			{"consumer renamed", func(b *bench, _ string) {
				name = "robert"
				b.Put("consumers", schema.Record{"id": b.bob, "username": name})
			}, ok},
			{"deleted and made again", func(b *bench, id string) {
				b.Delete("jwt_secrets", id)
				b.credential("known", alg, hsSecret, pub)
			}, ok},
			{"deleted and made again with another secret", func(b *bench, id string) {
				b.Delete("jwt_secrets", id)
				b.credential("known", alg, strings.ToUpper(hsSecret), otherPub)
			}, refused("Invalid signature")},
		} {
			t.Run(alg+"/"+c.name, func(t *testing.T) {
				b := newBench(t)
				id := b.credential("known", alg, hsSecret, pub)
				i := b.Build(Plugin(), schema.Record{})
				text := mint(t, alg, nil, map[string]any{"iss": "known"})
				alice, name = b.bob, ""
				ask := func(want answer) {
					t.Helper()
					for range 3 {
						x := plugintest.Request("GET", "/", auth(text)...)
						if diff := cmp.Diff(want, answerOf(plugintest.Access(t, x, i))); diff != "" {
							t.Fatal(diff)
						}
						if want == ok && (x.Consumer.ID != alice || x.Credential.Identifier != "known") {
							t.Fatalf("consumer %s, credential %+v", x.Consumer.ID, x.Credential)
						}
						if want == ok && name != "" && x.Request.Header.Get("X-Consumer-Username") != name {
							t.Fatalf("the name is %q", x.Request.Header.Get("X-Consumer-Username"))
						}
					}
				}
				ask(ok)
				c.change(b, id)
				ask(c.want)
			})
		}
	}
}

// TestKnownTokenTimes: what the time forbids is refused although the token is known.
func TestKnownTokenTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		i := b.Build(Plugin(), schema.Record{"claims_to_verify": []any{"exp", "nbf"}, "maximum_expiration": 100.0})
		start := time.Now().Unix()
		text := mint(t, "HS256", nil, map[string]any{"iss": "iss-HS256", "exp": start + 110, "nbf": start + 10})
		for _, c := range []struct {
			at   int64
			want answer
		}{
			{0, claimFault("nbf", "token not valid yet")},
			{9, claimFault("nbf", "token not valid yet")},
			{10, answer{Status: 200}},
			{109, answer{Status: 200}},
			{110, claimFault("exp", "token expired")},
			{500, claimFault("exp", "token expired")},
		} {
			time.Sleep(time.Duration(start+c.at-time.Now().Unix()) * time.Second)
			for range 2 {
				e := plugintest.Access(t, plugintest.Request("GET", "/", auth(text)...), i)
				if diff := cmp.Diff(c.want, answerOf(e)); diff != "" {
					t.Errorf("after %d s: %s", c.at, diff)
				}
			}
		}
	})
}

// TestKnownTokenOfAnother: what one instance accepted another one judges by its own settings.
func TestKnownTokenOfAnother(t *testing.T) {
	b := newBench(t)
	p := Plugin()
	now := time.Now().Unix()
	text := mint(t, "HS256", map[string]any{"kid": "elsewhere"}, map[string]any{"iss": "iss-HS256", "exp": now + 1000})
	lax := b.Build(p, schema.Record{})
	for _, c := range []struct {
		name   string
		config schema.Record
		want   answer
	}{
		{"as lax", schema.Record{}, answer{Status: 200}},
		{"another claim names the credential", schema.Record{"key_claim_name": "kid"}, refused("No credentials found for given 'kid'")},
		{"secrets in base64", schema.Record{"secret_is_base64": true}, refused("Invalid signature")},
		{"a claim that is not there", schema.Record{"claims_to_verify": []any{"nbf"}}, claimFault("nbf", "must be a number")},
		{"shorter tokens only", schema.Record{"claims_to_verify": []any{"exp"}, "maximum_expiration": 10.0}, claimFault("exp", "exceeds maximum allowed expiration")},
		{"other place", schema.Record{"header_names": []any{"x-token"}}, answer{401, map[string]string{"message": "Unauthorized"}, "Bearer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := b.Build(p, c.config)
			for range 2 {
				if e := plugintest.Access(t, plugintest.Request("GET", "/", auth(text)...), lax); e != nil {
					t.Fatalf("%+v", e)
				}
				e := plugintest.Access(t, plugintest.Request("GET", "/", auth(text)...), i)
				if diff := cmp.Diff(c.want, answerOf(e)); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// remember puts in a token without an owner.
func (c *cache) remember(text string) {
	c.put(&verified{instance: 1, text: text}, new(state.View))
}

func (c *cache) count() (tokens, bytes int) {
	for i := range c.sets {
		s := &c.sets[i]
		sum := 0
		for w := range s.ways {
			if v := s.ways[w].Load(); v != nil {
				tokens++
				sum += v.size
			}
		}
		if sum != s.bytes || sum > setBytes {
			return -1, sum
		}
		bytes += sum
	}
	return tokens, bytes
}

// TestCacheIsBounded: fresh tokens, more than there is room for and of all lengths, neither grow the cache nor drive out what is in use.
func TestCacheIsBounded(t *testing.T) {
	c := newCache()
	hot := make([]string, 200)
	for i := range hot {
		hot[i] = fmt.Sprintf("hot-%d", i)
		c.remember(hot[i])
	}
	long := strings.Repeat("x", setBytes)
	lost := 0
	for i := range 2 * sets * ways {
		c.remember(fmt.Sprintf("%d-%s", i, long[:rand.IntN(len(long)-10)]))
		if h := hot[i%len(hot)]; c.get(1, h) == nil {
			lost++
			c.remember(h)
		}
	}
	if tokens, bytes := c.count(); tokens < sets || tokens > sets*ways || bytes > sets*setBytes {
		t.Errorf("%d tokens of %d bytes", tokens, bytes)
	}
	if lost > len(hot) {
		t.Errorf("tokens in use were lost %d times", lost)
	}
	if c.remember(long); c.get(1, long) != nil {
		t.Error("a very long token was kept")
	}
	if c.get(2, hot[0]) != nil {
		t.Error("a token of another instance was found")
	}
}

func TestCacheConcurrently(t *testing.T) {
	c := newCache()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 20000 {
				text := fmt.Sprint(i*(g+1)%97, strings.Repeat("y", 900))
				if v := c.get(1, text); v != nil && v.text != text {
					t.Error("another token was found")
				}
				c.remember(text)
			}
		})
	}
	wg.Wait()
	if tokens, _ := c.count(); tokens < 1 {
		t.Error("the sets' lengths are wrong")
	}
}

// TestKnownTokenIsNeverBehind: whoever asks after a change of the consumer sees it, however many others ask for the same token.
func TestKnownTokenIsNeverBehind(t *testing.T) {
	b := newBench(t)
	i := b.Build(Plugin(), schema.Record{}).(*instance)
	text := mint(t, "HS256", nil, map[string]any{"iss": "iss-HS256"})
	var made atomic.Int64 // changes of the name
	var wg sync.WaitGroup
	rename := func(n int64) {
		b.Put("consumers", schema.Record{"id": b.bob, "username": fmt.Sprint("name-", n)})
		made.Store(n)
	}
	rename(0)
	const changes = 300
	for range 3 {
		wg.Go(func() {
			for before := int64(0); before < changes; {
				before = made.Load()
				x := plugintest.Request("GET", "/", auth(text)...)
				if err := i.Access(x); err != nil {
					t.Error(err)
					return
				}
				name := x.Request.Header.Get("X-Consumer-Username")
				if n, err := strconv.ParseInt(strings.TrimPrefix(name, "name-"), 10, 64); err != nil || n < before || name != x.Consumer.Username {
					t.Errorf("%q, %q in the header, after change %d", x.Consumer.Username, name, before)
					return
				}
			}
		})
	}
	for n := range int64(changes) {
		rename(n + 1)
	}
	wg.Wait()
}

func TestKnownTokenAllocatesNothing(t *testing.T) {
	b := newBench(t)
	i := b.Build(Plugin(), schema.Record{"claims_to_verify": []any{"exp"}, "maximum_expiration": 3600.0}).(*instance)
	for _, alg := range []string{"HS256", "RS256", "ES256"} {
		x := plugintest.Request("GET", "/", auth(mint(t, alg, nil, map[string]any{"iss": "iss-" + alg, "exp": time.Now().Unix() + 600}))...)
		harness.NoAllocs(t, alg, func() {
			if err := i.Access(x); err != nil {
				t.Fatal(err)
			}
		})
	}
}
