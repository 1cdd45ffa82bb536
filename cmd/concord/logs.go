package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"concord/cmd/concord/settings"
)

// newLogger writes one line per message, with Kong's level names, and not all lines of a flood.
func newLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(newCalm(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if l, ok := a.Value.Any().(slog.Level); ok && a.Key == slog.LevelKey && len(groups) == 0 {
			a.Value = slog.StringValue(settings.LevelName(l))
		}
		return a
	}})))
}

// logFile is a log whose file can be replaced while it is written to, or taken away: then lines are lost.
type logFile struct {
	mu sync.Mutex
	f  *os.File // nil: off
}

// openLog opens a file to append to, nil for "", or one of the process's own streams by its usual name: opening that name would fail where the stream is a
// socket, as under systemd.
func openLog(path string) (*os.File, error) {
	switch path {
	case "":
		return nil, nil
	case "/dev/stdout":
		return os.Stdout, nil
	case "/dev/stderr":
		return os.Stderr, nil
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
}

func closeLog(f *os.File) {
	if f != nil && f != os.Stdout && f != os.Stderr {
		f.Close()
	}
}

func (l *logFile) use(f *os.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	closeLog(l.f)
	l.f = f
}

func (l *logFile) on() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f != nil
}

// isStderr says whether a file is what the process writes its own log to.
func isStderr(path string) bool {
	named, err := os.Stat(path)
	if err != nil {
		return false
	}
	own, err := os.Stderr.Stat()
	return err == nil && own.Mode().IsRegular() && os.SameFile(named, own)
}

// replaceStderr has the process's own log go on in the file that has the path now.
func replaceStderr(path string) error {
	f, err := openLog(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(unix.Dup3(int(f.Fd()), 1, 0), unix.Dup3(int(f.Fd()), 2, 0))
}

// Write appends.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return len(p), nil
	}
	return l.f.Write(p)
}

// logRequests writes a line in nginx's combined format for every request, with the path that shown makes of its own. Query strings stay out: they may hold secrets.
func logRequests(next http.Handler, w *logFile, shown func(path string) string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c := &countingWriter{ResponseWriter: rw, status: http.StatusOK}
		next.ServeHTTP(c, r)
		if !w.on() {
			return
		}
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = r.RemoteAddr
		}
		agent := r.UserAgent()
		if agent == "" {
			agent = "-"
		}
		fmt.Fprintf(w, "%s - - [%s] \"%s %s %s\" %d %d \"-\" %s\n", host, time.Now().Format("02/Jan/2006:15:04:05 -0700"), r.Method,
			strings.ReplaceAll(shown(r.URL.EscapedPath()), `"`, "%22"), r.Proto, c.status, c.bytes, quoteForLog(agent))
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

// Flush sends what was written, for answers that are streams.
func (c *countingWriter) Flush() { _ = http.NewResponseController(c.ResponseWriter).Flush() }

// Unwrap lets http.ResponseController reach the writer below.
func (c *countingWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
