package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"concord/admin/auth"
	"concord/admin/rest"
	"concord/admin/rpc"
	"concord/admin/service"
	"concord/cmd/concord/settings"
	"concord/fsm"
	"concord/fsm/schema"
	"concord/proxy/plugin"
)

// startAdmin serves the Admin API and the status listener.
func (n *node) startAdmin(machine *fsm.Machine, plugins []plugin.Plugin, hostname string) error {
	schemas := map[string]*schema.Schema{}
	var described []rest.Plugin
	for _, p := range plugins {
		schemas[p.Info.Name] = plugin.SchemaOf(p)
		described = append(described, rest.Plugin{Name: p.Info.Name, Version: p.Info.Version, Priority: p.Info.Priority, Schema: schemas[p.Info.Name]})
	}
	svc := service.New(service.Options{
		Log: n.cluster, Machine: machine, DryBuild: n.compiler.DryBuild, Published: n.compiler.Holder().Wait, Logger: n.log, Busy: n.busy, RequireToken: n.s.AdminRequireToken,
		Plugins: func(name string) (*schema.Schema, bool) { s, ok := schemas[name]; return s, ok },
	})
	n.keep.service.Store(svc)
	n.tokens = svc.HasTokens
	if n.from == nil && n.inSync() {
		if err := n.checkBind(n.s); err != nil {
			return err
		}
	}
	level := &rest.LogLevel{Var: n.level, Name: settings.LevelName, Parse: settings.ParseLevel}
	told := newTelling(n.balancer, level, n.cluster, n.compiler.Holder(), n.log)
	options := rest.Options{
		Service: svc, Door: auth.NewDoor(auth.DoorOptions{Tokens: svc, Log: n.log}), Cluster: n.cluster, Balancer: told, Tracer: &tracer{n.compiler.Holder(), n.balancer}, Plugins: described, Log: n.log,
		Guard: auth.NewGuard(auth.GuardOptions{Hosts: n.s.AdminAllowedHosts, Origins: n.s.AdminAllowedOrigins}),
		Info: rest.Info{
			NodeID: n.cluster.ID(), Hostname: hostname, Version: version, Counters: n.traffic,
			LogLevel: level, Ready: n.ready,
			Configuration: func() map[string]any { return n.shown.Load().Shown() },
		},
	}
	if _, chosen := schemas["acme"]; chosen {
		options.ACME = orders{n.orders}
	}
	if _, chosen := schemas["prometheus"]; chosen {
		options.Info.Metrics = (&monitor{node: n, store: machine.Store(), door: options.Door, started: time.Now()}).page
	}
	kong := rest.New(options)
	programs := rpc.New(rpc.Options{Service: svc, Guard: options.Guard, Door: options.Door, Cluster: n.cluster, Log: n.log})
	admin := logRequests(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rpc.Serves(r) {
			programs.ServeHTTP(w, r)
		} else {
			kong.ServeHTTP(w, r)
		}
	}), &n.logs[logAdmin], kong.LogPath)
	n.serveHTTP(n.adminConns, n.retiring(admin, true)).RegisterOnShutdown(programs.Close)
	n.serveHTTP(n.statusConns, n.retiring(rest.NewStatus(options), false))
	n.serveListeners(n.s)
	return nil
}

// checkBind refuses an Admin API that others can reach while there are no credentials for it.
func (n *node) checkBind(s *settings.Settings) error {
	exposed, err := auth.CheckBind(addrs(s.AdminListen))
	if err == nil && exposed && !n.s.AdminRequireToken && !n.tokens() {
		err = auth.ErrNoCredentials
	}
	if err != nil {
		return fmt.Errorf("admin_listen: %w", err)
	}
	return nil
}

// inSync waits a while until this node holds all that its cluster has committed, if others can reach its Admin API. Without a leader it cannot tell,
// and the node starts all the same: the proxy needs none, and the Admin API asks everybody from elsewhere for a token in any case.
func (n *node) inSync() bool {
	if exposed, _ := auth.CheckBind(addrs(n.s.AdminListen)); !exposed {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	index, err := n.cluster.ReadIndex(ctx)
	return err == nil && n.cluster.Wait(ctx, index) == nil
}

// traffic counts what nginx's stub_status counts, which Kong reports: the connections and requests of all HTTP listeners.
func (n *node) traffic() rest.Counters {
	c := n.front.counters()
	c.Accepted += n.httpAccepted.Load()
	c.Active += uint64(max(n.httpConns.Load(), 0))
	c.Requests += n.httpAsked.Load()
	return c
}

// serveHTTP answers the Admin API's or the status listener's connections.
func (n *node) serveHTTP(conns *handOver, h http.Handler) *http.Server {
	versions := new(http.Protocols) // gRPC needs HTTP/2, without TLS too
	versions.SetHTTP1(true)
	versions.SetHTTP2(true)
	versions.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Protocols: versions,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n.httpAsked.Add(1)
			h.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 75 * time.Second, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug), // what clients do wrong
		ConnState: func(nc net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				n.httpConns.Add(1)
				n.httpAccepted.Add(1)
			case http.StateClosed, http.StateHijacked:
				n.httpConns.Add(-1)
				conns.ended(nc)
			}
		},
	}
	n.servers = append(n.servers, srv)
	go func() { _ = srv.Serve(conns) }() // it ends with Shutdown; a listener that breaks is noticed by serve
	return srv
}
