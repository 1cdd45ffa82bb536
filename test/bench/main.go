//go:build linux

// Command bench measures what a proxied request costs beside nginx and HAProxy on the same machine in the same minute.
//
// The figure to hold on to is CPU time: that of the gateway's processes, divided by the requests that were answered, as a ratio to
// nginx's of the same round. Absolute figures depend on the machine and on what else it does; the ratio hardly does. In every
// round each row measures nginx, HAProxy and Concord in turn. The gateways run on one processor, nginx and HAProxy with one worker;
// load and upstream have another. It needs Linux, two processors, and the programs nginx, haproxy, wrk and h2load (of Debian's nginx-light, haproxy,
// wrk and nghttp2-client).
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed nginx.conf
var nginxConf string

//go:embed haproxy.conf
var haproxyConf string

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) > 1 {
		switch args := os.Args[2:]; os.Args[1] {
		case "upstream":
			return serveUpstream(args[0])
		case "load":
			return runLoad(os.Stdin, os.Stdout)
		case "seed":
			return seedPrefix(args)
		case "verify":
			return verifyCost(args[0])
		case "handshakes", "http3":
			d, err := time.ParseDuration(args[1])
			if err != nil {
				return err
			}
			if os.Args[1] == "http3" {
				return loadHTTP3(args[0], d)
			}
			return handshakes(args[0], d)
		}
	}
	b := &bench{host: &host{}}
	flag.StringVar(&b.bin, "bin", "bin/concord", "the binary to measure")
	rows := flag.String("rows", ".", "regular expression of the rows to measure")
	quick := flag.Bool("quick", false, "three rounds of half a second, without the rows that need many entities: a minute, for a first look")
	flag.IntVar(&b.rounds, "rounds", 5, "number of rounds")
	flag.DurationVar(&b.window, "time", 1500*time.Millisecond, "length of each measurement")
	flag.IntVar(&b.conns, "conns", 64, "keep-alive connections")
	flag.Float64Var(&b.rate, "rate", 2000, "requests per second at which latencies are measured")
	flag.IntVar(&b.idle, "idle", 10000, "idle connections")
	flag.IntVar(&b.consumers, "consumers", 1_000_000, "consumers of the rows with many")
	flag.IntVar(&b.fresh, "fresh", 2000, "fresh tokens per measurement")
	flag.IntVar(&b.host.nice, "nice", 0, "niceness of everything started; below 0 needs root")
	flag.BoolVar(&b.strict, "strict", false, "fail when a row is over its bar")
	flag.StringVar(&b.doc, "doc", "", "a Markdown file whose text between <!-- bench --> and <!-- /bench --> becomes the report")
	list := flag.Bool("list", false, "list the rows")
	flag.Parse()
	if *quick {
		b.rounds, b.window, b.fresh, b.small = 3, 500*time.Millisecond, 800, true
	}
	only, err := regexp.Compile(*rows)
	if err != nil {
		return err
	}
	b.only = only
	if *list {
		for _, r := range b.rows() {
			fmt.Println(r.name)
		}
		return nil
	}
	return b.run()
}

// bench is one run.
type bench struct {
	ctx                         context.Context
	host                        *host
	bin, doc                    string
	only                        *regexp.Regexp
	small, strict               bool
	rounds, conns, idle         int
	consumers, fresh, files     int
	window                      time.Duration
	rate                        float64
	up                          string
	certFile, keyFile, bothFile string
	signers                     *signers
	peers                       []*peer
	nodes                       map[string]*node
	free                        []string
	pauses                      string // the report of collections
}

func (b *bench) run() (err error) {
	for _, tool := range []string{"nginx", "haproxy", "wrk", "h2load", "taskset"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt install nginx-light haproxy wrk nghttp2-client", tool)
		}
	}
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.host.self, err = os.Executable(); err != nil {
		return err
	}
	if b.host.dir, err = os.MkdirTemp("", "concord-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.host.dir)
	defer b.host.stop()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	b.ctx = ctx
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	b.files = int(min(files.Max, 1<<20))
	if need := b.idle + 1000; b.files < need {
		return fmt.Errorf("%d open files are allowed, %d are needed: raise the limit or take fewer -idle connections", b.files, need)
	}
	if b.signers, err = newSigners(); err != nil {
		return err
	}
	if b.free, err = freePorts(40); err != nil {
		return err
	}
	if err := b.makeCertificate(b.signers); err != nil {
		return err
	}
	at, err := b.ports(1)
	if err != nil {
		return err
	}
	b.up = at[0]
	if _, err := b.host.start(loadCPU, "upstream", nil, b.host.self, "upstream", b.up); err != nil {
		return err
	}
	if err := until(ctx, "http://"+b.up+"/", 10*time.Second); err != nil {
		return err
	}
	if err := b.startPeers(); err != nil {
		return err
	}
	rows := b.rows()
	if len(rows) == 0 {
		return errors.New("no such row: -list shows them")
	}
	if err := b.startNodes(rows); err != nil {
		return err
	}
	if err := b.measure(rows); err != nil {
		return err
	}
	if err := b.collections(rows); err != nil {
		return err
	}
	var text bytes.Buffer
	err = b.report(io.MultiWriter(os.Stdout, &text), rows)
	if err == nil && b.doc != "" {
		err = document(b.doc, text.String())
	}
	return err
}

// ports gives out addresses that are free.
func (b *bench) ports(n int) ([]string, error) {
	if len(b.free) < n {
		return nil, errors.New("out of ports")
	}
	p := b.free[:n]
	b.free = b.free[n:]
	return p, nil
}

// startNodes starts the nodes that the rows need.
func (b *bench) startNodes(rows []*row) error {
	b.nodes = map[string]*node{}
	for _, r := range rows {
		for _, name := range []string{r.node, r.besideNode} {
			if name == "" || b.nodes[name] != nil {
				continue
			}
			n, err := b.newNode(name)
			if err != nil {
				return err
			}
			b.nodes[name] = n
			fmt.Fprintln(os.Stderr, "starting", name)
			if err := b.prepare(n); err != nil {
				return fmt.Errorf("%s: %w\n%s", name, err, b.host.log(name))
			}
		}
	}
	return nil
}

// prepare fills and configures a node.
func (b *bench) prepare(n *node) error {
	seed := func(routes, consumers int) error {
		cmd := exec.CommandContext(b.ctx, b.host.self, "seed", n.prefix, n.cluster, n.gossip, b.up, fmt.Sprint(routes), fmt.Sprint(consumers))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("seed: %w: %s", err, out)
		}
		return n.start(b.ctx, b.host)
	}
	plugin := func(path, name string) []string { return []string{"POST", path + "/plugins", "name", name} }
	switch n.name {
	case "idle":
		if err := n.start(b.ctx, b.host); err != nil {
			return err
		}
		return n.withService(b.ctx, b.up, "/get")
	case "logged": // as a node is when nobody has set anything
		n.env = []string{"CONCORD_PROXY_ACCESS_LOG=logs/access.log"}
		if err := n.start(b.ctx, b.host); err != nil {
			return err
		}
		return n.withService(b.ctx, b.up, "/logged")
	case "one":
		if err := n.start(b.ctx, b.host); err != nil {
			return err
		}
		if err := n.withService(b.ctx, b.up, "/get", "/size", "/key", "/jwt", "/limited"); err != nil {
			return err
		}
		if err := n.credentials(b.ctx, b.signers); err != nil {
			return err
		}
		return n.each(b.ctx, plugin("/routes/key", "key-auth"), append(plugin("/routes/jwt", "jwt"), "config.claims_to_verify[]", "exp"), limited("/routes/limited"))
	case "10k":
		if err := seed(10_000, 0); err != nil {
			return err
		}
		if err := n.credentials(b.ctx, b.signers); err != nil {
			return err
		}
		return n.each(b.ctx, append(plugin("/services/bench", "jwt"), "config.claims_to_verify[]", "exp"), limited("/services/bench"))
	case "100k":
		return seed(100_000, 0)
	case "million":
		if err := seed(0, b.consumers); err != nil {
			return err
		}
		return n.each(b.ctx, []string{"POST", "/services/bench/routes", "name", "key", "paths[]", "/key", "strip_path", "false"}, plugin("/routes/key", "key-auth"))
	}
	return errors.New("unknown node")
}
