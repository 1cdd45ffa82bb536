package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"concord/fsm/entity"
	"concord/proxy/vault"
)

// vaultCmd is Kong's verb to try out references.
func (c *cli) vaultCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "vault", Short: "Look up what is kept in a vault", Args: cobra.NoArgs, Example: "  concord vault get env/my-secret",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.nodeFlags(&cobra.Command{
		Use: "get REFERENCE", Short: "Print the value a reference stands for",
		Long: "Print the value that a reference such as {vault://env/my-secret} stands for; the short form is env/my-secret.\n\n" +
			"Variables are those of this command's environment. Vaults with a prefix of their own are looked up at the running node.",
		Example: "  concord vault get env/my-secret\n  concord vault get '{vault://my-files/database/password}'",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%w: concord vault get wants one reference, such as env/my-secret", errUsage)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			value, err := c.reference(args[0])
			if err == nil {
				fmt.Fprintln(c.stdout, value)
			}
			return err
		},
	}))
	return cmd
}

// reference resolves a reference in either notation.
func (c *cli) reference(text string) (string, error) {
	if !strings.HasPrefix(text, "{") {
		text = "{vault://" + strings.TrimPrefix(text, "vault://") + "}"
	}
	ref, err := vault.Parse(text)
	if err != nil {
		return "", err
	}
	r := vault.Resolver{}
	if ref.Vault != "env" {
		row, err := c.admin(http.MethodGet, "/vaults/"+url.PathEscape(ref.Vault), nil)
		if err != nil {
			return "", fmt.Errorf("vault %s: %w", ref.Vault, err)
		}
		v := &entity.Vault{}
		if err := json.Unmarshal(row, v); err != nil {
			return "", fmt.Errorf("vault %s: %w", ref.Vault, err)
		}
		r.Find = func(string) (*entity.Vault, bool) { return v, true }
	}
	return r.Resolve(text)
}

// drainCmd is Kong's verb before maintenance.
func (c *cli) drainCmd() *cobra.Command {
	return c.nodeFlags(&cobra.Command{
		Use: "drain", Short: "Have load balancers send no more traffic to the node, until it is started anew", Args: cobra.NoArgs,
		Long: "Have GET /status/ready answer 503 from now on, so that load balancers send no more traffic to the node. It serves what comes all the\n" +
			"same; concord quit then ends it.",
		Example: "  concord drain && sleep 10 && concord quit",
		RunE: func(*cobra.Command, []string) error {
			s, err := c.settings()
			if err != nil {
				return err
			}
			if _, err := askNode("status_listen", s.StatusListen, http.MethodPost, "/status/ready", "application/json", []byte(`{"status":"draining"}`)); err != nil {
				return err
			}
			fmt.Fprintln(c.stdout, "Concord is draining: /status/ready answers 503")
			return nil
		},
	})
}
