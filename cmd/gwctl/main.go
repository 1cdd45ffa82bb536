// Command gwctl operates a gateway through the Admin API of any of its nodes. It keeps no state and never talks to the
// cluster port: what it can do, curl can do too.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is set by the linker.
var version = "0.1.0-dev"

// The exit codes.
const (
	exitFailed      = 1 // the node refused or failed
	exitUsage       = 2 // the command line is wrong; config diff --non-zero-exit-code: there are differences
	exitUnreachable = 3 // no node answered
	exitDegraded    = 4 // cluster status --check: not healthy
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

type usageError struct{ error }

type degradedError struct{ error }

func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "Error:", err)
	switch {
	case errors.As(err, new(usageError)), errors.As(err, new(changesError)):
		return exitUsage
	case errors.As(err, new(*unreachableError)):
		return exitUnreachable
	case errors.As(err, new(degradedError)):
		return exitDegraded
	}
	return exitFailed
}

// options are the flags every command has.
type options struct {
	admin, caCert, output string
	token, tokenFile      string
	timeout               time.Duration
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use: "gwctl", Short: "gwctl operates a Concord gateway through its Admin API.",
		Example: "  gwctl list services\n  gwctl cluster status\n  gwctl --admin http://10.0.0.1:8001 cluster token",
		Version: version, SilenceErrors: true, SilenceUsage: true, Args: noArgs, RunE: showHelp,
	}
	f := root.PersistentFlags()
	f.StringVar(&o.admin, "admin", defaultAdmin(), "URL of a node's Admin API (variable GWCTL_ADMIN)")
	f.StringVar(&o.caCert, "ca-cert", "", "PEM file of the authorities an https Admin API is verified against")
	f.StringVar(&o.token, "token", "", "admin token (better: variable GWCTL_TOKEN or a file, which other users cannot see)")
	f.StringVar(&o.tokenFile, "token-file", "", "file with the admin token (variable GWCTL_TOKEN_FILE)")
	f.StringVarP(&o.output, "output", "o", "table", "table, json or yaml")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long to wait for the answer")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := given(cmd); err != nil {
			return usageError{fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())}
		}
		switch o.output {
		case "table", "json", "yaml":
			return nil
		}
		return usageError{fmt.Errorf("--output %q is none of table, json, yaml", o.output)}
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())}
	})
	root.SetHelpTemplate(helpTemplate)
	root.SetUsageTemplate(usageTemplate)
	root.AddCommand(getCmd(o), listCmd(o), createCmd(o), applyCmd(o), editCmd(o), deleteCmd(o), routeCmd(o), exposeCmd(o))
	root.AddCommand(clusterCmd(o), adminTokenCmd(o), auditCmd(o), configCmd(o))
	root.InitDefaultCompletionCmd()
	describeCompletion(root)
	root.InitDefaultHelpCmd()
	strictHelp(root)
	return root
}

// strictHelp makes "help nosuch" an error; cobra prints everything and succeeds.
func strictHelp(root *cobra.Command) {
	help, _, err := root.Find([]string{"help"})
	if err != nil {
		return
	}
	show := help.Run
	help.Run, help.RunE = nil, func(cmd *cobra.Command, args []string) error {
		if about, rest, err := root.Find(args); err != nil || len(rest) > 0 && about.HasSubCommands() {
			return usageError{fmt.Errorf("there is no command %q (see %s --help)", strings.Join(args, " "), root.Name())}
		}
		show(cmd, args)
		return nil
	}
}

// given refuses flags that are missing, and those that are empty: a variable of a script that was not set must not widen "--select-tag $TAG" to everything.
func given(cmd *cobra.Command) error {
	err := cmd.ValidateRequiredFlags()
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if list, isList := f.Value.(pflag.SliceValue); err == nil && (f.Value.String() == "" || isList && (len(list.GetSlice()) == 0 || slices.Contains(list.GetSlice(), ""))) {
			err = fmt.Errorf("--%s is empty", f.Name)
		}
	})
	return err
}

func defaultAdmin() string {
	if a := os.Getenv("GWCTL_ADMIN"); a != "" {
		return a
	}
	return "http://127.0.0.1:8001"
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s: %q is not expected here (see %[1]s --help)", cmd.CommandPath(), args[0])}
	}
	return nil
}

// oneArg wants exactly one argument, called what in the message.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 || args[0] == "" {
			return usageError{fmt.Errorf("%s wants exactly one argument, %s (see %[1]s --help)", cmd.CommandPath(), what)}
		}
		return nil
	}
}

// Help shows the example first: it is what most readers came for.
const (
	helpTemplate = `{{with .Example}}Example:
{{. | trimTrailingWhitespaces}}

{{end}}{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{.UsageString}}`

	usageTemplate = `Usage:{{if .Runnable}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND

Commands:{{range .Commands}}{{if (or .IsAvailableCommand (eq .Name "help"))}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Flags of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
`
)

// describeCompletion gives the commands that cobra adds the form of the others.
func describeCompletion(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		cmd.Short = "Print a script that completes commands and names in a shell"
		cmd.Example = "  source <(gwctl completion bash)\n  gwctl completion zsh > \"${fpath[1]}/_gwctl\""
		for _, sub := range cmd.Commands() {
			sub.Example = map[string]string{
				"bash":       "  source <(gwctl completion bash)                               # this shell\n  gwctl completion bash > /etc/bash_completion.d/gwctl          # every one",
				"zsh":        "  source <(gwctl completion zsh)\n  gwctl completion zsh > \"${fpath[1]}/_gwctl\"",
				"fish":       "  gwctl completion fish > ~/.config/fish/completions/gwctl.fish",
				"powershell": "  gwctl completion powershell | Out-String | Invoke-Expression",
			}[sub.Name()]
			if script := sub.RunE; sub.Name() == "bash" {
				sub.RunE = func(cmd *cobra.Command, args []string) error {
					fmt.Fprint(cmd.OutOrStdout(), bashWords)
					return script(cmd, args)
				}
			}
		}
	}
}

// bashWords stands in for the one function of the package bash-completion that the script needs, where that is not installed.
const bashWords = `if ! declare -F _get_comp_words_by_ref >/dev/null; then
    _get_comp_words_by_ref() {
        cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
    }
fi
`
