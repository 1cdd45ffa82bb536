package main

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// tokenLife is how long the token of the printed line is good for.
const tokenLife = 10 * time.Minute

// exposure is what expose is to make.
type exposure struct {
	*options
	upstream             string
	hosts, paths         []string
	name, auth, consumer string
	rate                 string
}

// exposed is what expose tells.
type exposed struct {
	Service   string     `json:"service" yaml:"service"`
	Route     string     `json:"route" yaml:"route"`
	Consumer  string     `json:"consumer,omitempty" yaml:"consumer,omitempty"`
	URL       string     `json:"url" yaml:"url"`
	Curl      string     `json:"curl" yaml:"curl"`
	ExpiresAt *time.Time `json:"expires_at,omitempty" yaml:"expires_at,omitempty"`
}

// auths are the plugins expose can protect a route with, and the entity of each one's credentials.
var auths = map[string]string{"jwt": "jwt_secrets", "key-auth": "keyauth_credentials", "basic-auth": "basicauth_credentials", "none": ""}

func exposeCmd(o *options) *cobra.Command {
	e := &exposure{options: o}
	cmd := &cobra.Command{
		Use: "expose URL", Short: "Serve an upstream behind the gateway, in one step", Args: oneArg("the URL of the upstream"),
		Long: "Make a service, a route, and if asked for authentication, a consumer with a credential and a limit of its requests, in one\n" +
			"transaction, and print a line for curl that works as it is. With --auth jwt it holds a token that is good for ten minutes.\n" +
			"A consumer that is there already is used, with its credential.",
		Example: "  gwctl expose http://localhost:3000 --path /api --auth jwt --consumer john --rate 5/minute\n" +
			"  gwctl expose http://localhost:3000 --host api.example.com --name my-api --auth key-auth",
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	wait := waitFlag(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&e.paths, "path", nil, "path under which it is served, such as /api; it is taken off before the upstream sees it (repeatable)")
	f.StringSliceVar(&e.hosts, "host", nil, "host name under which it is served (repeatable)")
	f.StringVar(&e.name, "name", "", "name of the service and the route; by default made of the path or the host")
	f.StringVar(&e.auth, "auth", "", "jwt, key-auth, basic-auth or none; by default jwt with --consumer, else none")
	f.StringVar(&e.consumer, "consumer", "", "who may use it; by default NAME-client with --auth")
	f.StringVar(&e.rate, "rate", "", "limit of requests, such as 5/minute, of each consumer, or without --auth of each address")
	_ = cmd.RegisterFlagCompletionFunc("auth", cobra.FixedCompletions([]string{"jwt", "key-auth", "basic-auth", "none"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("consumer", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return o.completeRefs(cmd.Context(), "consumer", scope{})
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		e.upstream = args[0]
		if err := e.check(); err != nil {
			return usageError{err}
		}
		return e.run(cmd, *wait)
	}
	return cmd
}

// check completes what the flags say.
func (e *exposure) check() error {
	u, err := url.Parse(e.upstream)
	if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "grpc", "grpcs"}, u.Scheme) {
		return fmt.Errorf("%q is not the URL of an upstream, such as http://localhost:3000", e.upstream)
	}
	if len(e.paths)+len(e.hosts) == 0 {
		return errors.New("say under what it is to be served with --path or --host")
	}
	for _, p := range e.paths {
		if !strings.HasPrefix(p, "/") {
			return fmt.Errorf("--path %q must begin with /", p)
		}
	}
	if e.name == "" {
		e.name = nameOf(slices.Concat(e.paths, e.hosts, []string{u.Hostname()}))
	}
	if e.auth == "" {
		e.auth = "none"
		if e.consumer != "" {
			e.auth = "jwt"
		}
	}
	if _, ok := auths[e.auth]; !ok {
		return fmt.Errorf("--auth %q is none of jwt, key-auth, basic-auth, none", e.auth)
	}
	if e.auth == "none" && e.consumer != "" {
		return errors.New("--consumer needs an --auth other than none: without it nobody is told apart")
	}
	if e.auth != "none" {
		e.consumer = cmp.Or(e.consumer, e.name+"-client")
	}
	_, _, err = e.limit()
	return err
}

// nameOf makes a name of the first text that has letters.
func nameOf(texts []string) string {
	for _, text := range texts {
		name := strings.Trim(strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
				return r
			}
			return '-'
		}, text), "-")
		if name != "" {
			return name
		}
	}
	return "exposed"
}

// limit reads --rate; 0 is no limit.
func (e *exposure) limit() (n int, window string, err error) {
	if e.rate == "" {
		return 0, "", nil
	}
	count, window, _ := strings.Cut(e.rate, "/")
	n, err = strconv.Atoi(count)
	if err != nil || n < 1 || !slices.Contains([]string{"second", "minute", "hour", "day", "month", "year"}, window) {
		return 0, "", fmt.Errorf("--rate %q is not of the form 5/minute (second, minute, hour, day, month or year)", e.rate)
	}
	return n, window, nil
}

func (e *exposure) run(cmd *cobra.Command, wait bool) error {
	ctx := cmd.Context()
	for _, kind := range []string{"service", "route"} { // a transaction that merges would change the one that is there
		switch there, err := e.exists(ctx, "/"+kind+"s/"+url.PathEscape(e.name), nil); {
		case err != nil:
			return err
		case there:
			return fmt.Errorf("there is a %s %q already\n  hint: choose another name with --name, or change it with gwctl edit %s %s", kind, e.name, kind, e.name)
		}
	}
	base, err := e.proxyURL(ctx)
	if err != nil {
		return err
	}
	route := map[string]any{"name": e.name}
	if len(e.paths) > 0 {
		route["paths"] = e.paths
	}
	if len(e.hosts) > 0 {
		route["hosts"] = e.hosts
	}
	if strings.HasPrefix(e.upstream, "grpc") {
		route["protocols"] = []string{"grpc", "grpcs"}
	}
	var plugins []any
	if e.auth != "none" {
		p := map[string]any{"name": e.auth}
		if e.auth == "jwt" {
			p["config"] = map[string]any{"claims_to_verify": []string{"exp"}} // or the ten minutes would be for ever
		}
		plugins = append(plugins, p)
	}
	if n, window, _ := e.limit(); n > 0 {
		config := map[string]any{window: n}
		if e.auth == "none" {
			config["limit_by"] = "ip"
		}
		plugins = append(plugins, map[string]any{"name": "rate-limiting", "config": config})
	}
	if plugins != nil {
		route["plugins"] = plugins
	}
	doc := map[string]any{"_format_version": "3.0", "services": []any{map[string]any{"name": e.name, "url": e.upstream, "routes": []any{route}}}}
	var headers []string
	out := exposed{Service: e.name, Route: e.name, Consumer: e.consumer}
	if e.auth != "none" {
		credential, err := e.credentialFor(ctx, doc)
		if err != nil {
			return err
		}
		headers = append(headers, e.proof(credential, &out))
	}
	if len(e.hosts) > 0 {
		headers = append(headers, "Host: "+strings.Replace(e.hosts[0], "*", "www", 1))
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	path := "/"
	if len(e.paths) > 0 {
		path = e.paths[0]
	}
	out.URL = base + path
	out.Curl = "curl -i " + quoted(out.URL)
	if strings.HasPrefix(base, "https:") {
		out.Curl = "curl -ik " + quoted(out.URL) // the gateway's own certificate
	}
	for _, h := range headers {
		out.Curl += " -H " + quoted(h)
	}
	return e.write(cmd, wait, mergeRequest(text, false), nil, func() error {
		return e.print(cmd.OutOrStdout(), out, func(w io.Writer) {
			fmt.Fprintf(w, "%s is served at %s\n", e.upstream, out.URL)
			if out.ExpiresAt != nil {
				fmt.Fprintf(w, "The token is good until %s.\n", out.ExpiresAt.Local().Format(time.TimeOnly))
			}
			fmt.Fprintf(w, "\n%s\n", out.Curl)
		})
	})
}

// exists tells whether there is a row; out (nil: dropped) becomes it.
func (e *exposure) exists(ctx context.Context, path string, out any) (bool, error) {
	err := e.call(ctx, "GET", path, nil, out)
	var refused *refusedError
	if errors.As(err, &refused) && refused.status == 404 {
		return false, nil
	}
	return err == nil, err
}

// credentialFor adds the consumer and a credential to the document, as far as they are not there, and returns the credential.
func (e *exposure) credentialFor(ctx context.Context, doc map[string]any) (map[string]any, error) {
	var fresh map[string]any
	switch e.auth {
	case "jwt":
		fresh = map[string]any{"key": rand.Text(), "secret": rand.Text() + rand.Text(), "algorithm": "HS256"}
	case "key-auth":
		fresh = map[string]any{"key": rand.Text() + rand.Text()}
	case "basic-auth":
		fresh = map[string]any{"username": e.consumer, "password": rand.Text()}
	}
	var consumer struct{ ID string }
	there, err := e.exists(ctx, "/consumers/"+url.PathEscape(e.consumer), &consumer)
	if err != nil {
		return nil, err
	}
	if !there {
		doc["consumers"] = []any{map[string]any{"username": e.consumer, auths[e.auth]: []any{fresh}}}
		return fresh, nil
	}
	var list struct{ Data []map[string]any }
	if err := e.call(ctx, "GET", "/consumers/"+consumer.ID+"/"+e.auth+"?size=1000", nil, &list); err != nil {
		return nil, err
	}
	for _, c := range list.Data {
		secret, _ := c["secret"].(string)
		key, _ := c["key"].(string)
		if e.auth == "jwt" && c["algorithm"] == "HS256" && shown(secret) || e.auth == "key-auth" && shown(key) {
			return c, nil
		}
	}
	if e.auth == "basic-auth" && len(list.Data) > 0 { // nobody can read their passwords
		fresh["username"] = e.consumer + "-" + strings.ToLower(rand.Text()[:6])
	}
	row := map[string]any{"consumer": map[string]any{"id": consumer.ID}}
	for k, v := range fresh {
		row[k] = v
	}
	doc[auths[e.auth]] = []any{row}
	return fresh, nil
}

// shown tells whether a secret is in clear: some may not see them, and some are references to a vault.
func shown(secret string) bool {
	return strings.Trim(secret, "*") != "" && !strings.HasPrefix(secret, "{vault://")
}

// proof is the header that shows the credential.
func (e *exposure) proof(c map[string]any, out *exposed) string {
	text := func(name string) string { s, _ := c[name].(string); return s }
	switch e.auth {
	case "jwt":
		now := time.Now()
		expires := now.Add(tokenLife).Truncate(time.Second)
		out.ExpiresAt = &expires
		return "Authorization: Bearer " + signedToken(text("key"), text("secret"), now, expires)
	case "key-auth":
		return "apikey: " + text("key")
	}
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(text("username")+":"+text("password")))
}

// signedToken is a JWT (RFC 7519) signed with HS256.
func signedToken(issuer, secret string, now, expires time.Time) string {
	part := func(v any) string {
		b, _ := json.Marshal(v) // texts and numbers
		return base64.RawURLEncoding.EncodeToString(b)
	}
	message := part(map[string]any{"typ": "JWT", "alg": "HS256"}) + "." + part(map[string]any{"iss": issuer, "iat": now.Unix(), "exp": expires.Unix()})
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(message))
	return message + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// proxyURL is where the node takes requests, as seen from here: an address that stands for all of the node's becomes that of the Admin API.
func (e *exposure) proxyURL(ctx context.Context) (string, error) {
	type listener struct {
		IP   string
		Port int
		SSL  bool
	}
	var node struct {
		Configuration struct {
			Listeners []listener `json:"proxy_listeners"`
		}
	}
	if err := e.call(ctx, "GET", "/", nil, &node); err != nil {
		return "", err
	}
	list := node.Configuration.Listeners
	if len(list) == 0 {
		return "", errors.New("the node takes no requests (proxy_listen is off): name another node with --admin")
	}
	l := list[max(0, slices.IndexFunc(list, func(l listener) bool { return !l.SSL }))] // what needs no certificate, if there is one
	host := strings.Trim(l.IP, "[]")
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		base := e.admin
		if !strings.Contains(base, "://") {
			base = "http://" + base
		}
		if u, err := url.Parse(base); err == nil && u.Hostname() != "" {
			host = u.Hostname()
		}
	}
	scheme := "http"
	if l.SSL {
		scheme = "https"
	}
	if l.Port == map[string]int{"http": 80, "https": 443}[scheme] {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		return scheme + "://" + host, nil
	}
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(l.Port)), nil
}

// quoted is text for a shell.
func quoted(text string) string {
	if strings.IndexFunc(text, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._/:@%+=,", r))
	}) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
