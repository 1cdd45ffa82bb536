package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVariables: decK's templates, and what is wrong with one is said without its value.
func TestVariables(t *testing.T) {
	t.Setenv("DECK_TEXT", "two\nlines")
	t.Setenv("DECK_PORT", "8080")
	tests := []struct{ name, text, want, err string }{
		{"none", "a: $x {{ y }}", "a: $x {{ y }}", ""},
		{"text", `a: ${{ env "DECK_PORT" }}, ${{env "DECK_PORT"}}`, "a: 8080, 8080", ""},
		{"number", `${{ env "DECK_PORT" | toInt }} ${{ env "DECK_PORT" | toFloat }}`, "8080 8080", ""},
		{"flag", `${{ "true" | toBool }}`, "true", ""},
		{"block", `  ${{ env "DECK_TEXT" | indent 2 }}`, "  two\n  lines", ""},
		{"in a comment", "a: b\n  # ${{ env \"DECK_NONE\" }}\nc: d", "a: b\n  # ${{ env \"DECK_NONE\" }}\nc: d", ""},
		{"not set", `${{ env "DECK_NONE" }}`, "", "variable DECK_NONE is not set"},
		{"of another prefix", `${{ env "HOME" }}`, "", `variable "HOME": only those that begin with DECK_ are put in`},
		{"no number", `${{ env "DECK_TEXT" | toInt }}`, "", "the value of a variable is no int"},
		{"unknown function", "a: b\nc: ${{ nope }}", "", `line 2: function "nope" not defined`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := new(configFlags).expand([]byte(tt.text))
			if string(got) != tt.want || tt.err == "" && err != nil || tt.err != "" && (err == nil || err.Error() != tt.err) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// TestFilesBelow: all files below a directory are one configuration, and a diff does not show what came from variables.
func TestFilesBelow(t *testing.T) {
	var sent string
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		sent = string(b)
		_, _ = io.WriteString(w, `{"summary":{"updating":1},"changes":[{"action":"update","entity":"services","id":"x","name":"a","before":{"host":"old","tags":["t"]},"after":{"host":"h.hidden.example","tags":["hidden"]}}]}`)
	}))
	defer node.Close()
	t.Setenv("DECK_HOST", "hidden")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml":       "_format_version: '3.0'\n_info: {defaults: {service: {retries: 1}}}\nservices:\n- name: a\n  host: h.${{ env \"DECK_HOST\" }}.example\n",
		"b/c/d.YML":    "_format_version: '3.0'\n_info: {defaults: {route: {strip_path: false}}}\nservices:\n- {name: below, host: h}\n",
		"b/notes.txt":  "no configuration",
		".copy/a.yaml": "services:\n- {name: hidden-copy}\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out, said bytes.Buffer
	if code := execute(t.Context(), []string{"--admin", node.URL, "config", "diff", dir}, strings.NewReader(""), &out, &said); code != 0 {
		t.Fatalf("code %d: %s", code, said.String())
	}
	for _, part := range []string{`"h.hidden.example"`, `"below"`, `"retries":1`, `"strip_path":false`} {
		if !strings.Contains(sent, part) {
			t.Errorf("%s was not sent: %s", part, sent)
		}
	}
	if strings.Contains(sent, "hidden-copy") {
		t.Errorf("a hidden directory was read: %s", sent)
	}
	if text := out.String(); strings.Contains(text, "hidden") || !strings.Contains(text, `+  host: "h.[masked].example"`) {
		t.Errorf("the diff shows a variable: %s", text)
	}
}

// TestDumpWithoutSecrets: what a reader without the right to see secrets gets is no file to sync, and that is said.
func TestDumpWithoutSecrets(t *testing.T) {
	for _, tt := range []struct{ name, credential, said string }{
		{"with", "{consumer: bob, key: k1}", ""},
		{"without", "{consumer: bob}", "the token may not see secrets"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = fmt.Fprintf(w, `{"config":"_format_version: '3.0'\nconsumers:\n- username: bob\nkeyauth_credentials:\n- %s\n"}`, tt.credential)
			}))
			defer node.Close()
			var out, said bytes.Buffer
			code := execute(t.Context(), []string{"--admin", node.URL, "config", "dump"}, strings.NewReader(""), &out, &said)
			if code != 0 || !strings.Contains(said.String(), tt.said) || tt.said == "" && said.Len() > 0 || !strings.Contains(out.String(), "keyauth_credentials") {
				t.Errorf("code %d, %q: %s", code, said.String(), out.String())
			}
		})
	}
}
