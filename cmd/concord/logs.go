package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"concord/cmd/concord/settings"
)

// newLogger writes one line per message, with Kong's level names.
func newLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if l, ok := a.Value.Any().(slog.Level); ok && a.Key == slog.LevelKey && len(groups) == 0 {
			a.Value = slog.StringValue(settings.LevelName(l))
		}
		return a
	}}))
}

// logFile is a log that can be opened anew after something has moved it away.
type logFile struct {
	path string

	mu sync.Mutex
	f  *os.File
}

// openLog opens a file to append to, or one of the process's own streams by its usual name: opening that name would fail where the
// stream is a socket, as under systemd.
func (n *node) openLog(path string) (*logFile, error) {
	switch path {
	case "/dev/stdout":
		return &logFile{f: os.Stdout}, nil
	case "/dev/stderr":
		return &logFile{f: os.Stderr}, nil
	}
	l := &logFile{path: path}
	if err := l.reopen(); err != nil {
		return nil, err
	}
	n.logs = append(n.logs, l)
	return l, nil
}

func (l *logFile) reopen() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
	}
	l.f = f
	return nil
}

// Write appends.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Write(p)
}

// Close ends the log.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

// logRequests writes a line in nginx's combined format for every request. Query strings stay out: they may hold secrets.
func logRequests(next http.Handler, w io.Writer) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c := &countingWriter{ResponseWriter: rw, status: http.StatusOK}
		next.ServeHTTP(c, r)
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = r.RemoteAddr
		}
		agent := r.UserAgent()
		if agent == "" {
			agent = "-"
		}
		fmt.Fprintf(w, "%s - - [%s] \"%s %s %s\" %d %d \"-\" %s\n", host, time.Now().Format("02/Jan/2006:15:04:05 -0700"), r.Method,
			strings.ReplaceAll(r.URL.EscapedPath(), `"`, "%22"), r.Proto, c.status, c.bytes, quoteForLog(agent))
	})
}

// quoteForLog keeps one request on one line.
func quoteForLog(s string) string { return fmt.Sprintf("%q", s) }

type countingWriter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (c *countingWriter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the writer below.
func (c *countingWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
