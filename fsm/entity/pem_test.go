package entity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"concord/fsm/entity"
	"concord/fsm/schema"
)

// material are keys and certificates as PEM text, by what they are.
var material = makeMaterial()

func makeMaterial() map[string]string {
	far := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	ec, ec2 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	rsaKey, small := must(rsa.GenerateKey(rand.Reader, 2048)), must(rsa.GenerateKey(rand.Reader, 1024))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	sec1 := encodePEM("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ec)))
	return map[string]string{
		"ec": selfSigned(ec, false, far), "ec key": encodePEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ec))),
		"ec key, SEC 1": encodePEM("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}) + sec1,
		"ec public":     encodePEM("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(ec.Public()))),
		"ec2":           selfSigned(ec2, false, far), "ec2 key": encodePEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ec2))),
		"rsa": selfSigned(rsaKey, false, far), "rsa key": encodePEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)),
		"rsa public": encodePEM("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)),
		"1024 bits":  encodePEM("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(small.Public()))),
		"ed":         selfSigned(ed, false, far), "ed key": encodePEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ed))),
		"ca": selfSigned(ec, true, far), "ca2": selfSigned(ec2, true, far), "expired": selfSigned(ec, true, time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)),
		"encrypted": "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func encodePEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func selfSigned(key crypto.Signer, ca bool, until time.Time) string {
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: until, IsCA: ca, BasicConstraintsValid: ca}
	return encodePEM("CERTIFICATE", must(x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)))
}

// body writes a JSON object whose texts are the named material; other values are taken as they are.
func body(pairs ...string) string {
	rec := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		v, ok := material[pairs[i+1]]
		if !ok {
			v = pairs[i+1]
		}
		rec[pairs[i]] = v
	}
	return string(must(json.Marshal(rec)))
}

func TestCertificates(t *testing.T) {
	for _, v := range []vector{
		{name: "PKCS#8", body: body("cert", "ec", "key", "ec key")},
		{name: "SEC 1 behind its parameters", body: body("cert", "ec", "key", "ec key, SEC 1")},
		{name: "PKCS#1", body: body("cert", "rsa", "key", "rsa key")},
		{name: "Ed25519", body: body("cert", "ed", "key", "ed key")},
		{name: "chain", body: body("cert", material["rsa"]+material["ca"], "key", "rsa key")},
		{name: "text around it", body: body("cert", "subject: x\n"+material["rsa"], "key", "rsa key")},
		{name: "the chain in the wrong order", body: body("cert", material["ca"]+material["rsa"], "key", "rsa key"), message: "schema violation (certificate does not match key)"},
		{name: "broken chain", body: body("cert", material["rsa"]+encodePEM("CERTIFICATE", []byte("x")), "key", "rsa key"), message: "schema violation (cert: invalid certificate: …"},
		{name: "encrypted key", body: body("cert", "rsa", "key", "encrypted"), message: "schema violation (key: invalid key: it is encrypted: …"},
		{name: "public key for the private one", body: body("cert", "ec", "key", "ec public"), message: "schema violation (key: invalid key: …"},
		{name: "both bad", body: body("cert", "x", "key", "y"), message: "2 schema violations (cert: invalid certificate: there is no PEM block \"CERTIFICATE\"; key: invalid key: there is no PEM block \"PRIVATE KEY\")"},
		{name: "cert missing", body: body("key", "ec key"), message: "schema violation (cert: required field missing)"},
		{name: "reference and key", body: body("cert", "{vault://env/c}", "key", "ec key")},
		{name: "alternative", body: body("cert", "rsa", "key", "rsa key", "cert_alt", "ec", "key_alt", "ec key"), want: `{"snis":null}`},
		{name: "alternative by reference", body: body("cert", "rsa", "key", "rsa key", "cert_alt", "{vault://env/c}", "key_alt", "ec key")},
		{name: "alternative of the same kind", body: body("cert", "ec", "key", "ec key", "cert_alt", "ec2", "key_alt", "ec2 key"), message: "schema violation (certificate and alternative certificate need to have different type…"},
		{name: "patch one half", current: body("cert", "ec", "key", "ec key"), body: body("cert", "ec2"), message: "schema violation (certificate does not match key)"},
		{name: "patch both", current: body("cert", "ec", "key", "ec key"), body: body("cert", "ec2", "key", "ec2 key")},
		{name: "patch an alternative in", current: body("cert", "rsa", "key", "rsa key"), body: body("cert_alt", "ec"), message: "schema violation (all or none of these fields must be set: 'cert_alt', 'key_alt')"},
		{name: "snis", body: strings.Replace(body("cert", "ec", "key", "ec key"), "{", `{"snis":["*.a.b","a.*","*"],`, 1), want: `{"snis":["*.a.b","a.*","*"]}`},
	} {
		v.entity = "certificates"
		t.Run(v.name, v.run)
	}
}

func TestCADigest(t *testing.T) {
	def, _ := entity.Lookup("ca_certificates")
	write := func(current schema.Record, cert string) (schema.Record, error) {
		rec, errs := def.Schema.Prepare(schema.Record{"cert": cert}, schema.Options{Auto: auto})
		if errs != nil {
			t.Fatal(errs)
		}
		return def.Transform(rec, current)
	}
	one, err := write(nil, material["ca"])
	if d, _ := one["cert_digest"].(string); err != nil || len(d) != 64 {
		t.Fatalf("digest %q, %v", d, err)
	}
	other, err := write(one, material["ca2"])
	if err != nil || other["cert_digest"] == one["cert_digest"] {
		t.Errorf("the digest does not follow the certificate: %v", err)
	}
	if again, err := write(one, "\n"+material["ca"]); err != nil || again["cert_digest"] != one["cert_digest"] {
		t.Errorf("the digest depends on white space: %v", err)
	}
	for name, want := range map[string]string{
		"ec":      `schema violation (certificate does not appear to be a CA because it is missing the "CA" basic constraint)`,
		"expired": `schema violation (certificate expired, "Not After" time is in the past)`,
	} {
		if _, err := write(one, material[name]); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	if _, err := write(nil, material["ca"]+material["ca2"]); err == nil || !strings.Contains(err.Error(), "one certificate at a time") {
		t.Errorf("two at once: %v", err)
	}
	if rec, err := write(schema.Record{"cert": material["expired"]}, material["expired"]); err != nil || rec["cert_digest"] == nil {
		t.Errorf("one that expired since: %v", err)
	}
}

func TestKeys(t *testing.T) {
	const x, y = "jffJ7r6fHiBnhKlCAZBqLTJhoCzVQUNGsaUAg9ebX9s", "qEu6-TRO9q5HIEDim60YMNZm430HQyb59vXnVzP0oT4"
	const bad = "schema violation (could not load JWK, likely not a valid key)"
	jwk := func(members string) string { return body("kid", "k", "jwk", `{"kid":"k",`+members+`}`) }
	for _, v := range []vector{
		{name: "EC", body: jwk(`"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `"`), want: `{"pem":null}`},
		{name: "EC, private", body: jwk(`"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `","d":"g_fZkyNbcJAniQZkPC6cRkuRHsFBcTsxVhh0vT6-Nko"`)},
		{name: "EC, private part no base64", body: jwk(`"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `","d":"§"`), message: bad},
		{name: "EC, not on the curve", body: jwk(`"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + x + `"`), message: bad},
		{name: "EC, other curve", body: jwk(`"kty":"EC","crv":"P-384","x":"` + x + `","y":"` + y + `"`), message: bad},
		{name: "EC, no curve", body: jwk(`"kty":"EC","x":"` + x + `","y":"` + y + `"`), message: bad},
		{name: "RSA", body: jwk(`"kty":"RSA","n":"AQAB","e":"AQAB"`)},
		{name: "RSA without e", body: jwk(`"kty":"RSA","n":"AQAB"`), message: bad},
		{name: "OKP", body: jwk(`"kty":"OKP","crv":"X25519","x":"` + x + `"`)},
		{name: "OKP, too short", body: jwk(`"kty":"OKP","crv":"Ed448","x":"` + x + `"`), message: bad},
		{name: "symmetric", body: jwk(`"kty":"oct","k":"AAAA"`), message: bad},
		{name: "kid is a number", body: body("kid", "5", "jwk", `{"kid":5}`), message: "schema violation (could not json decode jwk string)"},
		{name: "null", body: body("kid", "5", "jwk", `null`), message: "schema violation (kid in jwk.kid must be equal to keys.kid)"},
		{name: "kid wrong type", body: `{"kid":5,"jwk":"{}"}`, message: "schema violation (kid: expected a string)"},
		{name: "patch to the other form", current: jwk(`"kty":"RSA","n":"AQAB","e":"AQAB"`), body: `{"jwk":null,"pem":` + body("public_key", "ec public") + `}`, want: `{"jwk":null}`},
		{name: "pair", body: `{"kid":"k","pem":` + body("public_key", "rsa public", "private_key", "rsa key") + `}`},
		{name: "pair with references", body: `{"kid":"k","pem":` + body("public_key", "rsa public", "private_key", "{vault://a/b}") + `}`},
		{name: "no pair", body: `{"kid":"k","pem":` + body("public_key", "ec public", "private_key", "rsa key") + `}`, message: "schema violation (pem: public key does not match private key)"},
	} {
		v.entity = "keys"
		t.Run(v.name, v.run)
	}
}

func TestAdvice(t *testing.T) {
	def, _ := entity.Lookup("jwt_secrets")
	for _, c := range []struct{ name, body, want string }{
		{"secret made here", `{` + owner + `}`, ""},
		{"short secret", `{` + owner + `,"secret":"supersecret"}`, "11 bytes"},
		{"short secret that is not used", `{` + owner + `,"secret":"s","algorithm":"RS256","rsa_public_key":` + string(must(json.Marshal(material["rsa public"]))) + `}`, ""},
		{"short RSA key", `{` + owner + `,"algorithm":"PS512","rsa_public_key":` + string(must(json.Marshal(material["1024 bits"]))) + `}`, "1024 bits"},
		{"issuer without a slash", `{` + owner + `,"key":"https://x.auth0.com"}`, "https://x.auth0.com/"},
		{"both", `{` + owner + `,"key":"https://x.auth0.com","secret":"s"}`, "; key"},
	} {
		rec, errs := prepare(t, "jwt_secrets", schema.Insert, "", c.body)
		if errs != nil {
			t.Fatal(c.name, errs)
		}
		if got := def.Advise(rec); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

func TestHashSecret(t *testing.T) {
	def, _ := entity.Lookup("oauth2_credentials")
	write := func(current schema.Record, in schema.Record) (schema.Record, error) {
		o := schema.Options{Auto: auto, Current: current}
		if current != nil {
			o.Mode = schema.Update
		} else {
			in["consumer"], in["name"] = schema.Record{"id": otherID}, "n"
		}
		rec, errs := def.Schema.Prepare(in, o)
		if errs != nil {
			t.Fatal(errs)
		}
		return def.Transform(rec, current)
	}
	rec, err := write(nil, schema.Record{"client_secret": "hsec", "hash_secret": true})
	hash, _ := rec["client_secret"].(string)
	if err != nil || !strings.HasPrefix(hash, "$pbkdf2-sha512$i=10000,l=32$") || !entity.VerifySecret(hash, "hsec") || entity.VerifySecret(hash, "Hsec") {
		t.Fatalf("%q %v", hash, err)
	}
	other, err := write(nil, schema.Record{"client_secret": "hsec", "hash_secret": true, "client_id": "other"})
	if err != nil || other["client_secret"] == hash {
		t.Errorf("two credentials share a salt: %v", err)
	}
	for _, c := range []struct {
		name string
		in   schema.Record
		same bool
	}{
		{"another name", schema.Record{"name": "x"}, true},
		{"the hash sent back", schema.Record{"client_secret": hash}, true},
		{"a new secret", schema.Record{"client_secret": "new"}, false},
	} {
		if got, err := write(rec, c.in); err != nil || (got["client_secret"] == hash) != c.same || got["client_secret"] == "new" {
			t.Errorf("%s: %v %v", c.name, got, err)
		}
	}
	if got, err := write(rec, schema.Record{"client_secret": "new"}); err != nil || !entity.VerifySecret(got["client_secret"].(string), "new") {
		t.Errorf("the new secret does not verify: %v", err)
	}
	if _, err := write(rec, schema.Record{"hash_secret": false}); err == nil {
		t.Error("a hash became a secret that is compared as it is")
	}
	if got, err := write(nil, schema.Record{"client_secret": "clear"}); err != nil || got["client_secret"] != "clear" {
		t.Errorf("not to be hashed: %v %v", got, err)
	}
	// Seen on the wire: what Kong makes of "hsec".
	const seen = "$pbkdf2-sha512$i=10000,l=32$DE5KQFPU85eQhcZqFmMTvg$mbeWvKYVsCiws6Wa2n6HgGCc0/FEdtiJThUjVwHkdgU"
	if !entity.VerifySecret(seen, "hsec") {
		t.Error("a hash of Kong does not verify")
	}
	if got, err := write(nil, schema.Record{"client_secret": seen, "hash_secret": true}); err != nil || got["client_secret"] != seen {
		t.Errorf("an imported hash is hashed again: %v %v", got, err)
	}
}

// FuzzSecretHash: no text makes the comparison panic or run for long, and none but a hash verifies.
func FuzzSecretHash(f *testing.F) {
	f.Add("$pbkdf2-sha512$i=1,l=32$DE5KQFPU85eQhcZqFmMTvg$mbeWvKYVsCiws6Wa2n6HgGCc0/FEdtiJThUjVwHkdgU", "hsec")
	f.Add("$pbkdf2-sha512$i=99999999,l=1$$", "")
	f.Fuzz(func(t *testing.T, hash, secret string) {
		if entity.VerifySecret(hash, secret) && !strings.HasPrefix(hash, "$pbkdf2-sha512$") {
			t.Fatalf("%q verifies", hash)
		}
	})
}

// FuzzPEM: no text makes the parsers panic.
func FuzzPEM(f *testing.F) {
	for _, text := range material {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if chain, err := entity.ParseCertificates(text); err == nil && len(chain) == 0 {
			t.Fatal("no certificate and no error")
		}
		if key, err := entity.ParsePrivateKey(text); err == nil && key.Public() == nil {
			t.Fatal("a key without a public half")
		}
		if key, err := entity.ParsePublicKey(text); err == nil && key == nil {
			t.Fatal("no key and no error")
		}
	})
}
