package e2e

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"concord/test/harness"
)

// TestGwctlWait: when --wait returns, every node's proxy serves the change, not only its copy of the configuration.
func TestGwctlWait(t *testing.T) {
	t.Parallel()
	c := harness.StartCluster(t, 3)
	echo := harness.StartEcho(t)
	if _, err := c.Any().Gwctl("create", "service", "name=s", "url="+echo.URL); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		path := fmt.Sprintf("/w%d", i)
		node := c.Any()
		cmd := exec.CommandContext(t.Context(), harness.Bin(t, "gwctl"), "--admin", "http://"+node.Admin, "create", "route", "--service", "s", "name=r"+strconv.Itoa(i), "paths[]="+path, "--wait")
		cmd.Env = node.Environ()
		out, err := cmd.CombinedOutput()
		if err != nil || !regexp.MustCompile(`committed at \d+, live on 3/3 nodes in \d+ ms`).Match(out) {
			t.Fatalf("%v %s", err, out)
		}
		for _, n := range c.Nodes {
			if a := n.Get(path); a.Status != 200 {
				t.Errorf("%s does not serve %s after --wait: %d %s", n.Name, path, a.Status, a.Body)
			}
		}
	}
	a := c.Any().JSON("GET", "/cluster/status", "")
	for _, n := range a.JSON()["nodes"].([]any) {
		if n, _ := n.(map[string]any); n["served_index"] == nil {
			t.Errorf("no served_index: %v", n)
		}
	}
}

// TestGwctl puts a service behind a cluster with one command, pastes what it prints, and looks at what it has made.
func TestGwctl(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	t.Parallel()
	c := harness.StartCluster(t, 3)
	echo := harness.StartEcho(t)
	gwctl := func(args ...string) string {
		t.Helper()
		out, err := c.Any().Gwctl(args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	has := func(text string, patterns ...string) {
		t.Helper()
		for _, p := range patterns {
			if !regexp.MustCompile(p).MatchString(text) {
				t.Errorf("no %q in:\n%s", p, text)
			}
		}
	}
	paste := func(line string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "sh", "-c", line).Output()
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		head, _, _ := strings.Cut(string(out), "\r\n")
		return head
	}
	last := func(text string) string { return text[strings.LastIndexByte(text, '\n')+1:] }

	for _, auth := range []string{"jwt", "key-auth", "basic-auth"} {
		line := last(gwctl("expose", echo.URL, "--path", "/"+auth, "--auth", auth, "--consumer", "john", "--rate", "50/minute", "--wait"))
		has(paste(line), `^HTTP/1\.1 200`)
		without, _, _ := strings.Cut(line, " -H ")
		has(paste(without), `^HTTP/1\.1 401`)
	}
	has(paste(last(gwctl("expose", echo.URL, "--host", "*.example.com", "--name", "open", "--wait"))), `^HTTP/1\.1 200`)
	if _, err := c.Any().Gwctl("expose", echo.URL, "--path", "/other", "--name", "open"); err == nil || !strings.Contains(err.Error(), `there is a service "open" already`) {
		t.Errorf("exposing under a name that is taken: %v", err)
	}

	has(gwctl("list", "routes", "--service", "jwt"), `(?m)^jwt `, `/jwt`)
	has(gwctl("list", "plugins", "--route", "jwt", "-o", "json"), `"exp"`, `"minute": 50`)
	has(gwctl("get", "consumer", "john"), `(?m)^username: +john$`)

	gwctl("create", "route", "--service", "jwt", "name=fine", "paths[]=/jwt/deep", "methods[]=POST", "--wait")
	has(gwctl("route", "test", "POST", "http://x/jwt/deep/er"), `Route:\n  fine \(/jwt/deep\)`, `lose:\n  jwt \(/jwt\)\n    the winner has more kinds of criteria`,
		`Upstream: `+regexp.QuoteMeta(echo.URL)+`/er \(service jwt\)`)
	has(gwctl("route", "test", "GET", "http://x/jwt/deep/er"), `Route:\n  jwt \(/jwt\)`, `fine \(/jwt/deep\)\n    methods: GET, wanted POST`, `1\. jwt +route +priority`, `2\. rate-limiting`)
	if out, err := c.Any().Gwctl("route", "test", "GET", "https://nowhere/"); err == nil || !strings.Contains(err.Error(), "No route matches /") {
		t.Errorf("a request without a route: %s %v", out, err)
	}

	node := c.Any()
	edit := exec.CommandContext(t.Context(), harness.Bin(t, "gwctl"), "--admin", "http://"+node.Admin, "edit", "route", "fine", "--wait")
	edit.Env = append(node.Environ(), "EDITOR=sed -i 's/- POST/- PUT/'")
	out, err := edit.CombinedOutput()
	if err != nil {
		t.Fatalf("edit: %v %s", err, out)
	}
	has(string(out), `Changed the route fine`, `committed at \d+, live on 3/3 nodes in \d+ ms`)
	has(gwctl("get", "route", "fine"), `(?m)^methods: +PUT$`)
	gwctl("delete", "route", "fine", "--yes", "--wait")
	if _, err := c.Any().Gwctl("get", "route", "fine"); err == nil || !strings.Contains(err.Error(), `there is no route "fine"`) {
		t.Errorf("a deleted route: %v", err)
	}
}
