// Command concord is a node of the gateway: it reads its settings, wires the parts together, starts them and drains them.
// It holds no logic of its own; what a node does is in the packages it wires (run.go), what the verbs do to the node's
// process is in verbs.go and process.go.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"concord/admin/rest"
	"concord/cmd/concord/settings"
)

// version is set by the linker.
var version = "0.1.0-dev"

func main() {
	os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs one verb and returns the exit code.
func execute(args []string, stdout, stderr io.Writer) int {
	c := &cli{stdout: stdout, stderr: stderr}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.Execute(); err != nil {
		fmt.Fprintf(stderr, "Error: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n       "))
		if !c.verbose && !c.debug && !errors.Is(err, errUsage) {
			fmt.Fprint(stderr, "\n  Run with --v (verbose) or --vv (debug) for more details\n")
		}
		return 1
	}
	return 0
}

var errUsage = errors.New("usage")

// cli holds what the flags say.
type cli struct {
	stdout, stderr io.Writer
	conf, prefix   string
	verbose, debug bool
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:               "concord",
		Short:             "Concord is a clustered API gateway without a database, compatible with Kong.",
		Example:           "  concord start --conf /etc/concord/concord.conf\n  concord run --prefix ./node1 --vv",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: no such command: %s (see concord --help)", errUsage, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := root.PersistentFlags()
	f.BoolVar(&c.verbose, "v", false, "verbose: log level info")
	f.BoolVar(&c.debug, "vv", false, "debug: log level debug")
	root.SetGlobalNormalizationFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "config" { // as in "start --config kong.conf" of older texts
			name = "conf"
		}
		return pflag.NormalizedName(name)
	})
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w (see %s --help)", errUsage, err, cmd.CommandPath())
	})
	root.AddCommand(c.runCmd(), c.startCmd(), c.stopCmd(), c.quitCmd(), c.restartCmd(), c.reloadCmd(), c.upgradeCmd(), c.healthCmd(), c.checkCmd(), c.prepareCmd(),
		c.versionCmd(), c.migrationsCmd(), c.configCmd(), c.vaultCmd(), c.drainCmd())
	root.SetHelpCommand(&cobra.Command{Use: "help [command]", Short: "Help about any command", RunE: func(_ *cobra.Command, args []string) error {
		about, rest, err := root.Find(args)
		if err == nil && len(rest) == 0 {
			return about.Help()
		}
		return fmt.Errorf("%w: no such command: %s (see concord --help)", errUsage, strings.Join(args, " "))
	}})
	return root
}

// nodeFlags are the flags that say which node a verb is about.
func (c *cli) nodeFlags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&c.conf, "conf", "c", "", "settings file (also --config)")
	cmd.Flags().StringVarP(&c.prefix, "prefix", "p", "", "directory of the node's files")
	return cmd
}

// load reads the settings.
func (c *cli) load() (*settings.Settings, []settings.Warning, error) {
	args := settings.Args{Conf: c.conf, Prefix: c.prefix}
	switch {
	case c.debug:
		args.LogLevel = "debug"
	case c.verbose:
		args.LogLevel = "info"
	}
	return settings.Load(args, os.Environ())
}

// settings reads the settings and shows their warnings.
func (c *cli) settings() (*settings.Settings, error) {
	s, warnings, err := c.load()
	for _, w := range warnings {
		fmt.Fprintf(c.stderr, "Warning: %s\n", w)
	}
	return s, err
}

func (c *cli) versionCmd() *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs, Example: "  concord version -a",
		RunE: func(*cobra.Command, []string) error {
			if !all {
				fmt.Fprintln(c.stdout, version)
				return nil
			}
			fmt.Fprintf(c.stdout, "Concord: %s\nKong compatibility: %s\nGo: %s\nPlatform: %s/%s\n", version, rest.KongVersion, strings.TrimPrefix(runtime.Version(), "go"),
				runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "print also what it was built with")
	return cmd
}
