package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// adminToken is one of GET /admin/tokens.
type adminToken struct {
	ID         string   `json:"id" yaml:"id"`
	Name       string   `json:"name" yaml:"name"`
	Role       string   `json:"role" yaml:"role"`
	Entities   []string `json:"entities" yaml:"entities"`
	Tags       []string `json:"tags" yaml:"tags"`
	CreatedAt  int64    `json:"created_at" yaml:"created_at"`
	LastUsedAt *int64   `json:"last_used_at" yaml:"last_used_at"`
	TTL        *int64   `json:"ttl" yaml:"ttl"`
	Token      string   `json:"token,omitempty" yaml:"token,omitempty"`
}

func adminTokenCmd(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Make, list and revoke credentials of the Admin API", Args: noArgs, RunE: showHelp,
		Example: "  gwctl token create --name alice --role super\n  gwctl token list\n  gwctl token revoke alice",
		Long: "Admin tokens let people and programs use the Admin API. A token has a role, may be limited to kinds of entities and to tags, and may expire.\n" +
			"gwctl sends the one of --token, GWCTL_TOKEN, --token-file or GWCTL_TOKEN_FILE, or of " + tokenFileHint + " if that exists.",
	}
	cmd.AddCommand(createTokenCmd(o), listTokensCmd(o), revokeTokenCmd(o))
	return cmd
}

func createTokenCmd(o *options) *cobra.Command {
	var name, role string
	var ttl time.Duration
	var entities, tags []string
	cmd := &cobra.Command{
		Use: "create", Short: "Make an admin token and print it, once", Args: noArgs,
		Example: "  gwctl token create --name alice --role super\n" +
			"  gwctl token create --name ci --role admin --tag team-a --ttl 720h\n" +
			"  gwctl token create --name dashboard --role read-only --entity services --entity routes\n" +
			"  gwctl token create --name siem --role read-only --entity audit",
		Long: "Make an admin token. It is printed once; of its secret only a hash is stored.\n\n" +
			"Roles: super may do everything; admin everything but tokens, the cluster's members and the audit log; read-only reads, without secrets.\n" +
			"With --entity it reaches only these kinds of entities, with --tag only what carries one of these tags, and what it makes gets the first of them.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			body := map[string]any{"name": name, "role": role}
			if len(entities) > 0 {
				body["entities"] = entities
			}
			if len(tags) > 0 {
				body["tags"] = tags
			}
			switch {
			case cmd.Flags().Changed("ttl") && ttl < time.Second:
				return usageError{fmt.Errorf("--ttl %s: must be at least a second", ttl)}
			case ttl > 0:
				body["ttl"] = int(ttl.Seconds())
			}
			var t adminToken
			if err := o.call(cmd.Context(), "POST", "/admin/tokens", body, &t); err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "how it is called in lists and in the audit log")
	f.StringVar(&role, "role", "", "super, admin or read-only")
	f.DurationVar(&ttl, "ttl", 0, "how long it is valid, such as 720h (default: until it is revoked)")
	f.StringSliceVar(&entities, "entity", nil, "limit it to this kind of entity, such as services, or audit; may be repeated")
	f.StringSliceVar(&tags, "tag", nil, "limit it to what carries this tag; may be repeated")
	_ = cmd.MarkFlagRequired("name")
	_ = cmd.MarkFlagRequired("role")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"super", "admin", "read-only"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// adminTokens asks for all tokens, page by page.
func (o *options) adminTokens(ctx context.Context) ([]adminToken, error) {
	all := []adminToken{}
	for offset := ""; ; {
		var page struct {
			Data   []adminToken
			Offset string
		}
		path := "/admin/tokens?size=1000"
		if offset != "" {
			path += "&offset=" + url.QueryEscape(offset)
		}
		if err := o.call(ctx, "GET", path, nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Data...)
		if offset = page.Offset; offset == "" {
			return all, nil
		}
	}
}

func listTokensCmd(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List admin tokens, without their secrets", Args: noArgs,
		Example: "  gwctl token list\n  gwctl token list -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := o.adminTokens(cmd.Context())
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(tw, "NAME\tROLE\tENTITIES\tTAGS\tCREATED\tEXPIRES IN\tLAST USED HERE")
				for _, t := range list {
					expires, used := "never", "-"
					if t.TTL != nil {
						expires = (time.Duration(*t.TTL) * time.Second).String()
					}
					if t.LastUsedAt != nil {
						used = time.Unix(*t.LastUsedAt, 0).UTC().Format(time.RFC3339)
					}
					fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.Name, t.Role, orAll(t.Entities), orAll(t.Tags),
						time.Unix(t.CreatedAt, 0).UTC().Format(time.RFC3339), expires, used)
				}
				_ = tw.Flush() // the writer below keeps its own error
			})
		},
	}
}

func orAll(list []string) string {
	if len(list) == 0 {
		return "all"
	}
	return strings.Join(list, ",")
}

func revokeTokenCmd(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "revoke NAME", Short: "Revoke an admin token, at once on all nodes", Args: oneArg("the name or id of a token"),
		Example: "  gwctl token revoke alice",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			quick := *o
			quick.timeout = 2 * time.Second
			list, err := quick.adminTokens(cmd.Context())
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			var names []string
			for _, t := range list {
				names = append(names, cobra.CompletionWithDesc(t.Name, t.Role))
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.call(cmd.Context(), "DELETE", "/admin/tokens/"+url.PathEscape(args[0]), nil, nil); err != nil {
				var refused *refusedError
				if errors.As(err, &refused) && refused.status == http.StatusNotFound {
					refused.message = fmt.Sprintf("there is no admin token %q", args[0])
				}
				return err
			}
			return o.done(cmd, "Revoked %s", args[0])
		},
	}
}

const tokenFileHint = "concord/token in the user's configuration directory (~/.config)"

// credential is the admin token to send, "" for none. What is named must be there; the usual file may be missing.
func (o *options) credential() (string, error) {
	if o.token != "" {
		return o.token, nil
	}
	path, named := o.tokenFile, true
	if path == "" {
		if t := os.Getenv("GWCTL_TOKEN"); t != "" {
			return t, nil
		}
		path = os.Getenv("GWCTL_TOKEN_FILE")
	}
	if path == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return "", nil // no home, no file
		}
		path, named = filepath.Join(dir, "concord", "token"), false
	}
	info, err := os.Stat(path)
	switch {
	case err != nil && !named:
		return "", nil
	case err != nil:
		return "", usageError{fmt.Errorf("token file: %w", err)}
	case info.Mode().Perm()&0o077 != 0:
		return "", usageError{fmt.Errorf("token file %s can be read by others (mode %#o): chmod 600 %[1]s", path, info.Mode().Perm())}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", usageError{fmt.Errorf("token file: %w", err)}
	}
	return strings.TrimSpace(string(text)), nil
}
