package rest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"

	"concord/admin/service"
)

// KongVersion is the version that clients of Kong are told: they choose by it what to ask for. A fourth number would mean
// the Enterprise edition to them.
const KongVersion = "3.9.1"

func (a *API) nodeRoutes() {
	a.statusRoutes()
	a.router.add(http.MethodGet, "/", a.root)
	a.router.add(http.MethodGet, "/endpoints", func(*call) (answer, error) {
		return answer{status: http.StatusOK, body: map[string]any{"data": a.router.paths()}}, nil
	})
	a.router.add(http.MethodGet, "/robots.txt", func(*call) (answer, error) {
		return answer{status: http.StatusOK, body: "User-agent: *\nDisallow: /"}, nil
	})
	a.router.add(http.MethodGet, "/status/dns", func(*call) (answer, error) {
		return answer{}, &statusError{http.StatusNotImplemented, "not implemented with the legacy DNS client", ""}
	})
	// Kong with a database refuses these with 400 and these texts; clients test for them.
	refuse := func(text string) handler {
		return func(*call) (answer, error) { return answer{}, malformed(text) }
	}
	hybrid := refuse("this endpoint is only available when Kong is configured to run as Control Plane for the cluster")
	a.router.add(http.MethodGet, "/clustering/data-planes", hybrid)
	a.router.add(http.MethodGet, "/clustering/status", hybrid)
}

func (a *API) statusRoutes() {
	a.router.add(http.MethodGet, "/status", a.status)
	a.router.add(http.MethodGet, "/status/ready", a.ready)
	if a.o.Info.Metrics != nil {
		a.router.add(http.MethodGet, "/metrics", func(c *call) (answer, error) {
			body, kind := a.o.Info.Metrics()
			c.w.Header().Set("Content-Type", kind)
			return answer{status: http.StatusOK, body: body}, nil
		})
	}
}

// root is GET /: what Kong's clients check before anything else, and the gateway's own identity under "concord".
func (a *API) root(c *call) (answer, error) {
	available := map[string]any{}
	for _, p := range a.o.Plugins {
		version := p.Version
		if version == "" {
			version = KongVersion
		}
		available[p.Name] = map[string]any{"version": version, "priority": p.Priority}
	}
	configuration := map[string]any{
		"proxy_listeners": []any{}, "admin_listeners": []any{}, "admin_gui_listeners": []any{}, "status_listeners": []any{},
		"stream_listeners": map[string]any{},
	}
	if a.o.Info.Configuration != nil {
		for k, v := range a.o.Info.Configuration() {
			configuration[k] = v
			if list, ok := v.([]string); ok && strings.HasSuffix(k, "_listen") {
				if list := listeners(list); len(list) > 0 {
					configuration[k+"ers"] = list // without stream listeners Kong shows {}
				}
			}
		}
	}
	if l := a.o.Info.LogLevel; l != nil {
		configuration["log_level"] = l.Name(l.Var.Level()) // of now
	}
	loaded := map[string]bool{}
	for name := range available {
		loaded[name] = true
	}
	configuration["loaded_plugins"] = loaded
	// To clients "postgres" means that entities can be written through this API.
	for k, v := range map[string]any{"database": "postgres", "router_flavor": "traditional_compatible", "role": "traditional", "wasm": false} {
		configuration[k] = v
	}
	own := map[string]any{"version": a.o.Info.Version, "config_index": a.o.Service.Index()}
	if a.o.Cluster != nil {
		own["cluster"] = a.o.Cluster.Status(c.r.Context())
	}
	pid := os.Getpid()
	return answer{status: http.StatusOK, body: map[string]any{
		"tagline": "Welcome to kong", "version": KongVersion, "edition": "community",
		"hostname": a.o.Info.Hostname, "node_id": a.ownID(), "lua_version": "none (" + runtime.Version() + ")",
		"timers": map[string]any{"running": 0, "pending": 0}, "pids": map[string]any{"master": pid, "workers": []int{pid}},
		"plugins":       map[string]any{"available_on_server": available, "enabled_in_cluster": a.o.Service.EnabledPlugins()},
		"configuration": configuration, "concord": own,
	}}, nil
}

// ownID is the id of this node.
func (a *API) ownID() string {
	if a.o.Cluster != nil {
		return a.o.Cluster.ID()
	}
	return a.o.Info.NodeID
}

// listeners is a *_listen setting in the form of Kong's *_listeners.
func listeners(listen []string) []any {
	list := []any{}
	for _, one := range listen {
		words := strings.Fields(one)
		if len(words) == 0 || words[0] == "off" {
			continue
		}
		at := strings.LastIndexByte(words[0], ':')
		port, err := strconv.Atoi(words[0][at+1:])
		if at < 0 || err != nil {
			continue
		}
		l := map[string]any{"listener": strings.Join(words, " "), "ip": words[0][:at], "port": port, "ssl": false, "http2": false, "proxy_protocol": false, "reuseport": false}
		for _, w := range words[1:] {
			if _, known := l[w].(bool); known {
				l[w] = true
			}
		}
		list = append(list, l)
	}
	return list
}

func (a *API) status(c *call) (answer, error) {
	unit, scale, err := memoryFormat(c.query("unit"), c.query("scale"))
	if err != nil {
		return answer{}, err
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	var n Counters
	if a.o.Info.Counters != nil {
		n = a.o.Info.Counters()
	}
	reachable, id := true, ""
	if a.o.Cluster != nil {
		s := a.o.Cluster.Status(c.r.Context())
		reachable, id = s.Leader != "", s.ClusterID
	}
	return answer{status: http.StatusOK, body: map[string]any{
		"memory": map[string]any{
			"lua_shared_dicts": map[string]any{},
			"workers_lua_vms":  []any{map[string]any{"pid": os.Getpid(), "http_allocated_gc": memory(mem.HeapAlloc, unit, scale)}},
		},
		"server": map[string]any{
			"connections_active": n.Active, "connections_reading": 0, "connections_writing": n.Active, "connections_waiting": 0,
			"connections_accepted": n.Accepted, "connections_handled": n.Accepted, "total_requests": n.Requests,
		},
		"database":           map[string]any{"reachable": reachable},
		"configuration_hash": configurationHash(id, a.o.Service.Index()),
	}}, nil
}

// configurationHash is the same on all nodes that hold the same configuration, and another one after each change. Kong has it where there is no
// database, and makes it of the configuration's text; it has as many digits.
func configurationHash(clusterID string, index uint64) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", clusterID, index))
	return hex.EncodeToString(sum[:16])
}

func memoryFormat(unit, scale string) (string, int, error) {
	if unit == "" {
		unit = "m"
	}
	if len(unit) != 1 || !strings.ContainsAny(unit, "bkmgBKMG") {
		return "", 0, malformed(fmt.Sprintf("invalid unit '%s' (expected 'k/K', 'm/M', or 'g/G')", unit))
	}
	unit = strings.ToLower(unit)
	if scale == "" {
		return unit, 2, nil
	}
	n, err := strconv.Atoi(scale)
	if err != nil || n < 0 || n > 16 {
		return "", 0, malformed("scale must be equal or greater than 0")
	}
	return unit, n, nil
}

func memory(bytes uint64, unit string, scale int) string {
	power := strings.Index("bkmg", unit)
	if power == 0 {
		return strconv.FormatUint(bytes, 10)
	}
	return fmt.Sprintf("%.*f %s", scale, float64(bytes)/math.Pow(1024, float64(power)), []string{"", "KiB", "MiB", "GiB"}[power])
}

func (a *API) ready(*call) (answer, error) {
	if a.drain.Load() {
		return answer{}, &service.Error{Kind: service.Unavailable, Message: "draining"}
	}
	if a.o.Info.Ready != nil {
		if err := a.o.Info.Ready(); err != nil {
			return answer{}, &service.Error{Kind: service.Unavailable, Message: err.Error()}
		}
	}
	return answer{status: http.StatusOK, body: errorBody{Message: "ready"}}, nil
}

// setReady takes the node out of its load balancer's rotation until it is restarted, as before maintenance. A web page on this machine could send
// the same form; browsers name the page in Origin.
func (a *API) setReady(c *call) (answer, error) {
	if c.r.Header.Get("Origin") != "" {
		return answer{}, &statusError{http.StatusForbidden, "web pages may not do this", ""}
	}
	body, _, err := readOptional(c.w, c.r)
	if err != nil {
		return answer{}, err
	}
	if body["status"] != "draining" {
		return answer{}, malformed("expected status=draining")
	}
	a.drain.Store(true)
	return answer{status: http.StatusNoContent}, nil
}
