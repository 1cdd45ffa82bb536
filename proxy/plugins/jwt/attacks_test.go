package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"strings"
	"testing"
	"time"

	golangjwt "github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

// Known attacks on JSON Web Tokens (RFC 8725, Wycheproof, published vulnerabilities), by class J1 to J11, each with its variants.
func TestAttacks(t *testing.T) {
	b := newBench(t)
	i := b.Build(Plugin(), schema.Record{})
	now := time.Now().Unix()
	valid := mint(t, "HS256", nil, map[string]any{"iss": "iss-HS256", "exp": now + 600})
	parts := strings.Split(valid, ".")
	claims := enc(`{"iss":"iss-HS256"}`)
	b64 := base64.StdEncoding

	type attack struct{ name, token string }
	var list []attack
	add := func(name, token string) { list = append(list, attack{name, token}) }

	for _, alg := range []string{`"none"`, `"None"`, `"NONE"`, `"nOnE"`, `""`, `null`, `1`, `["HS256"]`, `"hs256"`, `"HS256 "`, `"HS1"`} {
		h := enc(`{"alg":` + alg + `}`)
		add("J1 alg "+alg+", no signature", h+"."+claims+".")
		add("J1 alg "+alg+", old signature", h+"."+claims+"."+parts[2])
	}
	add("J1 no alg", raw(`{"typ":"JWT"}`, `{"iss":"iss-HS256"}`))

	der, _ := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	for name, key := range map[string][]byte{"PEM": []byte(publicPEM(t, rsaKey)), "PEM without end of line": []byte(strings.TrimSpace(publicPEM(t, rsaKey))), "DER": der, "PKCS1": x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)} {
		for _, iss := range []string{"iss-RS256", "iss-HS256", "iss-PS256"} {
			add("J2 HMAC with the public "+name+" for "+iss, mintWith(t, "HS256", key, nil, map[string]any{"iss": iss}))
		}
	}

	es := mint(t, "ES256", nil, map[string]any{"iss": "iss-ES256"})
	esText, esSig := es[:strings.LastIndexByte(es, '.')], es[strings.LastIndexByte(es, '.')+1:]
	rs, _ := base64.RawURLEncoding.DecodeString(esSig)
	hash := crypto.SHA256.New()
	hash.Write([]byte(esText))
	asn1, _ := ecdsa.SignASN1(rand.Reader, ecKeys["ES256"], hash.Sum(nil))
	n := elliptic.P256().Params().N.FillBytes(make([]byte, 32))
	zero, one := make([]byte, 32), append(make([]byte, 31), 1)
	for name, sig := range map[string][]byte{
		"r=s=0": append(zero, zero...), "r=0": append(zero, rs[32:]...), "s=0": append(rs[:32:32], zero...),
		"r=s=1": append(one, one...), "r=s=n": append(n, n...), "s=n": append(rs[:32:32], n...), "r+n": addN(rs, n),
		"DER": asn1, "trailing zero": append(rs[:64:64], 0), "leading zero": append([]byte{0}, rs...), "swapped": append(rs[32:64:64], rs[:32]...),
		"padded to P-384": append(append(make([]byte, 16), rs[:32]...), append(make([]byte, 16), rs[32:]...)...),
	} {
		add("J3 "+name, esText+"."+enc(string(sig)))
	}
	for _, alg := range []string{"ES384", "ES512"} {
		add("J3 curve of "+alg, mint(t, alg, nil, map[string]any{"iss": "iss-ES256"}))
	}
	add("J3 key of another curve", func() string {
		k := ecKey(elliptic.P256())
		return mintWith(t, "ES256", k, nil, map[string]any{"iss": "iss-ES256"})
	}())

	attacker, _ := rsa.GenerateKey(rand.Reader, 2048)
	jwk := map[string]any{"kty": "RSA", "n": enc(string(attacker.N.Bytes())), "e": "AQAB", "alg": "RS256"}
	for name, h := range map[string]map[string]any{
		"jwk": {"jwk": jwk}, "jku": {"jku": "http://127.0.0.1:1/jwks"}, "x5u": {"x5u": "http://127.0.0.1:1/cert"}, "x5c": {"x5c": []string{b64.EncodeToString(der)}},
	} {
		add("J4 "+name, mintWith(t, "RS256", attacker, h, map[string]any{"iss": "iss-RS256"}))
	}

	for _, kid := range []string{"../../../../dev/null", "/dev/null", "x' OR '1'='1", strings.Repeat("k", 64<<10), "iss-HS512", "iss-HS384\x00"} {
		add("J5 kid "+kid[:min(len(kid), 16)], mintWith(t, "HS256", []byte{}, map[string]any{"kid": kid}, map[string]any{"iss": "iss-HS256"}))
		add("J5 iss "+kid[:min(len(kid), 16)], mint(t, "HS256", nil, map[string]any{"iss": kid}))
	}
	add("J5 kid object", mintWith(t, "HS256", []byte{}, map[string]any{"kid": map[string]any{"a": 1}}, map[string]any{"iss": "iss-HS256"}))

	for _, h := range []string{`"crit":["exp"]`, `"crit":["b64"],"b64":false`, `"crit":["b64"],"b64":true`, `"b64":false`, `"b64":"false"`, `"crit":[]`, `"crit":null`, `"crit":"x"`, `"\u0063rit":["x"]`} {
		add("J6 "+h, raw(`{"alg":"HS256",`+h+`}`, `{"iss":"iss-HS256"}`))
	}

	for _, h := range []string{
		`{"alg":"HS256","alg":"HS256"}`, `{"alg":"none","alg":"HS256"}`, `{"alg":"HS256","\u0061lg":"none"}`, `{"alg":"HS256"}x`, `{"alg":"HS256"}{}`,
		"\xef\xbb\xbf" + `{"alg":"HS256"}`, `{"alg":"HS256","a":NaN}`, `{"alg":"HS256",}`, `{'alg':'HS256'}`, `["HS256"]`, `"HS256"`, ``, `{"alg":"HS256","a":"` + "\xff" + `"}`,
		`{"alg":"HS256","a":"\ud800"}`, `{"alg":"HS256","a":01}`, `{"alg":"HS256","a":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`, "{\"alg\":\"HS256\",\"a\":\"\n\"}",
		`{"alg":"HS256"}` + "\x00",
	} {
		add("J8 header "+h[:min(len(h), 40)], raw(h, `{"iss":"iss-HS256"}`))
	}
	for _, c := range []string{
		`{"iss":"zz","iss":"iss-HS256"}`, `{"iss":"iss-HS256","iss":"iss-HS256"}`, `{"iss":"iss-HS256","exp":1,"exp":9999999999}`, `{"iss":"iss-HS256"} x`,
		"\xef\xbb\xbf" + `{"iss":"iss-HS256"}`, `{"iss":"iss-HS256","exp":NaN}`, `{"iss":"iss-HS256","exp":Infinity}`, `{"iss":"iss-HS256","exp":+1}`,
		`{"iss":"iss-HS256","exp":0x10}`, `{"iss":"iss-HS256","a":` + strings.Repeat(`{"a":`, 4000) + "1" + strings.Repeat("}", 4000) + `}`,
	} {
		add("J8 claims "+c[:min(len(c), 40)], raw(`{"alg":"HS256"}`, c))
	}

	add("J9 padded signature", parts[0]+"."+parts[1]+"."+parts[2]+"=")
	add("J9 standard alphabet", stdAlphabet(t))
	add("J9 white space in the signature", parts[0]+"."+parts[1]+"."+parts[2][:10]+" "+parts[2][10:])
	add("J9 line end in the signature", parts[0]+"."+parts[1]+"."+parts[2][:10]+"\n"+parts[2][10:])
	add("J9 line end in the claims", parts[0]+"."+parts[1][:8]+"\r\n"+parts[1][8:]+"."+parts[2])
	add("J9 stray bits", parts[0]+"."+parts[1]+"."+strayBits(parts[2]))
	padHeader := base64.URLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "="
	padText := padHeader + "." + claims
	padSig, _ := golangjwt.SigningMethodHS256.Sign(padText, []byte(hsSecret))
	add("J9 padded header, signed", padText+"."+enc(string(padSig)))

	add("J10 fourth part", valid+".x")
	add("J10 five parts", enc(`{"alg":"RSA-OAEP","enc":"A256GCM","zip":"DEF"}`)+".a.b.c.d")
	add("J10 PBES2", enc(`{"alg":"PBES2-HS256+A128KW","p2c":2147483648}`)+".a.b.c.d")
	add("J10 a million dots", strings.Repeat(".", 1<<20))
	add("J10 a megabyte", strings.Repeat("a", 1<<20))
	add("J10 a megabyte of claims", parts[0]+"."+enc(`{"iss":"`+strings.Repeat("a", 1<<20)+`"}`)+"."+parts[2])
	add("J10 many members", raw(`{"alg":"HS256"}`, `{"iss":"iss-HS256"`+manyMembers(2000)+`}`))

	for _, a := range list {
		t.Run(a.name, func(t *testing.T) {
			x := plugintest.Request("GET", "/", auth(a.token)...)
			e := plugintest.Access(t, x, i)
			if e == nil || e.Status != 401 || x.Consumer != nil || x.Credential != nil || x.Request.Header.Has("X-Consumer-ID") {
				t.Fatalf("accepted: %v", e)
			}
		})
	}

	t.Run("J10 cost", func(t *testing.T) {
		for _, a := range list {
			x := plugintest.Request("GET", "/", auth(a.token)...)
			if n := testing.AllocsPerRun(1, func() { _ = i.(plugin.Accessor).Access(x) }); n > 300 {
				t.Errorf("%s: %v allocations", a.name, n)
			}
		}
	})
	t.Run("J11 two Authorization lines", func(t *testing.T) {
		other := mint(t, "HS256", nil, map[string]any{"iss": "iss-HS256", "sub": "root"})
		for _, headers := range [][]string{
			append(auth(valid), auth(other)...),
			append(auth(valid), "authorization: Bearer x.y.z"),
			append(auth(valid), "Authorization: bearer\t"+other),
		} {
			e := plugintest.Access(t, plugintest.Request("GET", "/", headers...), i)
			if diff := cmp.Diff(refused("Multiple tokens provided"), answerOf(e)); diff != "" {
				t.Error(diff)
			}
		}
	})
	t.Run("high s is valid ECDSA", func(t *testing.T) {
		s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(rs[32:]))
		tok := esText + "." + enc(string(append(rs[:32:32], s.FillBytes(make([]byte, 32))...)))
		if e := plugintest.Access(t, plugintest.Request("GET", "/", auth(tok)...), i); e != nil {
			t.Error("libraries make such signatures half of the time")
		}
	})
	t.Run("PSS salt of another length", func(t *testing.T) {
		text := enc(`{"alg":"PS256"}`) + "." + enc(`{"iss":"iss-PS256"}`)
		h := crypto.SHA256.New()
		h.Write([]byte(text))
		sig, _ := rsa.SignPSS(rand.Reader, rsaKey, crypto.SHA256, h.Sum(nil), &rsa.PSSOptions{SaltLength: 20})
		e := plugintest.Access(t, plugintest.Request("GET", "/", auth(text+"."+enc(string(sig)))...), i)
		if diff := cmp.Diff(refused("Invalid signature"), answerOf(e)); diff != "" {
			t.Error(diff)
		}
	})
}

// addN makes r larger by the order of the curve when that still fits; the verifier must not reduce it.
func addN(rs, n []byte) []byte {
	r := new(big.Int).Add(new(big.Int).SetBytes(rs[:32]), new(big.Int).SetBytes(n))
	if r.BitLen() > 256 {
		r.SetBytes(n)
	}
	return append(r.FillBytes(make([]byte, 32)), rs[32:]...)
}

// stdAlphabet is a good token whose signature has a '-' or '_' in it, spelt with '+' and '/'.
func stdAlphabet(t *testing.T) string {
	for n := 0; ; n++ {
		tok := mint(t, "HS256", nil, map[string]any{"iss": "iss-HS256", "n": n})
		last := strings.LastIndexByte(tok, '.')
		if std := strings.NewReplacer("-", "+", "_", "/").Replace(tok[last:]); std != tok[last:] {
			return tok[:last] + std
		}
	}
}

// strayBits sets a bit of the last character that decodes to nothing.
func strayBits(sig string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, sig[len(sig)-1])
	return sig[:len(sig)-1] + alphabet[last|1:last|1+1]
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(`,"m` + strings.Repeat("x", i%7) + strings.Repeat("y", i/7%50) + `":` + "1")
	}
	return b.String()
}
