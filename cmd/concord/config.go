package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"concord/admin/declarative"
	"concord/admin/service"
	"concord/cluster"
	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/seal"
	"concord/proxy/listen"
	"concord/proxy/plugin"
	"concord/proxy/plugins/acme"
	"concord/proxy/plugins/all"
	"concord/proxy/plugins/prometheus"
	"concord/ratelimit"
)

// sample is what "config init" writes.
const sample = `# A declarative configuration: check it with "concord config parse kong.yml", load it with "concord config db_import kong.yml".
_format_version: "3.0"
_transform: true

# services:
# - name: example
#   url: http://127.0.0.1:8080
#   routes:
#   - name: example
#     paths: [/example]
#   plugins:
#   - name: key-auth
# consumers:
# - username: john
#   keyauth_credentials:
#   - key: change-me
`

// configCmd are Kong's verbs for declarative files. db_import and db_export talk to the running node of the settings.
func (c *cli) configCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Check, load and write declarative configuration files", Args: cobra.NoArgs,
		Example: "  concord config parse kong.yml\n  concord config db_import kong.yml\n  concord config db_export kong.yml",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	file := func(args []string) string {
		if len(args) > 0 {
			return args[0]
		}
		return "kong.yml"
	}
	cmd.AddCommand(
		c.nodeFlags(&cobra.Command{
			Use: "init [FILE]", Short: "Write a commented sample, kong.yml if no other name is given", Args: cobra.MaximumNArgs(1), Example: "  concord config init",
			RunE: func(_ *cobra.Command, args []string) error { return create(file(args), []byte(sample)) },
		}),
		c.nodeFlags(&cobra.Command{
			Use: "parse FILE", Short: "Check a file; no node is asked", Args: cobra.ExactArgs(1), Example: "  concord config parse kong.yml",
			RunE: func(_ *cobra.Command, args []string) error {
				if _, err := parseConfig(args[0]); err != nil {
					return err
				}
				fmt.Fprintln(c.stdout, "parse successful")
				return nil
			},
		}),
		c.nodeFlags(&cobra.Command{
			Use: "db_import FILE", Aliases: []string{"db-import"}, Short: "Add what a file holds to the configuration of the running node; nothing is deleted",
			Args: cobra.ExactArgs(1), Example: "  concord config db_import kong.yml",
			RunE: func(_ *cobra.Command, args []string) error {
				text, err := parseConfig(args[0])
				if err != nil {
					return err
				}
				fmt.Fprintln(c.stdout, "parse successful, beginning import")
				if _, err := c.admin(http.MethodPost, "/config?mode=merge&diff=1", text); err != nil {
					return err
				}
				fmt.Fprintln(c.stdout, "import successful")
				return nil
			},
		}),
		c.nodeFlags(&cobra.Command{
			Use: "db_export [FILE]", Aliases: []string{"db-export"}, Short: "Write the configuration of the running node to a file that does not exist yet",
			Args: cobra.MaximumNArgs(1), Example: "  concord config db_export kong.yml",
			RunE: func(_ *cobra.Command, args []string) error {
				name := file(args)
				if _, err := os.Stat(name); err == nil {
					return fmt.Errorf("%s exists already", name)
				}
				text, err := c.admin(http.MethodGet, "/config", nil)
				if err != nil {
					return err
				}
				return create(name, text)
			},
		}),
	)
	return cmd
}

// create writes a new file that only its owner may read: it may hold credentials.
func create(name string, text []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already", name)
	}
	if err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// admin asks the Admin API of the node that the settings describe.
func (c *cli) admin(method, path string, body []byte) ([]byte, error) {
	s, err := c.settings()
	if err != nil {
		return nil, err
	}
	return askNode("admin_listen", s.AdminListen, method, path, "application/yaml", body)
}

// askNode sends a request to the running node, at the listeners of a setting.
func askNode(setting string, list []listen.Spec, method, path, contentType string, body []byte) ([]byte, error) {
	if len(list) == 0 {
		return nil, errors.New(setting + " is off: the running node cannot be asked")
	}
	at := list[0]
	for _, l := range list {
		if !l.SSL {
			at = l
			break
		}
	}
	host, port, err := net.SplitHostPort(at.Address)
	if err != nil {
		return nil, err
	}
	scheme, client := "http", &http.Client{Timeout: 5 * time.Minute}
	if at.SSL { // the certificate is the node's own, often self-signed; CheckBind keeps the listener on this machine
		scheme, client.Transport = "https", &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}} //nolint:gosec // see above
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	req, err := http.NewRequestWithContext(context.Background(), method, scheme+"://"+net.JoinHostPort(host, port)+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", contentType)
	if token := os.Getenv("GWCTL_TOKEN"); token != "" && setting == "admin_listen" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the node of these settings does not answer: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode/100 != 2 {
		var e struct{ Message string }
		_ = json.Unmarshal(text, &e)
		return nil, fmt.Errorf("the node refused: %s (status %d)", e.Message, res.StatusCode)
	}
	return text, nil
}

// parseConfig checks a file as a node without any configuration would.
func parseConfig(name string) ([]byte, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	tree, err := declarative.Read(text)
	if err != nil {
		return nil, fmt.Errorf("Failed parsing:\n%w", err) //nolint:staticcheck // Kong's words
	}
	keys, err := seal.Generate(rand.Reader)
	if err != nil {
		return nil, err
	}
	schemas := map[string]*schema.Schema{}
	for _, p := range all.Plugins(prometheus.New(), ratelimit.NewLocal(ratelimit.Options{}), acme.New()) {
		schemas[p.Info.Name] = plugin.SchemaOf(p)
	}
	svc := service.New(service.Options{
		Log: noLog{}, Machine: fsm.New(fsm.Options{Defs: entity.All(), Keys: keys}),
		Plugins: func(name string) (*schema.Schema, bool) { s, ok := schemas[name]; return s, ok },
	})
	doc, form := declarative.NewLayout(entity.All()).Rows(tree)
	b := service.Bulk{DryRun: true, Hashed: !doc.Transform}
	for _, r := range doc.Rows {
		b.Rows = append(b.Rows, service.Wanted{Entity: r.Entity, Body: r.Body, Parent: r.Parent, Field: r.Field})
	}
	var wrong *service.BulkError
	_, err = svc.Apply(context.Background(), b)
	if errors.As(err, &wrong) || form != nil {
		errs := schema.Errors{}
		if wrong != nil {
			errs = doc.Tree(wrong.Rows)
		}
		return nil, fmt.Errorf("Failed parsing:\n%s", declarative.Indented(declarative.Merge(errs, form))) //nolint:staticcheck // Kong's words
	}
	return text, err
}

// noLog is the log of a node that has nothing and writes nothing.
type noLog struct{}

func (noLog) Propose(context.Context, command.Command) (fsm.Result, error) {
	return fsm.Result{}, cluster.ErrNotLeader
}
func (noLog) Forward(context.Context, []byte) ([]byte, error)                     { return nil, cluster.ErrClosed }
func (noLog) HandleForward(func(ctx context.Context, req []byte) ([]byte, error)) {}
func (noLog) ReadIndex(context.Context) (uint64, error)                           { return 0, nil }
func (noLog) Wait(context.Context, uint64) error                                  { return nil }
