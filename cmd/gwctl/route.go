package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// trace is the answer of POST /debug/route.
type trace struct {
	Path    string        `json:"path" yaml:"path"`
	Matched []tracedRoute `json:"matched" yaml:"matched"`
	Near    []tracedRoute `json:"near" yaml:"near"`
	Plugins []struct {
		Name     string   `json:"name" yaml:"name"`
		ID       string   `json:"id" yaml:"id"`
		Priority int      `json:"priority" yaml:"priority"`
		Scope    string   `json:"scope" yaml:"scope"`
		Phases   []string `json:"phases" yaml:"phases"`
	} `json:"plugins" yaml:"plugins"`
	Service  string   `json:"service,omitempty" yaml:"service,omitempty"`
	Upstream string   `json:"upstream,omitempty" yaml:"upstream,omitempty"`
	Notes    []string `json:"notes" yaml:"notes"`
}

type tracedRoute struct {
	ID     string `json:"id" yaml:"id"`
	Name   string `json:"name,omitempty" yaml:"name,omitempty"`
	Path   string `json:"path,omitempty" yaml:"path,omitempty"`
	Lost   string `json:"lost,omitempty" yaml:"lost,omitempty"`
	Checks []struct {
		Criterion string `json:"criterion" yaml:"criterion"`
		OK        bool   `json:"ok" yaml:"ok"`
		Why       string `json:"why" yaml:"why"`
	} `json:"checks" yaml:"checks"`
}

func (r tracedRoute) String() string {
	s := r.Name
	if s == "" {
		s = r.ID
	}
	if r.Path != "" {
		s += " (" + r.Path + ")"
	}
	return s
}

func routeCmd(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "route", Short: "Find out how requests are routed", Args: noArgs, RunE: showHelp,
		Example: "  gwctl route test GET http://example.com/api/users",
	}
	cmd.AddCommand(routeTestCmd(o))
	return cmd
}

func routeTestCmd(o *options) *cobra.Command {
	var headers []string
	sni := ""
	cmd := &cobra.Command{
		Use: "test METHOD URL", Short: "Show which route a request would take, and why not another",
		Long: "Show which route a request would take on the node behind --admin, which others match and why they lost, which nearly match, the\n" +
			"plugins that would run, in their order, and where the request would go. Nothing is sent there.\n\n" +
			"The URL is the one the client uses; its host is the Host header unless -H Host gives another. With https its host is the server name, too.\n" +
			"The exit code is 1 when no route matches.",
		Example: "  gwctl route test GET http://example.com/api/users\n  gwctl route test POST https://localhost:8443/api -H 'Host: example.com' -H 'x-version: 2' --sni example.com",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{errors.New("gwctl route test wants a method and a URL, such as GET http://example.com/api")}
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"http://", "https://"}, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			target := args[1]
			if strings.HasPrefix(target, "/") {
				target = "http://localhost" + target
			}
			if u, err := url.Parse(target); err != nil || u.Host == "" {
				return usageError{fmt.Errorf("%q is not a URL such as http://example.com/api", args[1])}
			}
			fields := map[string]string{}
			for _, h := range headers {
				name, value, ok := strings.Cut(h, ":")
				if !ok {
					return usageError{fmt.Errorf("-H %q is not of the form 'name: value'", h)}
				}
				fields[strings.TrimSpace(name)] = strings.TrimSpace(value)
			}
			body := map[string]any{"method": strings.ToUpper(args[0]), "url": target, "headers": fields, "sni": sni}
			var t trace
			if err := o.call(cmd.Context(), "POST", "/debug/route", body, &t); err != nil {
				return err
			}
			if err := o.print(cmd.OutOrStdout(), t, t.show); err != nil {
				return err
			}
			if len(t.Matched) == 0 {
				return errors.New("no route matches")
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "a header of the request, 'name: value' (repeatable)")
	cmd.Flags().StringVar(&sni, "sni", "", "server name of the TLS handshake, if it is not the URL's host")
	return cmd
}

func (t *trace) show(w io.Writer) {
	list := func(title string, routes []tracedRoute, why func(tracedRoute) []string) {
		if len(routes) == 0 {
			return
		}
		fmt.Fprintln(w, title)
		for _, r := range routes {
			fmt.Fprintf(w, "  %s\n", cell(r.String()))
			for _, line := range why(r) {
				fmt.Fprintf(w, "    %s\n", line)
			}
		}
	}
	checks := func(ok bool) func(tracedRoute) []string {
		return func(r tracedRoute) (out []string) {
			for _, c := range r.Checks {
				if c.OK == ok {
					out = append(out, c.Criterion+": "+c.Why)
				}
			}
			return out
		}
	}
	if len(t.Matched) > 0 {
		list("Route:", t.Matched[:1], checks(true))
		list("Also match, and lose:", t.Matched[1:], func(r tracedRoute) []string { return []string{r.Lost} })
	} else {
		fmt.Fprintf(w, "No route matches %s.\n", t.Path)
	}
	list("Do not match:", t.Near, checks(false))
	if len(t.Plugins) > 0 {
		fmt.Fprintln(w, "Plugins, in this order:")
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for i, p := range t.Plugins {
			fmt.Fprintf(tw, "  %d. %s\t%s\tpriority %d\t%s\n", i+1, p.Name, p.Scope, p.Priority, strings.Join(p.Phases, ", "))
		}
		tw.Flush()
	}
	if t.Upstream != "" {
		fmt.Fprintf(w, "Upstream: %s (service %s)\n", t.Upstream, t.Service)
	}
	for _, n := range t.Notes {
		fmt.Fprintln(w, "Note:", n)
	}
}
