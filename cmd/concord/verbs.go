package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"concord/cmd/concord/settings"
)

func (c *cli) runCmd() *cobra.Command {
	return c.nodeFlags(&cobra.Command{
		Use: "run", Short: "Run the node in the foreground, logging to standard error", Args: cobra.NoArgs,
		Example: "  concord run --prefix ./node1",
		RunE: func(*cobra.Command, []string) error {
			from, err := inherit()
			if err != nil {
				return err
			}
			s, err := c.settings()
			if err == nil {
				err = c.run(s, from)
			}
			if err != nil {
				from.fail(err)
			}
			return err
		},
	})
}

// kongFlags are flags of Kong's verbs that steer nginx and the database: taken, and said to be of no effect.
func kongFlags(cmd *cobra.Command, names ...string) *cobra.Command {
	for _, n := range names {
		if n == "run-migrations" {
			cmd.Flags().Bool(n, false, "")
		} else {
			cmd.Flags().String(n, "", "")
		}
		_ = cmd.Flags().MarkDeprecated(n, "it has no effect without nginx and a database")
	}
	return cmd
}

func (c *cli) startCmd() *cobra.Command {
	return kongFlags(c.nodeFlags(&cobra.Command{
		Use: "start", Short: "Start the node in the background and wait until it is ready", Args: cobra.NoArgs,
		Example: "  concord start -c /etc/concord/concord.conf",
		RunE: func(*cobra.Command, []string) error {
			s, err := c.settings()
			if err != nil {
				return err
			}
			return c.start(s)
		},
	}), "nginx-conf", "nginx-conf-flags", "run-migrations", "db-timeout", "lock-timeout")
}

func (c *cli) start(s *settings.Settings) error {
	if err := prepare(s); err != nil {
		return err
	}
	if err := c.daemonise(s); err != nil {
		return err
	}
	fmt.Fprintln(c.stdout, "Concord started")
	return nil
}

func (c *cli) stopCmd() *cobra.Command {
	return c.nodeFlags(&cobra.Command{
		Use: "stop", Short: "Stop the node: running requests get shutdown_timeout to finish", Args: cobra.NoArgs,
		Example: "  concord stop -p /var/lib/concord",
		RunE: func(*cobra.Command, []string) error {
			s, err := c.settings()
			if err != nil {
				return err
			}
			if err := stop(s); err != nil {
				return err
			}
			fmt.Fprintln(c.stdout, "Concord stopped")
			return nil
		},
	})
}

// cleanup is what a node may need after its requests are drained: leadership transfer, last write-backs.
const cleanup = 30 * time.Second

func stop(s *settings.Settings) error {
	pid, err := signalNode(s.Prefix, syscall.SIGTERM)
	if err != nil {
		return err
	}
	if limit := s.DrainTimeout + cleanup; !waitStopped(s.Prefix, limit) {
		return fmt.Errorf("process %d still runs after %v: look into its log, or end it with kill -9 %d", pid, limit, pid)
	}
	return nil
}

func (c *cli) quitCmd() *cobra.Command {
	timeout, wait := 10, 0
	cmd := c.nodeFlags(&cobra.Command{
		Use: "quit", Short: "Stop the node once its running requests have finished", Args: cobra.NoArgs,
		Example: "  concord quit --timeout 60",
		RunE: func(*cobra.Command, []string) error {
			s, err := c.settings()
			if err != nil {
				return err
			}
			if _, err := runningNode(s.Prefix); err != nil {
				return err
			}
			time.Sleep(time.Duration(wait) * time.Second)
			if _, err := signalNode(s.Prefix, syscall.SIGQUIT); err != nil {
				return err
			}
			if waitStopped(s.Prefix, time.Duration(timeout)*time.Second) {
				fmt.Fprintln(c.stdout, "Concord stopped (gracefully)")
				return nil
			}
			if err := stop(s); err != nil && !errors.As(err, new(*notRunningError)) {
				return err
			}
			fmt.Fprintln(c.stdout, "Timeout, Concord stopped forcefully")
			return nil
		},
	})
	cmd.Flags().IntVarP(&timeout, "timeout", "t", timeout, "seconds to wait before running requests are cut off")
	cmd.Flags().IntVarP(&wait, "wait", "w", wait, "seconds to wait before stopping, for load balancers to notice")
	return cmd
}

func (c *cli) restartCmd() *cobra.Command {
	return kongFlags(c.nodeFlags(&cobra.Command{
		Use: "restart", Short: "Stop the node, if it runs, and start it", Args: cobra.NoArgs,
		Example: "  concord restart -c /etc/concord/concord.conf",
		RunE: func(*cobra.Command, []string) error {
			s, err := c.settings()
			if err != nil {
				return err
			}
			switch err := stop(s); {
			case err == nil:
				fmt.Fprintln(c.stdout, "Concord stopped")
			case !errors.As(err, new(*notRunningError)):
				return err
			}
			return c.start(s)
		},
	}), "nginx-conf", "nginx-conf-flags", "run-migrations", "db-timeout", "lock-timeout")
}

func (c *cli) reloadCmd() *cobra.Command {
	return kongFlags(c.nodeFlags(&cobra.Command{
		Use: "reload", Short: "Have the node read its settings file again", Args: cobra.NoArgs,
		Long: "Have the node read its settings file again and open its log files anew.\n\n" +
			"The settings are checked first; if anything in them cannot be used, nothing is changed. The node takes over those that docs/settings.md marks as live\n" +
			"and names those that take an upgrade or a restart. It reads the file it was started with; variables keep the values they had then.",
		Example: "  concord reload",
		RunE: func(*cobra.Command, []string) error {
			s, err := c.settings()
			if err != nil {
				return err
			}
			lines, err := ask(s.Prefix, syscall.SIGHUP, question{Verb: "reload"}, cleanup)
			if err != nil {
				return fmt.Errorf("the node has not reloaded: %w", err)
			}
			for _, l := range lines {
				fmt.Fprintln(c.stdout, l)
			}
			fmt.Fprintln(c.stdout, "Concord reloaded")
			return nil
		},
	}), "nginx-conf")
}

func (c *cli) upgradeCmd() *cobra.Command {
	binary := ""
	cmd := c.nodeFlags(&cobra.Command{
		Use: "upgrade", Short: "Replace the node's process by one of a new program, without losing a request", Args: cobra.NoArgs,
		Long: "Replace the node's process by one of a new program, without losing a request.\n\n" +
			"The new process takes over the listening sockets once it has checked its settings, opened the node's files and built what it serves; until then the\n" +
			"old one serves, and goes on if anything fails. Settings that a reload cannot change are taken over, too. See docs/upgrades.md.",
		Example: "  concord upgrade\n  concord upgrade --binary /opt/concord-1.2/concord",
		RunE: func(*cobra.Command, []string) error {
			s, err := c.settings()
			if err != nil {
				return err
			}
			if binary != "" {
				if binary, err = filepath.Abs(binary); err != nil {
					return err
				}
			}
			lines, err := ask(s.Prefix, syscall.SIGUSR2, question{Verb: "upgrade", Binary: binary}, s.UpgradeTimeout+2*cleanup)
			if err != nil {
				return fmt.Errorf("nothing has changed, the node goes on: %w", err)
			}
			fmt.Fprintf(c.stdout, "Concord upgraded (process %s)\n", strings.Join(lines, ""))
			return nil
		},
	})
	cmd.Flags().StringVar(&binary, "binary", "", "the new program; otherwise the path from which the node was started")
	return cmd
}

func (c *cli) healthCmd() *cobra.Command {
	return c.nodeFlags(&cobra.Command{
		Use: "health", Short: "Tell whether the node runs", Args: cobra.NoArgs,
		Example: "  concord health -p /var/lib/concord && echo up",
		RunE: func(*cobra.Command, []string) error {
			s, err := c.settings()
			if err != nil {
				return err
			}
			if _, err := runningNode(s.Prefix); err != nil {
				return err
			}
			fmt.Fprintf(c.stdout, "concord.....running\n\nConcord is healthy at %s\n", s.Prefix)
			return nil
		},
	})
}

func (c *cli) checkCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check [file]", Short: "Check a settings file, together with the variables that are set", Args: cobra.MaximumNArgs(1),
		Example: "  concord check /etc/kong/kong.conf",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				c.conf = args[0]
			}
			s, err := c.settings()
			if err != nil {
				return err
			}
			file := s.File
			if c.conf != "" {
				file = c.conf
			} else if file == "" {
				file = "the defaults (there is no settings file)"
			}
			fmt.Fprintf(c.stdout, "configuration at %s is valid\n", file)
			return nil
		},
	}
	return c.nodeFlags(cmd)
}

func (c *cli) prepareCmd() *cobra.Command {
	return c.nodeFlags(&cobra.Command{
		Use: "prepare", Short: "Make the prefix directory, without starting anything", Args: cobra.NoArgs,
		Example: "  concord prepare -p ./node1",
		RunE: func(*cobra.Command, []string) error {
			s, err := c.settings()
			if err != nil {
				return err
			}
			return prepare(s)
		},
	})
}

// prepare makes the directories of the prefix. They hold keys and logs: nobody else may look inside.
func prepare(s *settings.Settings) error {
	if err := os.MkdirAll(s.Prefix, 0o700); err != nil {
		return fmt.Errorf("prefix: %w: make it yourself and give it to the user the node runs as, or choose another with --prefix", err)
	}
	for _, log := range []string{s.ErrorLog, s.ProxyAccessLog, s.AdminAccessLog} {
		if log == "" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(log), 0o700); err != nil {
			return fmt.Errorf("log directory: %w", err)
		}
	}
	return nil
}

// migrationsCmd keeps start scripts written for Kong going.
func (c *cli) migrationsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "migrations", Short: "Nothing to do: there is no database", Hidden: true, DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintln(c.stdout, "Concord has no database: there is nothing to migrate")
			return nil
		},
	}
}
