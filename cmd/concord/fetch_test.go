package main

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// The commands below are for the scripts. Their errors end a script: they are not tests themselves.
func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// fetch is the scripts' curl: "fetch URL" gets, "fetch URL name=value…" posts a form; it prints the status and the body.
func fetch() {
	client := http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	res, err := client.Get(os.Args[1])
	if len(os.Args) > 2 {
		res, err = client.Post(os.Args[1], "application/x-www-form-urlencoded", strings.NewReader(strings.Join(os.Args[2:], "&")))
	}
	if err != nil {
		fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		fatal(err)
	}
	fmt.Printf("%d %s\n", res.StatusCode, body)
}

// slowUpstream serves on an address, when there is a file named listening; for each request it makes a file named like the path and answers a
// second later, or for /never long after anybody waits for it.
func slowUpstream() {
	l, err := net.Listen("tcp", os.Args[1])
	if err == nil {
		err = os.WriteFile("listening", nil, 0o600)
	}
	if err != nil {
		fatal(err)
	}
	fatal(http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := os.WriteFile("."+r.URL.Path, nil, 0o600); err != nil {
			fatal(err)
		}
		if r.URL.Path == "/never" {
			time.Sleep(time.Hour)
		}
		time.Sleep(time.Second)
		fmt.Fprint(w, "done")
	})))
}

// await waits for a file, and for a text in it if there is one more argument.
func await() {
	text := strings.Join(os.Args[2:], " ")
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(os.Args[1]); err == nil && strings.Contains(string(b), text) {
			return
		} else if time.Now().After(deadline) {
			fatal(fmt.Errorf("%s with %q: %w", os.Args[1], text, cmp.Or(err, os.ErrNotExist)))
		}
	}
}
