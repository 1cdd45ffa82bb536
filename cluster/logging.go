package cluster

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLog lets raft write to slog. raft's own "info" is about single elections and streams, of interest to who debugs.
type raftLog struct {
	log   *slog.Logger
	name  string
	again *quiet
}

// levelNotice is for what an operator wants to know though nothing is wrong: leaders, members. nginx and Kong log from
// there by default.
const levelNotice = slog.LevelInfo + 2

// quiet lets a warning through once in a while: raft repeats those about a node that is down several times a second.
type quiet struct {
	mu   sync.Mutex
	seen map[string]time.Time // by message
}

const repeatAfter = 10 * time.Second

func (q *quiet) repeats(msg string, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Sub(q.seen[msg]) < repeatAfter {
		return true
	}
	q.seen[msg] = now // raft's messages are constants: a few dozen
	return false
}

func newRaftLog(log *slog.Logger) raftLog {
	return raftLog{log, "raft", &quiet{seen: map[string]time.Time{}}}
}

var _ hclog.Logger = raftLog{}

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Warn:
		return slog.LevelInfo
	case hclog.Error:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

func (r raftLog) Log(level hclog.Level, msg string, args ...any) {
	to := slogLevel(level)
	if to == slog.LevelWarn && r.again.repeats(msg, time.Now()) {
		to = slog.LevelDebug
	}
	r.log.Log(context.Background(), to, r.name+": "+msg, plain(args)...)
}

// plain makes hclog's lazy values printable.
func plain(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			a = hclogText(f)
		}
		out[i] = a
	}
	return out
}

func (r raftLog) Trace(msg string, args ...any) { r.Log(hclog.Trace, msg, args...) }
func (r raftLog) Debug(msg string, args ...any) { r.Log(hclog.Debug, msg, args...) }
func (r raftLog) Info(msg string, args ...any)  { r.Log(hclog.Info, msg, args...) }
func (r raftLog) Warn(msg string, args ...any)  { r.Log(hclog.Warn, msg, args...) }
func (r raftLog) Error(msg string, args ...any) { r.Log(hclog.Error, msg, args...) }

func (r raftLog) enabled(l hclog.Level) bool {
	return r.log.Enabled(context.Background(), slogLevel(l))
}
func (r raftLog) IsTrace() bool { return false }
func (r raftLog) IsDebug() bool { return r.enabled(hclog.Debug) }
func (r raftLog) IsInfo() bool  { return r.enabled(hclog.Info) }
func (r raftLog) IsWarn() bool  { return r.enabled(hclog.Warn) }
func (r raftLog) IsError() bool { return r.enabled(hclog.Error) }

func (r raftLog) ImpliedArgs() []any { return nil }
func (r raftLog) With(args ...any) hclog.Logger {
	return raftLog{r.log.With(plain(args)...), r.name, r.again}
}
func (r raftLog) Name() string { return r.name }
func (r raftLog) Named(name string) hclog.Logger {
	return raftLog{r.log, r.name + "." + name, r.again}
}
func (r raftLog) ResetNamed(name string) hclog.Logger { return raftLog{r.log, name, r.again} }
func (r raftLog) SetLevel(hclog.Level)                {}
func (r raftLog) GetLevel() hclog.Level               { return hclog.Debug }

func (r raftLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(r.log.Handler(), slog.LevelDebug)
}
func (r raftLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return io.Discard }

func hclogText(f hclog.Format) string {
	format, ok := f[0].(string)
	if !ok {
		return fmt.Sprint(f...)
	}
	return fmt.Sprintf(format, f[1:]...)
}
