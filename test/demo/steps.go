package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func (w *world) startCluster(ctx context.Context) error {
	for _, n := range w.nodes {
		if err := n.start(w.bin); err != nil {
			return err
		}
	}
	for _, n := range w.nodes {
		if err := w.waitReady(ctx, n); err != nil {
			return err
		}
	}
	first := w.nodes[0]
	for _, n := range w.nodes[1:] {
		token, err := w.gwctl(ctx, first, "cluster", "token")
		if err != nil {
			return err
		}
		fmt.Printf("  %s\n", shorten(token))
		out, err := w.gwctl(ctx, n, "cluster", "join", first.cluster, "--token", token)
		if err != nil {
			return err
		}
		fmt.Printf("  %s\n", out)
	}
	fmt.Println("(a new node votes once it has caught up and stayed for a moment)")
	if err := w.waitVoters(ctx, first, 3); err != nil {
		return err
	}
	return w.showStatus(ctx, first)
}

func (w *world) waitVoters(ctx context.Context, n *node, voters int) error {
	return until(ctx, fmt.Sprintf("%d voters with a leader", voters), time.Minute, func() bool {
		leader, alive, err := w.status(n)
		return err == nil && leader != "" && alive == voters
	})
}

func (w *world) showStatus(ctx context.Context, n *node) error {
	out, err := w.gwctl(ctx, n, "cluster", "status")
	fmt.Println("  " + strings.ReplaceAll(out, "\n", "\n  "))
	return err
}

// admin and proxy are URLs of the n-th node (from 1).
func (w *world) admin(n int, path string) string { return "http://" + w.nodes[n-1].admin + path }
func (w *world) proxy(n int, path string) string { return "http://" + w.nodes[n-1].proxy + path }

func (w *world) post(ctx context.Context, node int, path string, data ...string) (map[string]any, error) {
	return w.curl(ctx, call{method: http.MethodPost, url: w.admin(node, path), data: data, want: http.StatusCreated})
}

// get calls the proxy. X-Min-Config-Index makes whichever node it is wait for the newest write.
func (w *world) get(ctx context.Context, node int, path, token string, want int, contains string) error {
	h := []string{"X-Min-Config-Index: " + w.index}
	if token != "" {
		h = append([]string{"Authorization: Bearer " + token}, h...)
	}
	_, err := w.curl(ctx, call{method: http.MethodGet, url: w.proxy(node, path), headers: h, want: want, contains: contains})
	return err
}

// mint makes an HS256 token and shows what is in it.
func mint(secret string, header, payload map[string]any) (string, error) {
	h, err := json.Marshal(header)
	if err != nil {
		return "", err
	}
	p, err := json.Marshal(payload)
	if err != nil {
		return "", err
	}
	enc := base64.RawURLEncoding.EncodeToString
	signed := enc(h) + "." + enc(p)
	m := hmac.New(sha256.New, []byte(secret))
	m.Write([]byte(signed))
	token := signed + "." + enc(m.Sum(nil))
	fmt.Printf("# token with header %s and payload %s, signed with %q:\n  %s\n", h, p, secret, token)
	return token, nil
}

func header(kid string) map[string]any {
	h := map[string]any{"alg": "HS256", "typ": "JWT"}
	if kid != "" {
		h["kid"] = kid
	}
	return h
}

func in(d time.Duration) int64 { return time.Now().Add(d).Unix() }

func (w *world) serviceAndRoute(ctx context.Context) error {
	_, err := w.post(ctx, 1, "/services", "name=my-api", "url="+w.upURL)
	_, err2 := w.post(ctx, 2, "/services/my-api/routes", "paths[]=/api")
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	return w.get(ctx, 3, "/api", "", http.StatusOK, `"path":"/"`)
}

func (w *world) enableJWT(ctx context.Context) error {
	p, err := w.post(ctx, 3, "/services/my-api/plugins", "name=jwt")
	if err != nil {
		return err
	}
	w.plugin, _ = p["id"].(string)
	return w.get(ctx, 1, "/api", "", http.StatusUnauthorized, `"message":"Unauthorized"`)
}

func (w *world) consumer(ctx context.Context) error {
	_, err := w.post(ctx, 1, "/consumers", "username=john")
	_, err2 := w.post(ctx, 2, "/consumers/john/jwt", "key=user-issuer", "secret=secret-key")
	return errors.Join(err, err2)
}

func (w *world) tokens(ctx context.Context) error {
	who := map[string]any{"sub": "1234567890", "name": "John Doe", "iat": in(0)}
	kid, err := mint("secret-key", header("user-issuer"), who)
	if err != nil {
		return err
	}
	fmt.Println("# Kong, and so the gateway, looks for the credential's key in the claim iss unless it is told otherwise:")
	if err := w.get(ctx, 3, "/api", kid, http.StatusUnauthorized, "No mandatory 'iss' in claims"); err != nil {
		return err
	}
	who["iss"] = "user-issuer"
	iss, err := mint("secret-key", header(""), who)
	if err != nil {
		return err
	}
	if err := w.get(ctx, 1, "/api", iss, http.StatusOK, `"hello":"john"`); err != nil {
		return err
	}
	return w.get(ctx, 2, "/api?jwt="+iss, "", http.StatusOK, `"hello":"john"`)
}

func (w *world) advanced(ctx context.Context) error {
	config := []string{"config.claims_to_verify=exp", "config.key_claim_name=kid", "config.secret_is_base64=false"}
	fmt.Println("# The tutorial adds the plugin a second time; a service can have it once, and the answer names the one there is:")
	_, err := w.curl(ctx, call{method: http.MethodPost, url: w.admin(1, "/services/my-api/plugins"), data: append([]string{"name=jwt"}, config...),
		want: http.StatusConflict, contains: w.plugin})
	if err != nil {
		return err
	}
	fmt.Println("# so change it:")
	_, err = w.curl(ctx, call{method: http.MethodPatch, url: w.admin(2, "/plugins/"+w.plugin), data: config, want: http.StatusOK, contains: `"key_claim_name":"kid"`})
	if err != nil {
		return err
	}
	for _, t := range []struct {
		why      string
		secret   string
		kid      string
		payload  map[string]any
		status   int
		contains string
	}{
		{"as it should be", "secret-key", "user-issuer", map[string]any{"sub": "1234567890", "exp": in(time.Hour)}, http.StatusOK, `"hello":"john"`},
		{"without exp, which is now verified", "secret-key", "user-issuer", map[string]any{"sub": "1234567890"}, http.StatusUnauthorized, `"exp":"must be a number"`},
		{"expired", "secret-key", "user-issuer", map[string]any{"exp": in(-time.Hour)}, http.StatusUnauthorized, `"exp":"token expired"`},
		{"signed with another secret", "guessed", "user-issuer", map[string]any{"exp": in(time.Hour)}, http.StatusUnauthorized, "Invalid signature"},
		{"of an issuer nobody knows", "secret-key", "nobody", map[string]any{"exp": in(time.Hour)}, http.StatusUnauthorized, "No credentials found for given 'kid'"},
	} {
		fmt.Printf("# %s:\n", t.why)
		token, err := mint(t.secret, header(t.kid), t.payload)
		if err != nil {
			return err
		}
		if err := w.get(ctx, 3, "/api", token, t.status, t.contains); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) userAPI(ctx context.Context) error {
	_, e1 := w.post(ctx, 1, "/services", "name=user-api", "url="+w.upURL+"/users")
	_, e2 := w.post(ctx, 2, "/services/user-api/routes", "paths[]=/users")
	_, e3 := w.post(ctx, 3, "/services/user-api/plugins", "name=jwt", "config.key_claim_name=kid")
	_, e4 := w.post(ctx, 1, "/consumers", "username=admin")
	_, e5 := w.post(ctx, 2, "/consumers/admin/jwt", "key=admin-api", "secret=super-secure-secret")
	if err := errors.Join(e1, e2, e3, e4, e5); err != nil {
		return err
	}
	var err error
	w.kidUser, err = mint("super-secure-secret", header("admin-api"), map[string]any{"sub": "admin", "role": "administrator",
		"permissions": []string{"users:read", "users:write"}, "exp": in(time.Hour)})
	if err != nil {
		return err
	}
	for n := range w.nodes {
		if err := w.get(ctx, n+1, "/users", w.kidUser, http.StatusOK, `"hello":"admin"`); err != nil {
			return err
		}
	}
	return nil
}

// killLeader sends traffic to and writes through the two followers while the leader dies.
func (w *world) killLeader(ctx context.Context) error {
	leader, _, err := w.status(w.nodes[0])
	if err != nil {
		return err
	}
	var rest []*node
	for _, n := range w.nodes {
		if n.name == leader {
			w.killed = n
		} else {
			rest = append(rest, n)
		}
	}
	if w.killed == nil {
		return errors.New("there is no leader")
	}
	var traffic, failed, writes, slowest atomic.Int64
	var wg sync.WaitGroup
	problems := make(chan error, 16)
	report := func(err error) {
		select {
		case problems <- err:
		default:
		}
	}
	work, stop := context.WithCancel(ctx)
	for _, n := range rest {
		wg.Go(func() {
			for work.Err() == nil {
				traffic.Add(1)
				if err := w.ask(ctx, http.MethodGet, "http://"+n.proxy+"/users", w.kidUser, "", http.StatusOK); err != nil {
					failed.Add(1)
					report(err)
				}
				time.Sleep(time.Millisecond)
			}
		})
		wg.Go(func() {
			for work.Err() == nil {
				start := time.Now()
				body := fmt.Sprintf("username=visitor-%d", writes.Add(1))
				if err := w.ask(ctx, http.MethodPost, "http://"+n.admin+"/consumers", "", body, http.StatusCreated); err != nil {
					report(err)
				}
				if ms := time.Since(start).Milliseconds(); ms > slowest.Load() {
					slowest.Store(ms)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	time.Sleep(time.Second)
	before, killedAt := writes.Load(), time.Now()
	fmt.Printf("$ kill -9 %d   # %s, the leader\n", w.killed.cmd.Process.Pid, w.killed.name)
	if err := w.killed.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		stop()
		return err
	}
	<-w.killed.exited
	err = until(ctx, "a new leader", 20*time.Second, func() bool {
		l, _, err := w.status(rest[0])
		return err == nil && l != "" && l != w.killed.name && writes.Load() > before+20
	})
	took := time.Since(killedAt)
	time.Sleep(time.Second)
	stop()
	wg.Wait()
	close(problems)
	for p := range problems {
		err = errors.Join(err, p)
	}
	if err != nil {
		return err
	}
	w.lastVisitor = fmt.Sprintf("visitor-%d", writes.Load())
	fmt.Printf("A new leader took writes %.1f s after the kill. %d requests through the proxies, %d failed; %d writes, none failed, the slowest took %.1f s\n",
		took.Seconds(), traffic.Load(), failed.Load(), writes.Load(), float64(slowest.Load())/1000)
	w.summary = fmt.Sprintf("leader killed under %d requests and %d writes, none failed.", traffic.Load(), writes.Load())
	return w.showStatus(ctx, rest[0])
}

// ask makes a request without showing it.
func (w *world) ask(ctx context.Context, method, url, token, body string, want int) error {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := w.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != want {
		return fmt.Errorf("%s %s: %s: %s", method, url, res.Status, answer)
	}
	return nil
}

func (w *world) comeBack(ctx context.Context) error {
	if err := w.killed.start(w.bin); err != nil {
		return err
	}
	if err := w.waitReady(ctx, w.killed); err != nil {
		return err
	}
	if err := w.waitVoters(ctx, w.killed, 3); err != nil {
		return err
	}
	last := "http://" + w.killed.admin + "/consumers/" + w.lastVisitor
	err := until(ctx, "the node has caught up", 20*time.Second, func() bool { return w.ask(ctx, http.MethodGet, last, "", "", http.StatusOK) == nil })
	if err != nil {
		return err
	}
	fmt.Println("# what was written while it was dead:")
	if _, err := w.curl(ctx, call{method: http.MethodGet, url: last, want: http.StatusOK, contains: w.lastVisitor}); err != nil {
		return err
	}
	return w.showStatus(ctx, w.killed)
}

func (w *world) stopAll(ctx context.Context) error {
	for _, n := range w.nodes {
		fmt.Printf("$ kill -TERM %d   # %s\n", n.cmd.Process.Pid, n.name)
		if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		if err := until(ctx, n.name+" stops", 40*time.Second, func() bool { return !n.running() }); err != nil {
			return err
		}
		if code := n.cmd.ProcessState.ExitCode(); code != 0 {
			return fmt.Errorf("%s ended with exit code %d", n.name, code)
		}
		fmt.Printf("  %s ended with exit code 0\n", n.name)
	}
	return nil
}
