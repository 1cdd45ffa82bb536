package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"concord/admin/auth"
	"concord/cluster"
	"concord/cmd/concord/settings"
	"concord/fsm"
	"concord/fsm/entity"
	"concord/proxy"
	"concord/proxy/balancer"
	"concord/proxy/dataplane"
	"concord/proxy/dns"
	"concord/proxy/h1"
	"concord/proxy/listen"
	"concord/proxy/plugin"
	"concord/proxy/plugins/acme"
	"concord/proxy/plugins/all"
	"concord/proxy/plugins/prometheus"
	"concord/proxy/stream"
	"concord/proxy/upstream"
	"concord/ratelimit"
)

// node is a running gateway. Its parts are in the order in which they are made; stop goes the other way round.
type node struct {
	s     *settings.Settings                // it was started with
	live  *settings.Settings                // of the last reload
	shown atomic.Pointer[settings.Settings] // live, for the Admin API
	load  func() (*settings.Settings, []settings.Warning, error)
	level *slog.LevelVar
	keep  keep
	log   *slog.Logger
	// ownLog: the process's own log is proxy_error_log.
	ownLog bool

	logs       [3]logFile       // of the proxy, of streams, of the Admin API; each may be off
	access     *proxy.AccessLog // to the proxy's
	streams    *proxy.AccessLog // to that of streams
	accessJSON bool
	accessLogs []*proxy.AccessLog // both, and those of earlier formats

	program string // by which an upgrade starts the next process
	lock    *pidLock
	from    *succession // from an older process; nil: from nobody

	sockets  atomic.Pointer[sockets]
	machine  *fsm.Machine
	cluster  *cluster.Node
	tokens   func() bool // there are admin tokens
	compiler *dataplane.Compiler
	balancer *balancer.Set
	upstream *upstream.Transport
	stats    proxy.Stats
	counters *prometheus.Registry
	limits   *ratelimit.Local // the counts of rate-limiting
	orders   *acme.Orders
	upToDate atomic.Pointer[string] // the cluster and node id with which this node has caught up
	packed   sync.Once              // what it had to read for that
	bustle   bustle
	front    front

	adminConns, statusConns *handOver
	httpConns               atomic.Int64   // of servers
	proxyConns              atomic.Int64   // of proxy_listen, also of what it was before a reload
	httpAccepted, httpAsked atomic.Uint64  // their connections and requests so far
	servers                 []*http.Server // Admin API and status
	pending                 []func()       // listeners that do not accept yet
	accepting               bool
	streamServers           []*stream.Server // that of now, and those from before reloads
	streamStats             stream.Stats     // of all of them

	draining atomic.Bool
	retired  atomic.Bool // a new process is the node: successor
	failed   chan error  // a listener that broke

	successor *os.Process
}

// run is "concord run": it holds the prefix, runs a node until a signal ends it, and returns nil after a clean stop. from is the process that this
// one is to replace, if any.
func (c *cli) run(s *settings.Settings, from *succession) error {
	err := c.runNode(s, from)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		var st syscall.Statfs_t
		free := uint64(0)
		if syscall.Statfs(s.Prefix, &st) == nil {
			free = st.Bavail * uint64(st.Bsize)
		}
		return fmt.Errorf("the disk of %s is full, %d bytes are free: make room there, or raise the quota, and start the node again: %w", s.Prefix, free, err)
	}
	return err
}

func (c *cli) runNode(s *settings.Settings, from *succession) error {
	syscall.Umask(0o077) // what the node writes is its own: keys, the log, snapshots
	shareProcessors()
	if err := prepare(s); err != nil {
		return err
	}
	n := &node{s: s, live: s, load: c.load, from: from, level: new(slog.LevelVar), failed: make(chan error, 1)}
	n.shown.Store(s)
	n.ownLog = isStderr(s.ErrorLog)
	var err error
	if n.program, err = program(); err != nil {
		return err
	}
	if from != nil {
		n.lock = &pidLock{from.lock}
	} else if n.lock, err = claim(s.Prefix); err != nil {
		return err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)

	n.level.Set(s.LogLevel)
	n.log = newLogger(c.stderr, n.level)
	n.notice("starting", "version", version, "node", s.NodeName, "prefix", s.Prefix, "settings", orNone(s.File))
	if err = n.start(); err == nil && from != nil {
		err = n.lock.take()
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n.stop(ctx)
		if from == nil { // otherwise the pid file is still the old process's
			n.lock.release()
		}
		return err
	}
	defer n.lock.release()
	from.serving()
	n.cluster.ReleaseLevel()
	notify("READY=1")
	n.notice("ready", "node_id", n.cluster.ID(), "cluster_id", n.cluster.ClusterID())
	go n.awaitReady()
	return n.wait(signals)
}

// wait handles signals until one of them, or a broken listener, ends the node.
func (n *node) wait(signals <-chan os.Signal) error {
	var upgraded chan error                                  // of the upgrade that is under way
	ctx, abandon := context.WithCancel(context.Background()) // of upgrades
	defer abandon()
	for {
		select {
		case err := <-n.failed:
			ctx, cancel := context.WithTimeout(context.Background(), n.live.DrainTimeout)
			defer cancel()
			n.stop(ctx)
			return err
		case err := <-upgraded:
			upgraded = nil
			if err == nil {
				n.end(signals, n.live.UpgradeDrainTimeout, n.retire)
				n.notice("ended: the new process serves")
				return nil
			}
			n.log.Error("upgrade: it failed, and this process goes on as before", "error", err)
		case sig := <-signals:
			switch {
			case sig == syscall.SIGUSR1:
				n.reopenLogs()
			case upgraded != nil && (sig == syscall.SIGHUP || sig == syscall.SIGUSR2):
				n.log.Warn("an upgrade is under way: the signal is ignored", "signal", sig.String())
			case sig == syscall.SIGHUP:
				_ = n.answer("reload", func(question) ([]string, error) { return n.reload() }) // logged there
			case sig == syscall.SIGUSR2:
				done := make(chan error, 1)
				upgraded = done
				go func() {
					done <- n.answer("upgrade", func(q question) ([]string, error) {
						pid, err := n.upgrade(ctx, q.Binary)
						return []string{fmt.Sprint(pid)}, err
					})
				}()
			default:
				if upgraded != nil {
					abandon()
					if err := <-upgraded; err == nil { // too late: the new process is the node, and the signal was meant for it
						n.log.Warn("told to stop while the new process took over: passing it on", "signal", sig.String())
						n.passOn(sig)
					}
				}
				limit := n.live.DrainTimeout
				if sig == syscall.SIGQUIT {
					limit = math.MaxInt64 // until whoever asked for it loses patience and sends SIGTERM
				}
				if !n.retired.Load() {
					notify("STOPPING=1")
				}
				n.notice("stopping", "signal", sig.String())
				n.end(signals, limit, n.stop)
				n.notice("stopped")
				return nil
			}
		}
	}
}

// end runs what ends the node, at most as long as limit, and less when it is told to stop meanwhile.
func (n *node) end(signals <-chan os.Signal, limit time.Duration, f func(context.Context)) {
	ctx, cut := context.WithTimeout(context.Background(), limit)
	defer cut()
	done := make(chan struct{})
	go func() { f(ctx); close(done) }()
	for {
		select {
		case <-done:
			return
		case sig := <-signals:
			if sig != syscall.SIGHUP && sig != syscall.SIGUSR1 && sig != syscall.SIGUSR2 {
				n.log.Warn("told to stop again: cutting off what still runs", "signal", sig.String())
				cut()
			}
		}
	}
}

func (n *node) notice(msg string, args ...any) {
	n.log.Log(context.Background(), settings.LevelNotice, msg, args...)
}

func (n *node) start() error {
	if _, err := auth.CheckBind(addrs(n.s.AdminListen)); err != nil {
		return fmt.Errorf("admin_listen: %w", err)
	}
	n.counters, n.limits, n.orders = prometheus.New(), ratelimit.NewLocal(ratelimit.Options{}), acme.New()
	plugins, err := choosePlugins(n.s.Plugins, n.counters, n.limits, n.orders)
	if err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	if err := n.suits(); err != nil {
		return err
	}
	n.adminConns, n.statusConns = newHandOver(), newHandOver()
	if err := n.openSockets(n.s, n.from.inherited); err != nil { // first, so that a port in use is known before the cluster is touched
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
	served, err := n.from.step(stepChecked, stepGo)
	if err != nil {
		return err
	}
	machine := fsm.New(fsm.Options{Defs: entity.All(), Keys: keys, Yield: (&turns{busy: n.busy}).yield})
	n.machine = machine
	n.bustle = bustle{began: time.Now(), requests: n.front.requests.Load, inUse: func() bool { return n.compiler.Holder().InUse() || n.compiler.Stats().Retired > 0 }}
	n.cluster, err = cluster.Open(context.Background(), cluster.Options{
		Prefix: n.s.Prefix, Name: n.s.NodeName, Listen: n.s.ClusterListen, Advertise: n.s.ClusterAdvertise, GossipListen: n.s.GossipListen,
		GossipAdvertise: n.s.GossipAdvertise, Machine: machine, Version: version, Level: fsm.MaxLevel, HoldLevel: n.from != nil, Log: n.log,
		Tuning: cluster.Tuning{
			SnapshotThreshold: uint64(n.s.SnapshotThreshold), SnapshotInterval: n.s.SnapshotInterval, TrailingLogs: uint64(n.s.TrailingLogs),
			AuditRecords: uint64(n.s.AuditRecords), AuditAge: time.Duration(n.s.AuditDays) * 24 * time.Hour,
		},
	})
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // replaying the log took as much again as the entities
	n.notice("listening", "for", "cluster_listen", "address", n.s.ClusterListen, "advertised", n.cluster.Address(), "tls", true)
	n.notice("listening", "for", "gossip_listen", "address", n.s.GossipListen)
	policy := n.s.DNS
	names := &dns.System{Servers: n.s.DNSServers, Hosts: dns.NewHosts(n.s.DNSHostsFile), SixFirst: policy.SixFirst()}
	policy.StaleTTL, policy.ErrorTTL, policy.NotFoundTTL = orElse(policy.StaleTTL, -1), orElse(policy.ErrorTTL, -1), orElse(policy.NotFoundTTL, -1)
	n.balancer = balancer.New(balancer.Options{Guard: upstream.KeepOut(n.ownPorts), Roots: roots, Log: n.log, Resolver: names, DNS: policy})
	n.compiler = dataplane.New(dataplane.Options{
		Store: machine.Store(), Plugins: plugins, Log: n.log, Pools: n.balancer, Roots: roots, ClientCertificate: client, Yield: (&turns{busy: n.busy}).yield,
		Env: plugin.Env{Store: machine.Store(), Log: n.log, NodeID: n.cluster.ID, Hostname: hostname, Keep: &n.keep, Roots: roots},
	})
	n.cluster.HandleServed(n.compiler.Holder().PublishedIndex)
	n.upstream = upstream.New(upstream.Options{
		Resolver: names, DNS: policy, MaxNames: n.s.DNSCacheSize,
		Guard: upstream.KeepOut(n.ownPorts), Control: trafficFiles().Control, MaxIdle: orElse(n.s.UpstreamKeepalivePoolSize, -1), MaxRequests: orElse(n.s.UpstreamKeepaliveMaxRequests, math.MaxInt),
		IdleTimeout: orElse(n.s.UpstreamKeepaliveIdleTimeout, math.MaxInt64), Log: n.log,
	})
	if err := n.startProxy(); err != nil {
		return err
	}
	if err := n.startAdmin(machine, plugins, hostname); err != nil {
		return err
	}
	if n.from != nil {
		// At least what the old process served; it ends this one if that takes too long.
		if err := n.compiler.Holder().Wait(context.Background(), served.Index); err != nil {
			return err
		}
		if n.from.begin.Ready {
			n.caughtUp()
		}
		if _, err := n.from.step(stepReady, stepOver); err != nil {
			return err
		}
		n.recall(n.from.memory)
	}
	n.accepting = true
	for _, accept := range n.pending {
		accept()
	}
	n.pending = nil
	return nil
}

// suits tells whether this process can take the place of the one that started it.
func (n *node) suits() error {
	switch {
	case n.from == nil:
	case n.from.begin.Prefix != n.s.Prefix:
		return fmt.Errorf("prefix is now %s, and the running node's is %s: that needs a restart", n.s.Prefix, n.from.begin.Prefix)
	case n.from.begin.Level > fsm.MaxLevel:
		return fmt.Errorf("the cluster is at level %d, and this program (version %s) understands levels up to %d: use a newer one", n.from.begin.Level, version, fsm.MaxLevel)
	}
	return nil
}

// openSockets opens the listeners of the settings, taking those that are inherited.
func (n *node) openSockets(s *settings.Settings, inherited func(string) *listen.Inherited) error {
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	var present quicListeners
	if old := n.sockets.Load(); old != nil {
		present = old.quic
	}
	open, err := openSockets(s, present, servers{&n.front, n.adminConns, n.statusConns, quicFront{&n.front}, &n.proxyConns}, n.certificate, n.tuneTLS, &n.streamStats, hostname, inherited, n.log)
	if err == nil {
		n.sockets.Store(open)
		if len(s.StreamListen) > 0 {
			n.streamServers = append(n.streamServers, open.stream)
		}
	}
	return err
}

// ownPorts are the listeners that the proxy must not reach.
func (n *node) ownPorts() []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range n.sockets.Load().admin.Addrs() {
		if t, ok := a.(*net.TCPAddr); ok {
			out = append(out, t.AddrPort())
		}
	}
	for _, a := range n.sockets.Load().stream.Addrs() { // a stream would come in again, and so on; UDP looks for itself
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
func choosePlugins(names []string, counters *prometheus.Registry, limits *ratelimit.Local, orders *acme.Orders) ([]plugin.Plugin, error) {
	known := all.Plugins(counters, limits, orders)
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
	access := n.access
	if s.ProxyAccessLog == "" {
		access = nil
	}
	return proxy.New(proxy.Options{
		Holder: n.compiler.Holder(), Upstreams: n.upstream, Pools: n.balancer, Log: n.log, Product: product(), TrustedIPs: s.TrustedIPs, RealIPHeader: s.RealIPHeader,
		RealIPRecursive: s.RealIPRecursive, Headers: s.Headers, HeadersUpstream: s.HeadersUpstream, ErrorDefaultType: s.ErrorDefaultType, ErrorTemplates: s.ErrorTemplates,
		AllowDebugHeader: s.AllowDebugHeader, PathEscapes: s.PathEscapes, MaxBody: s.MaxBody, HeldBody: s.HeldBody, MaxInFlight: int64(s.MaxInFlight),
		AccessLog: access, Stats: &n.stats, Committed: n.cluster.ReadIndex,
	})
}

func product() string { return "concord/" + version }

// serveListeners accepts on what openSockets has opened.
func (n *node) serveListeners(s *settings.Settings) {
	open := n.sockets.Load()
	n.serve("proxy_listen", open.proxy, s.ProxyListen)
	n.serve("admin_listen", open.admin, s.AdminListen)
	n.serve("status_listen", open.status, s.StatusListen)
	n.startStreams(s, open.stream)
	n.startQUIC(open)
}

// startQUIC serves the listeners of HTTP/3, with the certificates of now. Those that serve already go on.
func (n *node) startQUIC(open *sockets) {
	if !n.accepting {
		n.pending = append(n.pending, func() { n.startQUIC(open) })
		return
	}
	told := open.altSvc()
	n.front.altSvc.Store(&told)
	for _, l := range open.quic {
		if l.Use(open.quicTLS, open.proxy); l.Serving() {
			continue
		}
		n.notice("listening", "for", "proxy_listen", "address", l.Addr().String(), "network", "udp", "http3", true)
		go func() {
			if err := l.Serve(); err != nil {
				n.broken("proxy_listen", err)
			}
		}()
	}
}

// serve accepts on the listeners of a key, once the node is started.
func (n *node) serve(key string, g *listen.Group, specs []listen.Spec) {
	if !n.accepting {
		n.pending = append(n.pending, func() { n.serve(key, g, specs) })
		return
	}
	for i, addr := range g.Addrs() {
		n.notice("listening", "for", key, "address", addr.String(), "tls", specs[i].SSL)
	}
	go func() {
		if err := g.Serve(); err != nil {
			n.broken(key, err)
		}
	}()
}

// startProxy makes what serves the proxy listeners.
func (n *node) startProxy() error {
	files, err := openLogs(n.s)
	if err != nil {
		return err
	}
	n.useLogs(n.s, files)
	n.front.log, n.front.clock = n.log, h1.NewClock()
	n.front.use(n.newHandler(n.s), n.s)
	return nil
}

// startStreams serves the stream listeners, with the settings of now.
func (n *node) startStreams(s *settings.Settings, server *stream.Server) {
	if len(s.StreamListen) == 0 {
		return
	}
	if !n.accepting {
		n.pending = append(n.pending, func() { n.startStreams(s, server) })
		return
	}
	g := stream.Gateway{Holder: n.compiler.Holder(), Upstreams: n.upstream, Pools: n.balancer, JSON: s.AccessLogJSON, TrustedIPs: s.TrustedIPs}
	if s.StreamLog != "" {
		g.AccessLog = n.streams
	}
	for _, addr := range server.Addrs() {
		n.notice("listening", "for", "stream_listen", "address", addr.String(), "network", addr.Network())
	}
	go func() {
		if err := server.Serve(g); err != nil {
			n.broken("stream_listen", err)
		}
	}()
}

// broken ends the node: one that looks alive and takes no requests is worse than one that restarts.
func (n *node) broken(key string, err error) {
	select {
	case n.failed <- fmt.Errorf("%s: %w", key, err):
	default:
	}
}

// stop drains and ends the parts. When ctx ends, requests that still run are cut off.
func (n *node) stop(ctx context.Context) {
	n.draining.Store(true)
	open := n.sockets.Load()
	if open == nil {
		return
	}
	open.proxy.Close()
	var streams sync.WaitGroup
	for _, s := range n.streamServers {
		s.Close()
		streams.Go(func() { s.Shutdown(ctx) })
	}
	n.front.shutdown(ctx) // the status listener tells meanwhile that the node is not ready
	streams.Wait()
	open.close()
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
	for _, l := range n.accessLogs {
		l.Close()
	}
	for i := range n.logs {
		n.logs[i].use(nil)
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

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
