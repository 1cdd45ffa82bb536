// Package auth stands at the door of the Admin API: it finds out who asks and turns away who may not even ask.
//
// CheckBind keeps listeners without TLS on loopback; Guard keeps web pages, which also run on this machine, from reaching the
// API through the browser; Door takes admin tokens and limits wrong ones. What an actor may do is not decided here but in
// admin/service, for each entity that a request touches.
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

// CheckBind refuses addresses of an admin listener that others than this machine could reach without TLS. exposed tells that
// there are such addresses, for which credentials must exist. An address is host:port, may be followed by words as in kong.conf
// ("127.0.0.1:8444 http2 ssl"), or is "off" or "unix:<path>".
func CheckBind(addrs []string) (exposed bool, err error) {
	for _, a := range addrs {
		words := strings.Fields(a)
		if len(words) == 0 || words[0] == "off" || strings.HasPrefix(words[0], "unix:") {
			continue
		}
		host, _, err := net.SplitHostPort(words[0])
		if err != nil {
			return false, fmt.Errorf("admin address %q: %w: write host:port", words[0], err)
		}
		switch {
		case loopback(host):
		case !slices.Contains(words[1:], "ssl"):
			return false, fmt.Errorf("admin address %q: anyone on the way could read admin tokens: add ssl (%q), or listen on 127.0.0.1 or [::1]", words[0], words[0]+" ssl")
		case slices.Contains(words[1:], "proxy_protocol"):
			return false, fmt.Errorf("admin address %q: with proxy_protocol anyone could claim to be on this machine: leave proxy_protocol out", words[0])
		default:
			exposed = true
		}
	}
	return exposed, nil
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
// is not ours, or a cross-site request. Programs send neither Origin nor Sec-Fetch-Site and pass. The Host does not matter to requests with a
// token, which a page does not know and which is looked at, nor when it is the very address that was connected to, which no name can be rebound to.
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
	if r.Host != "" && !ours(hostname(r.Host), hosts) && !HasCredential(r.Header) && !reachedAt(r) {
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

// reachedAt tells whether the Host is the address of the listener.
func reachedAt(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	at, err := netip.ParseAddrPort(local.String())
	host, bad := netip.ParseAddr(hostname(r.Host))
	return err == nil && bad == nil && at.Addr().Unmap() == host.Unmap()
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
