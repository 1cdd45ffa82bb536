package vault

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"concord/fsm/entity"
)

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"token": "s3cret\n", "two": "a\n\n", "large": strings.Repeat("x", maxFile+1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "outside")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("token", filepath.Join(dir, "inside")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	vaults := map[string]*entity.Vault{
		"my-env": {Name: "env", Config: json.RawMessage(`{"prefix":"app-"}`)},
		"files":  {Name: "file", Config: json.RawMessage(`{"directory":` + string(must(json.Marshal(dir))) + `}`)},
		"odd":    {Name: "hcv"},
	}
	env := map[string]string{"MY_KEY": "v1", "APP_KEY": "v2", "OTHER_KEY": "v3", "APP_JSON": `{"user":"u","port":5432,"on":true,"list":[]}`, "EMPTY": ""}
	r := Resolver{
		Find:   func(p string) (*entity.Vault, bool) { v, ok := vaults[p]; return v, ok },
		Getenv: func(n string) (string, bool) { v, ok := env[n]; return v, ok },
	}
	for _, c := range []struct{ ref, want, err string }{
		{"{vault://env/my-key}", "v1", ""},
		{"{vault://env/MY_KEY}", "v1", ""},
		{"{vault://env/empty}", "", ""},
		{"{vault://my-env/key}", "v2", ""},
		{"{vault://my-env/key?prefix=other_}", "v3", ""},
		{"{vault://my-env/json/user}", "u", ""},
		{"{vault://my-env/json/port}", "5432", ""},
		{"{vault://my-env/json/on}", "true", ""},
		{"{vault://my-env/json/list}", "", "no member"},
		{"{vault://my-env/json/none}", "", "no member"},
		{"{vault://my-env/key/sub}", "", "not a JSON object"},
		{"{vault://env/absent}", "", "no variable ABSENT"},
		{"{vault://files/token}", "s3cret", ""},
		{"{vault://files/two}", "a\n", ""},
		{"{vault://files/inside}", "s3cret", ""},
		{"{vault://files/outside}", "", "escapes"},
		{"{vault://files/..}", "", "escapes"},
		{"{vault://files/pipe}", "", "not a regular file"},
		{"{vault://files/.}", "", "not a regular file"},
		{"{vault://files/absent}", "", "no such file"},
		{"{vault://files/large}", "", "larger than"},
		{"{vault://nobody/key}", "", "no vault with the prefix"},
		{"{vault://odd/key}", "", "no vault of the kind"},
		{"{vault://env}", "", "needs a vault and a key"},
		{"{vault:///key}", "", "needs a vault and a key"},
		{"{vault://%zz/key}", "", "vault reference"},
		{"plain", "", "not a vault reference"},
	} {
		t.Run(c.ref, func(t *testing.T) {
			got, err := r.Resolve(c.ref)
			if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q, %v; want %q, %q", got, err, c.want, c.err)
			}
		})
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"{vault://env/a}", "{vault://a/b/c?prefix=x}", "{vault://}", "{vault://[::1]/x}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := Parse(s); err == nil && (r.Vault == "" || r.Key == "" || strings.Contains(r.Key, "/")) {
			t.Errorf("%q: %+v", s, r)
		}
	})
}
