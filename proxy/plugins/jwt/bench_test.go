package jwt

import (
	"testing"
	"time"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

// BenchmarkAccess is the cost of a request with the same token; BenchmarkFresh that of one with a token not seen before.
func BenchmarkAccess(b *testing.B) {
	g := newBench(b)
	i := g.Build(Plugin(), schema.Record{"claims_to_verify": []any{"exp"}}).(plugin.Accessor)
	for _, alg := range []string{"HS256", "RS256", "ES256", "EdDSA"} {
		b.Run(alg, func(b *testing.B) {
			x := plugintest.Request("GET", "/", auth(mint(b, alg, nil, map[string]any{
				"iss": "iss-" + alg, "sub": "1234567890", "iat": 1700000000, "exp": time.Now().Unix() + 3600,
			}))...)
			b.ReportAllocs()
			for b.Loop() {
				if err := i.Access(x); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkFresh(b *testing.B) {
	g := newBench(b)
	i := g.Build(Plugin(), schema.Record{"claims_to_verify": []any{"exp"}}).(*instance)
	for _, alg := range []string{"HS256", "RS256", "ES256", "EdDSA"} {
		b.Run(alg, func(b *testing.B) {
			x := plugintest.Request("GET", "/", auth(mint(b, alg, nil, map[string]any{
				"iss": "iss-" + alg, "sub": "1234567890", "iat": 1700000000, "exp": time.Now().Unix() + 3600,
			}))...)
			b.ReportAllocs()
			for b.Loop() {
				i.number++ // as if another instance had seen it
				if err := i.Access(x); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSignature is the least that a fresh token can cost.
func BenchmarkSignature(b *testing.B) {
	for _, alg := range []string{"HS256", "RS256", "ES256", "EdDSA"} {
		b.Run(alg, func(b *testing.B) {
			_, pub := signingKey(b, alg)
			v := newVerifier(nil, &entity.JWTSecret{Algorithm: alg, Secret: hsSecret, RSAPublicKey: pub})
			var tok token
			if err := tok.parse(mint(b, alg, nil, map[string]any{"iss": "iss-" + alg, "sub": "1234567890", "iat": 1700000000, "exp": 1900000000})); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if !v.verify(tok.signed, tok.sig, false) {
					b.Fatal("wrong")
				}
			}
		})
	}
}

// BenchmarkParse is the part of it that is not cryptography.
func BenchmarkParse(b *testing.B) {
	text := raw(`{"alg":"HS256","typ":"JWT"}`, `{"iss":"iss-HS256","sub":"1234567890","iat":1700000000,"exp":1900000000}`)
	var tok token
	b.ReportAllocs()
	for b.Loop() {
		if err := tok.parse(text); err != nil {
			b.Fatal(err)
		}
	}
}
