package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	rtm "runtime/metrics"
	"strconv"
	"strings"
	"syscall"
	"time"

	"concord/admin/auth"
	"concord/admin/rest"
	"concord/fsm/entity"
	"concord/fsm/state"
	"concord/proxy/plugins/prometheus"
)

// monitor writes GET /metrics: Kong's metrics, then those of Concord, the Go runtime and the process. It asks no other node, but for the
// leader until this node has caught up.
type monitor struct {
	*node
	store   *state.Store
	door    *auth.Door
	started time.Time
}

func (m *monitor) page() ([]byte, string) {
	var p prometheus.Page
	m.gateway(&p)
	m.counters.Write(&p)
	if m.counters.UpstreamHealth() {
		m.targets(&p)
	}
	m.raft(&p)
	m.admin(&p)
	m.dataplane(&p)
	goRuntime(&p)
	m.process(&p)
	return p.Bytes(), prometheus.ContentType
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// gateway are Kong's metrics of the node. What Kong measures of nginx's timers and Lua's shared memory does not exist here.
func (m *monitor) gateway(p *prometheus.Page) {
	id, c := m.cluster.ID(), m.traffic()
	p.One("kong_datastore_reachable", prometheus.Gauge, "Whether this node knows a leader, so that entities can be written; 0: not now.", flag(m.cluster.Progress().HasLeader))
	p.Family("kong_node_info", prometheus.Gauge, "Always 1; the labels say which node and version this is.")
	p.Add(1, "node_id", id, "version", rest.KongVersion)
	p.Family("kong_nginx_connections_total", prometheus.Gauge, "Client connections by state; total counts requests, of streams sessions.")
	for _, s := range []struct {
		state string
		n     uint64
	}{{"accepted", c.Accepted}, {"active", c.Active}, {"handled", c.Accepted}, {"total", c.Requests}} {
		p.Add(float64(s.n), "node_id", id, "subsystem", "http", "state", s.state)
	}
	if len(m.sockets.Load().stream.Addrs()) > 0 {
		accepted, active := m.streamStats.Counters()
		for _, s := range []struct {
			state string
			n     uint64
		}{{"accepted", accepted}, {"active", active}, {"handled", accepted}, {"total", accepted}} {
			p.Add(float64(s.n), "node_id", id, "subsystem", "stream", "state", s.state)
		}
	}
	p.Family("kong_nginx_requests_total", prometheus.Gauge, "Requests to the proxy, whether they matched a route or not.")
	p.Add(float64(c.Requests), "node_id", id, "subsystem", "http")
	p.Family("kong_memory_workers_lua_vms_bytes", prometheus.Gauge, "Memory in use by the process's objects; in Kong by Lua's.")
	p.Add(read("/memory/classes/heap/objects:bytes"), "node_id", id, "pid", strconv.Itoa(os.Getpid()), "kong_subsystem", "http")
}

// targets are the health of all upstreams' targets, with one sample for each state, as Kong shows it.
func (m *monitor) targets(p *prometheus.Page) {
	p.Family("kong_upstream_target_health", prometheus.Gauge, "The state of each address of each target as this node sees it: 1 for the one it is in, 0 for the others.")
	view := m.store.View()
	rows := state.TableOf[entity.Target](m.store)
	for up := range state.TableOf[entity.Upstream](m.store).All(view) {
		health, _ := m.balancer.TargetHealth(up.Val.ID)
		for row := range rows.Scan(view, "upstream", up.Val.ID) {
			t := health[row.Val.ID]
			data, _ := t["data"].(map[string]any)
			addresses, _ := data["addresses"].([]any)
			if len(addresses) == 0 && t != nil {
				addresses = []any{map[string]any{"health": t["health"]}}
			}
			for _, a := range addresses {
				m.target(p, up.Val.Name, row.Val.Target, a)
			}
		}
	}
}

func (m *monitor) target(p *prometheus.Page, upstream, target string, address any) {
	a, _ := address.(map[string]any)
	at := ""
	if ip, ok := a["ip"].(string); ok {
		at = net.JoinHostPort(ip, fmt.Sprint(a["port"]))
	}
	is, _ := a["health"].(string)
	for _, s := range []string{"healthchecks_off", "healthy", "unhealthy", "dns_error"} {
		p.Add(flag(strings.EqualFold(is, s)), "upstream", upstream, "target", target, "address", at, "state", s, "subsystem", "http")
	}
}

func (m *monitor) raft(p *prometheus.Page) {
	r := m.cluster.Progress()
	p.One("concord_raft_leader", prometheus.Gauge, "Whether this node leads the cluster.", flag(r.Leads))
	p.One("concord_raft_leader_known", prometheus.Gauge, "Whether this node knows a leader.", flag(r.HasLeader))
	p.One("concord_raft_members", prometheus.Gauge, "Nodes of the cluster, this one included.", float64(r.Members))
	p.One("concord_cluster_joins_refused_total", prometheus.Counter, "Joins of nodes that this node refused as the leader.", float64(r.Refused))
	p.One("concord_raft_term", prometheus.Gauge, "Term of the cluster as this node knows it; it grows with every election.", float64(r.Term))
	p.One("concord_raft_last_index", prometheus.Gauge, "Last log entry on this node's disk.", float64(r.Last))
	p.One("concord_raft_commit_index", prometheus.Gauge, "Last log entry that this node knows to be committed.", float64(r.Committed))
	p.One("concord_raft_applied_index", prometheus.Gauge, "Last log entry that is in this node's state.", float64(r.Applied))
	if r.LastContact >= 0 {
		p.One("concord_raft_last_contact_seconds", prometheus.Gauge, "Seconds since the leader was heard of; 0 on the leader.", r.LastContact.Seconds())
	}
}

func (m *monitor) admin(p *prometheus.Page) {
	c := m.door.Counts()
	p.One("concord_admin_credentials_refused_total", prometheus.Counter, "Requests to the Admin API with a wrong or expired admin token.", float64(c.Refused))
	p.One("concord_admin_credentials_limited_total", prometheus.Counter, "Requests to the Admin API answered 429 because their address had sent too many wrong tokens.", float64(c.Limited))
}

func (m *monitor) dataplane(p *prometheus.Page) {
	c, s, u := m.compiler.Stats(), &m.stats, m.upstream.Stats()
	p.One("concord_ready", prometheus.Gauge, "Whether this node has caught up with its cluster and is not stopping.", flag(m.ready() == nil))
	p.One("concord_config_index", prometheus.Gauge, "Config index that requests are served with.", float64(m.compiler.Holder().PublishedIndex()))
	p.One("concord_compile_total", prometheus.Counter, "Compilations of the configuration.", float64(c.Compilations))
	p.One("concord_compile_full_total", prometheus.Counter, "Compilations from nothing: at the start and after a snapshot.", float64(c.Full))
	p.One("concord_compile_seconds_total", prometheus.Counter, "Seconds spent compiling.", c.Total.Seconds())
	p.One("concord_compile_last_seconds", prometheus.Gauge, "Duration of the last compilation.", c.Last.Seconds())
	p.One("concord_compile_max_seconds", prometheus.Gauge, "Longest compilation since the start.", c.Max.Seconds())
	p.One("concord_compile_broken_rows", prometheus.Gauge, "Routes and plugins that cannot be built; the log says why.", float64(c.Broken))
	p.One("concord_compile_retired_snapshots", prometheus.Gauge, "Replaced configurations that requests still use.", float64(c.Retired))
	p.One("concord_plugin_panics_total", prometheus.Counter, "Panics of plugins, each answered with 500.", float64(s.Panics.Load()))
	p.One("concord_plugin_errors_total", prometheus.Counter, "Failures of plugins, each answered with 500.", float64(s.PluginErrors.Load()))
	p.One("concord_overloads_total", prometheus.Counter, "Requests refused with 503 because max_requests_in_flight others were running.", float64(s.Overloads.Load()))
	p.One("concord_loops_total", prometheus.Counter, "Requests refused with 508 because they came through this gateway again and again.", float64(s.Loops.Load()))
	connections, datagrams := m.streamStats.Refused()
	p.One("concord_stream_refused_connections_total", prometheus.Counter, "Connections of streams closed because stream_max_connections others were open.", float64(connections))
	p.One("concord_stream_refused_datagrams_total", prometheus.Counter, "Datagrams dropped because stream_max_udp_clients other clients were remembered.", float64(datagrams))
	p.One("concord_upstream_endpoints", prometheus.Gauge, "Places that requests were sent to lately.", float64(u.Endpoints))
	p.One("concord_upstream_idle_connections", prometheus.Gauge, "HTTP/1.1 connections to upstreams kept for the next request.", float64(u.Idle))
	p.One("concord_upstream_http2_connections", prometheus.Gauge, "HTTP/2 connections to upstreams.", float64(u.HTTP2))
	p.One("concord_upstream_http2_streams", prometheus.Gauge, "Requests under way on HTTP/2 connections to upstreams.", float64(u.Streams))
	m.breakers(p)
}

// breakers are the circuit breakers of the upstreams that have one.
func (m *monitor) breakers(p *prometheus.Page) {
	list := m.balancer.Breakers()
	if len(list) == 0 {
		return
	}
	p.Family("concord_upstream_ejected_targets", prometheus.Gauge, "Addresses of targets that the circuit breaker keeps out now.")
	for _, b := range list {
		p.Add(float64(b.Ejected), "upstream", b.Upstream)
	}
	p.Family("concord_upstream_ejections_total", prometheus.Counter, "How often the circuit breaker has taken out an address.")
	for _, b := range list {
		p.Add(float64(b.Ejections), "upstream", b.Upstream)
	}
	p.Family("concord_upstream_rejected_total", prometheus.Counter, "Requests answered with 503 because of a limit of the circuit breaker.")
	for _, b := range list {
		p.Add(float64(b.Rejected), "upstream", b.Upstream)
	}
}

func goRuntime(p *prometheus.Page) {
	p.Family("go_info", prometheus.Gauge, "Always 1; the label says which Go built the program.")
	p.Add(1, "version", runtime.Version())
	p.One("go_goroutines", prometheus.Gauge, "Goroutines.", read("/sched/goroutines:goroutines"))
	p.One("go_gc_cycles_total", prometheus.Counter, "Garbage collections.", read("/gc/cycles/total:gc-cycles"))
	p.One("go_memstats_heap_alloc_bytes", prometheus.Gauge, "Bytes of objects in memory, garbage not yet collected included.", read("/memory/classes/heap/objects:bytes"))
	p.One("go_memstats_sys_bytes", prometheus.Gauge, "Bytes taken from the operating system.", read("/memory/classes/total:bytes"))
	p.One("go_memstats_alloc_bytes_total", prometheus.Counter, "Bytes allocated since the start.", read("/gc/heap/allocs:bytes"))
	p.One("go_sched_gomaxprocs_threads", prometheus.Gauge, "Processors the program may use at once.", read("/sched/gomaxprocs:threads"))
}

// read is a figure of the runtime, which counts without stopping the program.
func read(name string) float64 {
	s := []rtm.Sample{{Name: name}}
	rtm.Read(s)
	if s[0].Value.Kind() != rtm.KindUint64 {
		return 0
	}
	return float64(s[0].Value.Uint64())
}

func (m *monitor) process(p *prometheus.Page) {
	p.One("process_start_time_seconds", prometheus.Gauge, "When the node was started, in Unix time.", float64(m.started.UnixMilli())/1000)
	var use syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &use) == nil {
		spent := time.Duration(use.Utime.Nano() + use.Stime.Nano())
		p.One("process_cpu_seconds_total", prometheus.Counter, "Processor time, of the program and of the kernel for it.", spent.Seconds())
	}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := strings.Fields(string(b)); len(fields) > 1 {
			if pages, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				p.One("process_resident_memory_bytes", prometheus.Gauge, "Memory of the process.", float64(pages*int64(os.Getpagesize())))
			}
		}
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		p.One("process_open_fds", prometheus.Gauge, "Open files and sockets.", float64(len(open)))
	}
	var most syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &most) == nil {
		p.One("process_max_fds", prometheus.Gauge, "How many may be open.", float64(most.Cur))
	}
}
