//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"concord/cluster"
	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/seal"
)

// node is a Concord of one node.
type node struct {
	bin, name, prefix          string
	proxy, proxyTLS, admin     string
	cluster, gossip, cert, key string
	pid                        int
	env                        []string // beyond the settings
}

func (b *bench) newNode(name string) (*node, error) {
	p, err := b.ports(5)
	if err != nil {
		return nil, err
	}
	return &node{bin: b.bin, name: name, prefix: filepath.Join(b.host.dir, name), proxy: p[0], proxyTLS: p[1], admin: p[2], cluster: p[3], gossip: p[4],
		cert: b.certFile, key: b.keyFile}, nil
}

func (n *node) start(ctx context.Context, h *host) (err error) {
	env := []string{
		"CONCORD_PREFIX=" + n.prefix, "CONCORD_NODE_NAME=" + n.name, "CONCORD_PROXY_LISTEN=" + n.proxy + ", " + n.proxyTLS + " http2 http3 ssl",
		"CONCORD_ADMIN_LISTEN=" + n.admin, "CONCORD_ADMIN_GUI_LISTEN=off", "CONCORD_STATUS_LISTEN=off", "CONCORD_CLUSTER_LISTEN=" + n.cluster,
		"CONCORD_GOSSIP_LISTEN=" + n.gossip, "CONCORD_PROXY_ACCESS_LOG=off", "CONCORD_ADMIN_ACCESS_LOG=off", "CONCORD_LOG_LEVEL=warn",
		"CONCORD_SSL_CERT=" + n.cert, "CONCORD_SSL_CERT_KEY=" + n.key, "CONCORD_UPSTREAM_KEEPALIVE_MAX_REQUESTS=0",
	}
	if n.pid, err = h.start(gatewayCPU, n.name, append(env, n.env...), n.bin, "run"); err != nil {
		return err
	}
	if err = until(ctx, "http://"+n.admin+"/status/ready", 90*time.Second); err != nil {
		err = fmt.Errorf("%w\n%s", err, h.log(n.name))
	}
	return err
}

// call is a request to the Admin API; body holds pairs of names and values.
func (n *node) call(ctx context.Context, method, path string, body ...string) error {
	form := url.Values{}
	for i := 0; i < len(body); i += 2 {
		form.Add(body[i], body[i+1])
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+n.admin+path, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s %s", method, path, resp.Status, text)
	}
	return err
}

// each makes several calls: method, path and body.
func (n *node) each(ctx context.Context, calls ...[]string) error {
	for _, c := range calls {
		if err := n.call(ctx, c[0], c[1], c[2:]...); err != nil {
			return err
		}
	}
	return nil
}

// withService makes a service for the upstream and routes for paths.
func (n *node) withService(ctx context.Context, up string, paths ...string) error {
	calls := [][]string{{"POST", "/services", "name", "bench", "url", "http://" + up}}
	for _, p := range paths {
		calls = append(calls, []string{"POST", "/services/bench/routes", "name", strings.Trim(p, "/"), "paths[]", p, "strip_path", "false"})
	}
	return n.each(ctx, calls...)
}

// credentials makes a consumer with an API key and the keys of tokens.
func (n *node) credentials(ctx context.Context, s *signers) error {
	calls := [][]string{{"POST", "/consumers", "username", "bench"}, {"POST", "/consumers/bench/key-auth", "key", apiKey}}
	for _, alg := range algorithms {
		calls = append(calls, []string{"POST", "/consumers/bench/jwt", "algorithm", alg, "key", "iss-" + alg, "secret", hmacSecret, "rsa_public_key", s.public[alg]})
	}
	return n.each(ctx, calls...)
}

// limited is a limit that is never reached.
func limited(path string) []string {
	return []string{"POST", path + "/plugins", "name", "rate-limiting", "config.minute", "1000000000", "config.policy", "local"}
}

// seed fills the prefix of a node that has never run with many entities, which would take long through the Admin API. It is a
// process of its own, for it holds them all in memory.
func seedPrefix(args []string) error {
	if len(args) != 6 {
		return errors.New("seed: want prefix, cluster address, gossip address, upstream, routes, consumers")
	}
	var routes, consumers int
	if _, err := fmt.Sscan(args[4]+" "+args[5], &routes, &consumers); err != nil {
		return err
	}
	keys, err := cluster.LoadKeys(args[0])
	if err != nil {
		return err
	}
	ctx := context.Background()
	machine := fsm.New(fsm.Options{Defs: entity.All(), Keys: keys})
	c, err := cluster.Open(ctx, cluster.Options{
		Prefix: args[0], Name: "seed", Listen: args[1], GossipListen: args[2], Machine: machine, Version: "0", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	for !c.IsLeader() {
		time.Sleep(20 * time.Millisecond)
	}
	s := &seeder{keys: keys, propose: func(puts []command.Put) error {
		r, err := c.Propose(ctx, command.Command{Level: 1, LeaderTime: time.Now().UnixMilli(), Op: command.Txn{Puts: puts}})
		return errors.Join(err, r.Err)
	}}
	up, err := netip.ParseAddrPort(args[3])
	if err != nil {
		return err
	}
	if err := s.fill(up, routes, consumers); err != nil {
		return err
	}
	return c.Shutdown(ctx)
}

type seeder struct {
	keys    *seal.Keyring
	puts    []command.Put
	propose func([]command.Put) error
}

func (s *seeder) fill(up netip.AddrPort, routes, consumers int) error {
	service := seedID('s', 0)
	err := s.rows("services", schema.Record{"name": "bench", "host": up.Addr().String(), "port": float64(up.Port())}, 1, func(_ int, r schema.Record) string {
		return service
	})
	if err == nil && routes > 0 {
		err = s.rows("routes", schema.Record{"paths": []any{"/"}, "service": schema.Record{"id": service}, "strip_path": false}, routes, func(i int, r schema.Record) string {
			r["paths"] = []any{routePath(i)}
			r["name"] = fmt.Sprintf("route-%d", i)
			return seedID('r', i)
		})
	}
	if err == nil && consumers > 0 {
		err = s.rows("consumers", schema.Record{"username": "x"}, consumers, func(i int, r schema.Record) string {
			r["username"] = fmt.Sprintf("consumer-%07d", i)
			return seedID('c', i)
		})
	}
	if err == nil && consumers > 0 {
		err = s.rows("keyauth_credentials", schema.Record{"key": "x", "consumer": schema.Record{"id": seedID('c', 0)}}, consumers, func(i int, r schema.Record) string {
			r["key"], r["consumer"] = consumerKey(i), schema.Record{"id": seedID('c', i)}
			return seedID('k', i)
		})
	}
	if err != nil {
		return err
	}
	return s.flush()
}

// rows puts count rows like the template into a table; vary makes each its own and returns its id.
func (s *seeder) rows(table string, template schema.Record, count int, vary func(int, schema.Record) string) error {
	for _, def := range entity.All() {
		if def.Schema.Name != table {
			continue
		}
		rec, errs := def.Schema.Prepare(template, schema.Options{Mode: schema.Insert, Auto: schema.Auto{
			Now: func() float64 { return 1.7e9 }, UUID: uuid.NewString, Random: uuid.NewString,
		}})
		if len(errs) > 0 {
			return fmt.Errorf("%s: %w", table, errs)
		}
		delete(rec, "ttl")
		for i := range count {
			text := vary(i, rec)
			rec["id"] = text
			id := [16]byte(uuid.MustParse(text))
			sealed, err := def.Schema.MapSecrets(rec, nil, func(_, v string) (any, error) { return s.keys.Seal(def.Table, id, v) })
			if err != nil {
				return err
			}
			raw, err := schema.Encode(sealed)
			if err != nil {
				return err
			}
			s.puts = append(s.puts, command.Put{Table: def.Table, ID: id, IfIndex: command.IfAbsent, Raw: raw})
			if len(s.puts) == 1000 {
				if err := s.flush(); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return fmt.Errorf("no table %s", table)
}

func (s *seeder) flush() error {
	defer func() { s.puts = s.puts[:0] }()
	return s.propose(s.puts)
}

// seedID is the id of entity i of a kind, spread as random ids are.
func seedID(kind byte, i int) string {
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:], (uint64(i)+1)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(id[8:], (uint64(i)+uint64(kind)<<32)*0xbf58476d1ce4e5b9)
	return id.String()
}

func routePath(i int) string { return fmt.Sprintf("/api/v%d/tenant-%d/resource-%d", i%3, i%997, i) }

func consumerKey(i int) string { return fmt.Sprintf("key-%016x", (uint64(i)+1)*0x9e3779b97f4a7c15) }
