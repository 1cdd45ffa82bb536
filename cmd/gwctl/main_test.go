package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gwctl": main})
}

// TestScripts runs gwctl against an Admin API with two members that echoes what it was told into the log file $CALLS.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			calls := filepath.Join(e.WorkDir, "calls")
			if err := os.WriteFile(calls, nil, 0o600); err != nil {
				return err
			}
			plain := httptest.NewServer(admin(calls))
			secure := httptest.NewUnstartedServer(admin(calls))
			secure.Config.ErrorLog = log.New(io.Discard, "", 0)
			secure.StartTLS()
			e.Defer(plain.Close)
			e.Defer(secure.Close)
			cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
			e.Setenv("GWCTL_ADMIN", plain.URL)
			e.Setenv("SECURE", secure.URL)
			return os.WriteFile(filepath.Join(e.WorkDir, "ca.pem"), cert, 0o600)
		},
	})
}

func admin(calls string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cluster/status", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"cluster_id":"c1","leader":"id-1","term":3,"commit_index":42,"healthy":false,"failure_tolerance":0,"nodes":[`+
			`{"id":"id-1","name":"node1","address":"10.0.0.1:7373","role":"voter","state":"leader","alive":true,"applied_index":42,"version":"0.1.0"},`+
			`{"id":"id-2","name":"node2","address":"10.0.0.2:7373","role":"voter","state":"unreachable","alive":false,"applied_index":40,"version":"0.1.0"}]}`)
	})
	record := func(answer string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var body any
			_ = json.NewDecoder(r.Body).Decode(&body) // DELETE has none
			b, err := json.Marshal(body)
			if err == nil {
				err = os.WriteFile(calls, fmt.Appendf(nil, "%s %s %s\n", r.Method, r.URL.EscapedPath(), b), 0o600)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			fmt.Fprint(w, answer)
		}
	}
	mux.HandleFunc("POST /cluster/tokens", record(`{"token":"CJT1.abc"}`))
	mux.HandleFunc("POST /cluster/leave", record(`{}`))
	mux.HandleFunc("POST /cluster/leader", record(``))
	mux.HandleFunc("DELETE /cluster/nodes/{node}", record(``))
	mux.HandleFunc("POST /cluster/join", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || strings.Contains(string(body), "stale") {
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"message":"the token has expired","hint":"make a new one"}`)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		record(`{"cluster_id":"c1","nodes":[{"id":"id-1"},{"id":"id-2"},{"id":"id-3"}]}`)(w, r)
	})
	entities(mux, calls)
	accessOf(mux, calls)
	mux.HandleFunc("/nonsense/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") })
	return mux
}

// TestWait: a node that has applied a change and does not serve it yet is waited for; what a node of an older version does not say is not.
func TestWait(t *testing.T) {
	const nodes = `{"nodes":[{"name":"a","alive":true,"applied_index":42,"served_index":%d},{"name":"b","alive":true,"applied_index":42},{"name":"c","alive":false}]}`
	var asked atomic.Int64
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch w.Header().Set("X-Config-Index", "42"); r.URL.Path {
		case "/endpoints":
			fmt.Fprint(w, `{"data":["/services","/services/{services}"]}`)
		case "/cluster/status":
			fmt.Fprintf(w, nodes, min(39+asked.Add(1), 42))
		default:
			fmt.Fprint(w, `{"id":"x"}`)
		}
	}))
	defer api.Close()
	var said bytes.Buffer
	code := execute(t.Context(), []string{"--admin", api.URL, "create", "service", "name=x", "--wait"}, strings.NewReader(""), io.Discard, &said)
	if code != 0 || asked.Load() != 3 || !strings.Contains(said.String(), "committed at 42, live on 2/3 nodes in ") || !strings.Contains(said.String(), "c does not answer") {
		t.Errorf("code %d after %d questions: %s", code, asked.Load(), said.String())
	}
}

func TestExitCodes(t *testing.T) {
	release := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer silent.Close()
	defer close(release)
	node := httptest.NewServer(admin(filepath.Join(t.TempDir(), "calls")))
	defer node.Close()
	tests := []struct {
		name string
		args []string
		want int
	}{
		{"fine", []string{"--admin", node.URL, "cluster", "status"}, 0},
		{"without a scheme", []string{"--admin", strings.TrimPrefix(node.URL, "http://"), "cluster", "status"}, 0},
		{"refused", []string{"--admin", node.URL, "cluster", "join", "a:1", "--token", "stale"}, exitFailed},
		{"wrong flag", []string{"--nonsense"}, exitUsage},
		{"help on a command", []string{"help", "cluster", "join"}, 0},
		{"help on what takes arguments", []string{"help", "get", "services"}, 0},
		{"help on nothing known", []string{"help", "cluster", "nonsense"}, exitUsage},
		{"a node that never answers", []string{"--admin", silent.URL, "--timeout", "50ms", "cluster", "leave"}, exitUnreachable},
		{"degraded", []string{"--admin", node.URL, "cluster", "status", "--check"}, exitDegraded},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := execute(context.Background(), tt.args, strings.NewReader(""), t.Output(), t.Output()); got != tt.want {
				t.Errorf("exit code %d, want %d", got, tt.want)
			}
		})
	}
}
