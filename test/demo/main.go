// Command demo shows the gateway at work, for "make demo": three nodes on loopback, the JWT tutorial step by step with the
// curl commands and their answers, the leader killed in the middle, a clean stop. It ends with an error if any answer is
// not the one it should be.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	bin := flag.String("bin", "bin", "directory of the concord and gwctl programs")
	keep := flag.Bool("keep", false, "keep the nodes' directories")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := demo(ctx, *bin, *keep)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\nThe demo failed: %v\n", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, bin string, keep bool) (err error) {
	start := time.Now()
	dir, err := os.MkdirTemp("", "concord-demo-")
	if err != nil {
		return err
	}
	if !keep {
		defer os.RemoveAll(dir)
	}
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	w, err := newWorld(bin, dir)
	if err != nil {
		return err
	}
	defer func() { // whatever happens, no process stays behind
		if err != nil {
			w.showLogs()
		}
		w.killAll()
	}()
	for i, s := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"Three nodes become one cluster", w.startCluster},
		{"A service and a route (any node takes any request)", w.serviceAndRoute},
		{"Enable the JWT plugin", w.enableJWT},
		{"A consumer with a JWT credential", w.consumer},
		{"Tokens", w.tokens},
		{"Advanced configuration", w.advanced},
		{"Real-world example: protecting a user API", w.userAPI},
		{"Kill the leader under traffic and writes", w.killLeader},
		{"The killed node comes back", w.comeBack},
		{"Stop", w.stopAll},
	} {
		if err := ctx.Err(); err != nil {
			return errors.New("interrupted")
		}
		fmt.Printf("\n== %d. %s\n", i+1, s.title)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, s.title, err)
		}
	}
	fmt.Printf("\nDone in %.0f s: %d requests by hand, all answered as expected; %s\n", time.Since(start).Seconds(), w.requests, w.summary)
	return nil
}
