package main

import (
	"bytes"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestHelpShowsAnExampleFirst walks the whole tree of commands.
func TestHelpShowsAnExampleFirst(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		if cmd.Name() == "help" {
			return // says how to use the others
		}
		t.Run(strings.ReplaceAll(cmd.CommandPath(), " ", "_"), func(t *testing.T) {
			var out bytes.Buffer
			cmd.SetOut(&out)
			if err := cmd.Help(); err != nil {
				t.Fatal(err)
			}
			first, rest, _ := strings.Cut(out.String(), "\n")
			if first != "Example:" || !strings.HasPrefix(strings.TrimSpace(rest), cmd.Root().Name()+" ") && !strings.Contains(strings.SplitN(rest, "\n", 2)[0], cmd.CommandPath()) {
				t.Errorf("help begins with %q, want an example:\n%s", first, out.String())
			}
			if at := strings.Index(out.String(), "Usage:"); at < 0 || strings.Index(out.String(), "Example:") > at {
				t.Errorf("no usage behind the example:\n%s", out.String())
			}
			if cmd.Runnable() && cmd.Short == "" {
				t.Error("no short description")
			}
		})
	}
	walk(newRoot())
}

// TestCompletionInAShell presses Tab in a real shell: bash through the function that its readline would call, zsh through the
// completion system on a pseudo-terminal of its own (zpty).
func TestCompletionInAShell(t *testing.T) {
	bin := t.TempDir()
	calls := filepath.Join(bin, "calls")
	if err := os.WriteFile(calls, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	node := httptest.NewServer(admin(calls))
	defer node.Close()
	self, err := os.Executable() // this test program is gwctl when it is called so
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "gwctl")); err != nil {
		t.Fatal(err)
	}
	const bash = `
source <(gwctl completion bash)
COMP_WORDS=(gwctl get service "") COMP_CWORD=3 COMP_LINE="gwctl get service " COMP_POINT=18 COMP_TYPE=9
__start_gwctl
printf '%s\n' "${COMPREPLY[@]}"
COMP_WORDS=(gwctl ex) COMP_CWORD=1 COMP_LINE="gwctl ex" COMP_POINT=8
__start_gwctl
printf '%s\n' "${COMPREPLY[@]}"`
	const zsh = `
zmodload zsh/zpty
zpty -b z zsh -f -i
read_until() {
	local got= line i
	for ((i = 0; i < 1200; i++)); do
		while zpty -r -t z line; do got+=$line; done
		[[ $got == *$1* ]] && break
		sleep 0.05
	done
	print -r -- $got
}
zpty -w z 'PS1=; autoload -U compinit; compinit -u -D; source <(gwctl completion zsh); print rea""dy'
read_until $'\nready'
zpty -w -n z $'gwctl get service th\t'
read_until three
zpty -w -n z $'\C-ugwctl exp\t'
read_until expose`
	for _, tt := range []struct {
		shell, script string
		args          []string
		want          []string
	}{
		{"bash", bash, []string{"--norc", "--noprofile", "-c"}, []string{"one", "two", "three", "expose"}},
		{"zsh", zsh, []string{"-f", "-c"}, []string{"three", "expose"}},
	} {
		t.Run(tt.shell, func(t *testing.T) {
			path, err := exec.LookPath(tt.shell)
			if err != nil {
				t.Skipf("%s is not installed: its completion is not tested here", tt.shell)
			}
			cmd := exec.CommandContext(t.Context(), path, append(tt.args, tt.script)...)
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "GWCTL_ADMIN="+node.URL, "HOME="+bin, "TERM=xterm")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range tt.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("no %q in what the shell offers:\n%s", want, out)
				}
			}
		})
	}
}
