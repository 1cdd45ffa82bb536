package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"concord/admin/auth"
	"concord/admin/rest"
	"concord/admin/service"
	"concord/cluster"
	"concord/cmd/concord/settings"
	"concord/fsm"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/proxy"
	"concord/proxy/balancer"
	"concord/proxy/dataplane"
	"concord/proxy/dns"
	"concord/proxy/h1"
	"concord/proxy/listen"
	"concord/proxy/plugin"
	"concord/proxy/plugins/all"
	"concord/proxy/plugins/prometheus"
	"concord/proxy/stream"
	"concord/proxy/upstream"
)

// node is a running gateway. Its parts are in the order in which they are made; stop goes the other way round.
type node struct {
	s     *settings.Settings // it was started with
	live  *settings.Settings // of the last reload
	load  func() (*settings.Settings, []settings.Warning, error)
	level *slog.LevelVar
	log   *slog.Logger
	logs  []*logFile // reopened by a reload

	sockets  *sockets
	cluster  *cluster.Node
	compiler *dataplane.Compiler
	balancer *balancer.Set
	upstream *upstream.Transport
	access   *proxy.AccessLog // nil: off
	streams  *proxy.AccessLog // of stream sessions; nil: off
	stats    proxy.Stats
	counters *prometheus.Registry
	upToDate atomic.Pointer[string] // the cluster and node id with which this node has caught up
	front    front
	servers  []*http.Server // Admin API and status
	draining atomic.Bool
	failed   chan error // a listener that broke
}

// run is "concord run": it holds the prefix, runs a node until a signal ends it, and returns nil after a clean stop.
func (c *cli) run(s *settings.Settings) error {
	syscall.Umask(0o077) // what the node writes is its own: keys, the log, snapshots
	if err := prepare(s); err != nil {
		return err
	}
	release, err := claim(s.Prefix)
	if err != nil {
		return err
	}
	defer release()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)

	n := &node{s: s, live: s, load: c.load, level: new(slog.LevelVar), failed: make(chan error, 1)}
	n.level.Set(s.LogLevel)
	n.log = newLogger(c.stderr, n.level)
	n.notice("starting", "version", version, "node", s.NodeName, "prefix", s.Prefix, "settings", orNone(s.File))
	if err := n.start(); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n.stop(ctx)
		return err
	}
	notify("READY=1")
	n.notice("ready", "node_id", n.cluster.ID(), "cluster_id", n.cluster.ClusterID())
	return n.wait(signals)
}

// wait handles signals until one of them, or a broken listener, ends the node.
func (n *node) wait(signals <-chan os.Signal) error {
	for {
		select {
		case err := <-n.failed:
			ctx, cancel := context.WithTimeout(context.Background(), n.s.DrainTimeout)
			defer cancel()
			n.stop(ctx)
			return err
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				n.reload()
				continue
			}
			limit := n.s.DrainTimeout
			if sig == syscall.SIGQUIT {
				limit = math.MaxInt64 // until whoever asked for it loses patience and sends SIGTERM
			}
			notify("STOPPING=1")
			n.notice("stopping", "signal", sig.String())
			ctx, cut := context.WithTimeout(context.Background(), limit)
			defer cut()
			done := make(chan struct{})
			go func() { n.stop(ctx); close(done) }()
			for {
				select {
				case <-done:
					n.notice("stopped")
					return nil
				case sig := <-signals:
					if sig != syscall.SIGHUP {
						n.log.Warn("told to stop again: cutting off what still runs", "signal", sig.String())
						cut()
					}
				}
			}
		}
	}
}

func (n *node) notice(msg string, args ...any) {
	n.log.Log(context.Background(), settings.LevelNotice, msg, args...)
}

func (n *node) start() error {
	if err := auth.CheckBind(addrs(n.s.AdminListen)); err != nil {
		return fmt.Errorf("admin_listen: %w", err)
	}
	n.counters = prometheus.New()
	plugins, err := choosePlugins(n.s.Plugins, n.counters)
	if err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	if n.sockets, err = openSockets(n.s, &n.front, n.certificate, hostname, n.log); err != nil { // first, so that a port in use is known before the cluster is touched
		return err
	}
	roots, err := n.s.Roots()
	if err != nil {
		return fmt.Errorf("lua_ssl_trusted_certificate: %w", err)
	}
	var client *tls.Certificate
	if n.s.ClientSSL {
		pair, err := readPair(n.s.ClientSSLCert, n.s.ClientSSLCertKey)
		if err != nil {
			return fmt.Errorf("client_ssl_cert: %w", err)
		}
		client = &pair
	}
	keys, err := cluster.LoadKeys(n.s.Prefix)
	if err != nil {
		return err
	}
	machine := fsm.New(fsm.Options{Defs: entity.All(), Keys: keys})
	n.cluster, err = cluster.Open(context.Background(), cluster.Options{
		Prefix: n.s.Prefix, Name: n.s.NodeName, Listen: n.s.ClusterListen, Advertise: n.s.ClusterAdvertise, GossipListen: n.s.GossipListen,
		GossipAdvertise: n.s.GossipAdvertise, Machine: machine, Version: version, Level: fsm.MaxLevel, Log: n.log,
		Tuning: cluster.Tuning{
			SnapshotThreshold: uint64(n.s.SnapshotThreshold), SnapshotInterval: n.s.SnapshotInterval, TrailingLogs: uint64(n.s.TrailingLogs),
		},
	})
	if err != nil {
		return err
	}
	n.notice("listening", "for", "cluster_listen", "address", n.s.ClusterListen, "advertised", n.cluster.Address(), "tls", true)
	n.notice("listening", "for", "gossip_listen", "address", n.s.GossipListen)
	names, policy := dns.System{Servers: n.s.DNSServers, Hosts: dns.NewHosts(n.s.DNSHostsFile)}, n.s.DNS
	policy.StaleTTL, policy.ErrorTTL, policy.NotFoundTTL = orElse(policy.StaleTTL, -1), orElse(policy.ErrorTTL, -1), orElse(policy.NotFoundTTL, -1)
	n.balancer = balancer.New(balancer.Options{Guard: upstream.KeepOut(n.ownPorts), Roots: roots, Log: n.log, Resolver: names, DNS: policy})
	n.compiler = dataplane.New(dataplane.Options{
		Store: machine.Store(), Plugins: plugins, Log: n.log, Pools: n.balancer, Roots: roots, ClientCertificate: client,
		Env: plugin.Env{Store: machine.Store(), Log: n.log, NodeID: n.cluster.ID, Hostname: hostname},
	})
	n.upstream = upstream.New(upstream.Options{
		Resolver: names, DNS: policy, MaxNames: n.s.DNSCacheSize,
		Guard: upstream.KeepOut(n.ownPorts), MaxIdle: orElse(n.s.UpstreamKeepalivePoolSize, -1), MaxRequests: orElse(n.s.UpstreamKeepaliveMaxRequests, math.MaxInt),
		IdleTimeout: orElse(n.s.UpstreamKeepaliveIdleTimeout, math.MaxInt64), Log: n.log,
	})
	if err := n.startProxy(); err != nil {
		return err
	}
	return n.startAdmin(machine, plugins, hostname)
}

// certificate is asked in handshakes, of which there are none before the compiler has started.
func (n *node) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return n.compiler.Certificate(hello)
}

// ownPorts are the listeners that the proxy must not reach.
func (n *node) ownPorts() []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range n.sockets.admin.Addrs() {
		if t, ok := a.(*net.TCPAddr); ok {
			out = append(out, t.AddrPort())
		}
	}
	for _, s := range []string{n.s.ClusterListen, n.s.GossipListen} {
		if t, err := net.ResolveTCPAddr("tcp", s); err == nil {
			at := t.AddrPort()
			if !at.Addr().IsValid() { // ":7373"
				at = netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())
			}
			out = append(out, at)
		}
	}
	return out
}

// orElse replaces a zero, which means the default to those who take options, by what the setting 0 means.
func orElse[T comparable](v, zero T) T {
	var none T
	if v == none {
		return zero
	}
	return v
}

// choosePlugins resolves the setting plugins.
func choosePlugins(names []string, counters *prometheus.Registry) ([]plugin.Plugin, error) {
	known := all.Plugins(counters)
	var out []plugin.Plugin
	for _, p := range known {
		if slices.Contains(names, "bundled") || slices.Contains(names, p.Info.Name) {
			out = append(out, p)
		}
	}
	for _, name := range names {
		if name != "bundled" && !slices.ContainsFunc(known, func(p plugin.Plugin) bool { return p.Info.Name == name }) {
			return nil, fmt.Errorf("plugins: %q is not a plugin of this gateway: take it out of the list", name)
		}
	}
	return out, nil
}

// newHandler makes a handler from those settings that a reload may change.
func (n *node) newHandler(s *settings.Settings) *proxy.Handler {
	return proxy.New(proxy.Options{
		Holder: n.compiler.Holder(), Upstreams: n.upstream, Pools: n.balancer, Log: n.log, Product: product(), TrustedIPs: s.TrustedIPs, RealIPHeader: s.RealIPHeader,
		RealIPRecursive: s.RealIPRecursive, Headers: s.Headers, HeadersUpstream: s.HeadersUpstream, ErrorDefaultType: s.ErrorDefaultType, ErrorTemplates: s.ErrorTemplates,
		AllowDebugHeader: s.AllowDebugHeader, PathEscapes: s.PathEscapes, MaxBody: s.MaxBody, MaxInFlight: int64(s.MaxInFlight),
		AccessLog: n.access, Stats: &n.stats, Committed: n.cluster.ReadIndex,
	})
}

func product() string { return "concord/" + version }

// startAdmin serves the Admin API and the status listener.
func (n *node) startAdmin(machine *fsm.Machine, plugins []plugin.Plugin, hostname string) error {
	schemas := map[string]*schema.Schema{}
	var described []rest.Plugin
	for _, p := range plugins {
		schemas[p.Info.Name] = plugin.SchemaOf(p)
		described = append(described, rest.Plugin{Name: p.Info.Name, Version: p.Info.Version, Priority: p.Info.Priority, Schema: schemas[p.Info.Name]})
	}
	svc := service.New(service.Options{
		Log: n.cluster, Machine: machine, DryBuild: n.compiler.DryBuild, Published: n.compiler.Holder().Wait, Logger: n.log,
		Plugins: func(name string) (*schema.Schema, bool) { s, ok := schemas[name]; return s, ok },
	})
	options := rest.Options{
		Service: svc, Cluster: n.cluster, Balancer: newHealth(n.balancer, n.cluster, n.compiler.Holder(), n.log), Plugins: described, Log: n.log,
		Guard: auth.NewGuard(auth.GuardOptions{Hosts: n.s.AdminAllowedHosts, Origins: n.s.AdminAllowedOrigins}),
		Info: rest.Info{
			NodeID: n.cluster.ID(), Hostname: hostname, Version: version, Counters: n.front.counters,
			LogLevel: &rest.LogLevel{Var: n.level, Name: settings.LevelName, Parse: settings.ParseLevel}, Ready: n.ready,
			Configuration: map[string]any{
				"prefix": n.s.Prefix, "log_level": settings.LevelName(n.s.LogLevel), "plugins": n.s.Plugins,
				"proxy_listen": text(n.s.ProxyListen), "admin_listen": text(n.s.AdminListen), "status_listen": text(n.s.StatusListen),
				"stream_listen": text(n.s.StreamListen),
			},
		},
	}
	if _, chosen := schemas["prometheus"]; chosen {
		options.Info.Metrics = (&monitor{node: n, store: machine.Store(), started: time.Now()}).page
	}
	admin := http.Handler(rest.New(options))
	if n.s.AdminAccessLog != "" {
		f, err := n.openLog(n.s.AdminAccessLog)
		if err != nil {
			return fmt.Errorf("admin_access_log: %w", err)
		}
		admin = logRequests(admin, f)
	}
	n.serveHTTP(n.sockets.adminConns, admin)
	n.serve("admin_listen", n.sockets.admin, n.s.AdminListen)
	n.serveHTTP(n.sockets.statusConns, rest.NewStatus(options))
	n.serve("status_listen", n.sockets.status, n.s.StatusListen)
	return nil
}

// serveHTTP answers the Admin API's or the status listener's connections.
func (n *node) serveHTTP(conns net.Listener, h http.Handler) {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 75 * time.Second, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug), // what clients do wrong
	}
	n.servers = append(n.servers, srv)
	go func() { _ = srv.Serve(conns) }() // it ends with Shutdown; a listener that breaks is noticed by serve
}

// serve accepts on the listeners of a key.
func (n *node) serve(key string, g *listen.Group, specs []listen.Spec) {
	for i, addr := range g.Addrs() {
		n.notice("listening", "for", key, "address", addr.String(), "tls", specs[i].SSL)
	}
	go func() {
		if err := g.Serve(); err != nil {
			n.broken(key, err)
		}
	}()
}

// startProxy serves the proxy listeners.
func (n *node) startProxy() error {
	if n.s.ProxyAccessLog != "" {
		f, err := n.openLog(n.s.ProxyAccessLog)
		if err != nil {
			return fmt.Errorf("proxy_access_log: %w", err)
		}
		n.access = proxy.NewAccessLog(f, n.s.AccessLogJSON, n.log)
	}
	n.front.log, n.front.clock = n.log, h1.NewClock()
	n.front.use(n.newHandler(n.s), n.s)
	n.serve("proxy_listen", n.sockets.proxy, n.s.ProxyListen)
	return n.startStreams()
}

// startStreams serves the stream listeners.
func (n *node) startStreams() error {
	if len(n.s.StreamListen) == 0 {
		return nil
	}
	g := stream.Gateway{
		Holder: n.compiler.Holder(), Upstreams: n.upstream, Pools: n.balancer, JSON: n.s.AccessLogJSON, TrustedIPs: n.s.TrustedIPs,
	}
	if n.s.StreamLog != "" {
		f, err := n.openLog(n.s.StreamLog)
		if err != nil {
			return fmt.Errorf("proxy_stream_access_log: %w", err)
		}
		n.streams = proxy.NewAccessLog(f, n.s.AccessLogJSON, n.log)
		g.AccessLog = n.streams
	}
	for _, addr := range n.sockets.stream.Addrs() {
		n.notice("listening", "for", "stream_listen", "address", addr.String(), "network", addr.Network())
	}
	go func() {
		if err := n.sockets.stream.Serve(g); err != nil {
			n.broken("stream_listen", err)
		}
	}()
	return nil
}

// broken ends the node: one that looks alive and takes no requests is worse than one that restarts.
func (n *node) broken(key string, err error) {
	select {
	case n.failed <- fmt.Errorf("%s: %w", key, err):
	default:
	}
}

// reload takes over what can be changed in a running node.
func (n *node) reload() {
	next, warnings, err := n.load()
	for _, w := range warnings {
		n.log.Warn(string(w))
	}
	if err != nil {
		n.log.Error("reload: the settings are not valid, nothing was changed", "error", err)
		return
	}
	for _, f := range n.logs {
		if err := f.reopen(); err != nil {
			n.log.Error("reload: a log file cannot be opened anew, the old one goes on", "error", err)
		}
	}
	if _, restart := n.s.Changed(next); len(restart) > 0 {
		n.log.Warn("reload: these settings need a restart", "settings", strings.Join(restart, ", "))
	}
	live, _ := n.live.Changed(next)
	if len(live) > 0 {
		n.level.Set(next.LogLevel)
		n.front.use(n.newHandler(next), next)
	}
	n.live = next
	n.notice("reloaded", "changed", orNone(strings.Join(live, ", ")))
}

// stop drains and ends the parts. When ctx ends, requests that still run are cut off.
func (n *node) stop(ctx context.Context) {
	n.draining.Store(true)
	if n.sockets == nil {
		return
	}
	n.sockets.proxy.Close()
	n.sockets.stream.Close()
	var streams sync.WaitGroup
	streams.Go(func() { n.sockets.stream.Shutdown(ctx) })
	n.front.shutdown(ctx) // the status listener tells meanwhile that the node is not ready
	streams.Wait()
	n.sockets.close()
	for _, s := range n.servers {
		if err := s.Shutdown(ctx); err != nil {
			s.Close()
		}
	}
	if n.cluster != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if err := n.cluster.Shutdown(ctx); err != nil {
			n.log.Error("the cluster part did not stop cleanly", "error", err)
		}
		cancel()
	}
	if n.compiler != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		n.compiler.Close(ctx)
		cancel()
	}
	if n.balancer != nil {
		n.balancer.Close()
	}
	if n.upstream != nil {
		n.upstream.Close()
	}
	if n.access != nil {
		n.access.Close()
	}
	if n.streams != nil {
		n.streams.Close()
	}
	for _, f := range n.logs {
		f.Close()
	}
}

// addrs are the listeners as they are written in a settings file.
func addrs(list []listen.Spec) []string {
	var out []string
	for _, l := range list {
		out = append(out, l.String())
	}
	return out
}

// text is the value of a *_listen key.
func text(list []listen.Spec) string {
	if len(list) == 0 {
		return "off"
	}
	return strings.Join(addrs(list), ", ")
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
