// Package auth decides who may speak to the Admin API. Without credentials that is: programs on this machine.
//
// CheckBind keeps listeners without credentials on loopback; Guard keeps web pages, which also run on this machine, from
// reaching them through the browser. Tokens and roles are not here yet, which is why any other bind is refused.
package auth

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// CheckBind refuses addresses of an admin listener that others than this machine could reach. An address is host:port,
// may be followed by words as in kong.conf ("127.0.0.1:8444 http2 ssl"), or is "off" or "unix:<path>".
func CheckBind(addrs []string) error {
	for _, a := range addrs {
		words := strings.Fields(a)
		if len(words) == 0 || words[0] == "off" || strings.HasPrefix(words[0], "unix:") {
			continue
		}
		host, _, err := net.SplitHostPort(words[0])
		if err != nil {
			return fmt.Errorf("admin address %q: %w: write host:port", words[0], err)
		}
		if !loopback(host) {
			return fmt.Errorf("admin address %q: anyone who reaches it could change the gateway, and this version has no admin tokens yet (they come later): "+
				"listen on 127.0.0.1 or [::1], and reach it from elsewhere through ssh -L or a proxy that asks for credentials", words[0])
		}
	}
	return nil
}

// loopback reports the names and addresses that always mean this machine (RFC 6761 section 6.3 for localhost).
func loopback(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// GuardOptions of NewGuard.
type GuardOptions struct {
	Hosts   []string // further host names by which the Admin API may be addressed, without port
	Origins []string // further origins of web pages that may use it, "https://console.example:8445"
}

// Guard refuses what a foreign web page makes a browser send: a Host name that is not ours (DNS rebinding), an Origin that
// is not ours, or a cross-site request. Programs send neither Origin nor Sec-Fetch-Site and pass.
type Guard struct{ hosts, origins []string }

// NewGuard makes a Guard.
func NewGuard(o GuardOptions) *Guard { return &Guard{lower(o.Hosts), lower(o.Origins)} }

// Check returns the reason to answer 403, nil to serve the request.
func (g *Guard) Check(r *http.Request) error {
	if why := refusal(r, g.hosts, g.origins); why != "" {
		return errors.New(why)
	}
	return nil
}

func refusal(r *http.Request, hosts, origins []string) string {
	if r.Host != "" && !ours(hostname(r.Host), hosts) {
		return fmt.Sprintf("host %q is not a name of this Admin API: use localhost or an address of loopback", r.Host)
	}
	if list := r.Header.Values("Origin"); len(list) > 1 {
		return "several Origin headers"
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" ||
			!ours(u.Hostname(), hosts) && !slices.Contains(origins, strings.ToLower(origin)) {
			return fmt.Sprintf("pages of origin %q may not use this Admin API", origin)
		}
		return ""
	}
	if r.Header.Get("Sec-Fetch-Site") == "cross-site" && r.Method != http.MethodGet && r.Method != http.MethodHead {
		return "cross-site requests may not change anything"
	}
	return ""
}

func ours(host string, hosts []string) bool {
	return loopback(host) || slices.Contains(hosts, strings.ToLower(host))
}

// hostname is the Host header without port and brackets.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.Trim(host, "[]")
}

func lower(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.ToLower(s)
	}
	return out
}
