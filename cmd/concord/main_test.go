package main

import (
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"concord/test/harness"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"concord": main, "fetch": fetch, "upstream": slowUpstream, "await": await})
}

// TestScripts runs the verbs on real processes. Every script gets free ports and a prefix.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			for _, name := range []string{"PROXY", "ADMIN", "STATUS", "CLUSTER", "GOSSIP", "UPSTREAM"} {
				addr, err := harness.FreeAddr()
				if err != nil {
					return err
				}
				e.Setenv(name, addr)
			}
			busy, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			e.Defer(func() { busy.Close() })
			e.Setenv("BUSY", busy.Addr().String())
			e.Defer(func() { // a script that failed half-way leaves its node
				if pid, err := runningNode(e.WorkDir + "/node"); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			})
			for key, value := range map[string]string{
				"PREFIX": e.WorkDir + "/node", "NODE_NAME": "script", "PROXY_LISTEN": e.Getenv("PROXY"), "ADMIN_LISTEN": e.Getenv("ADMIN"),
				"STATUS_LISTEN": e.Getenv("STATUS"), "CLUSTER_LISTEN": e.Getenv("CLUSTER"), "GOSSIP_LISTEN": e.Getenv("GOSSIP"),
			} {
				e.Setenv("CONCORD_"+key, value)
			}
			return nil
		},
	})
}

func TestMistakesOnTheCommandLine(t *testing.T) {
	for _, args := range [][]string{{"foo"}, {"help", "foo"}, {"help", "config", "foo"}, {"start", "extra"}, {"run", "--nonsense"}, {"--nonsense"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			var out, errs strings.Builder
			if code := execute(args, &out, &errs); code != 1 || !strings.HasPrefix(errs.String(), "Error: ") {
				t.Errorf("exit code %d, %s", code, fmt.Sprint(out.String(), errs.String()))
			}
		})
	}
}
