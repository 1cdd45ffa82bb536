package rest

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"concord/admin/service"
)

// defaultLevelTime is how long a changed log level lasts when the client does not say.
const defaultLevelTime = time.Minute

// LogLevel lets the Admin API change for a while what the node logs.
type LogLevel struct {
	Var   *slog.LevelVar
	Name  func(slog.Level) string         // in Kong's words
	Parse func(string) (slog.Level, bool) // the reverse
	// Tell has the other nodes do the same; nil: there are none. The error joins those of the nodes that did not.
	Tell func(name string, seconds int) error

	mu    sync.Mutex
	back  *time.Timer // nil: the level is the one of the settings
	usual slog.Level
}

// Set changes the level and, after d, changes it back; with d 0 at once.
func (l *LogLevel) Set(level slog.Level, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.back != nil {
		l.back.Stop()
	} else {
		l.usual = l.Var.Level()
	}
	l.Var.Set(level)
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.back != t { // a newer change counts
			return
		}
		l.back = nil
		if l.Var.Level() == level { // a reload of the settings may have set another one
			l.Var.Set(l.usual)
		}
	})
	l.back = t
}

func (a *API) debugRoutes() {
	// Kong's caches stand between it and its database. Here nothing does: no key is in a cache, and purging leaves nothing behind.
	gone := func(*call) (answer, error) { return answer{status: http.StatusNoContent}, nil }
	a.router.add(http.MethodDelete, "/cache", a.needs(service.OperateNode, gone))
	a.router.add(http.MethodDelete, "/cache/{key}", a.needs(service.OperateNode, gone))
	a.router.add(http.MethodGet, "/cache/{key}", func(*call) (answer, error) {
		return answer{}, &statusError{http.StatusNotFound, "Not found", ""}
	})
	a.router.add(http.MethodGet, "/timers", timers)
	if a.o.Info.LogLevel == nil {
		return
	}
	a.router.add(http.MethodGet, "/debug/node/log-level", func(*call) (answer, error) {
		l := a.o.Info.LogLevel
		return answer{status: http.StatusOK, body: errorBody{Message: "log level: " + l.Name(l.Var.Level())}}, nil
	})
	for of, all := range map[string]bool{"node": false, "cluster": true} {
		a.router.add(http.MethodPut, "/debug/"+of+"/log-level/{log_level}", a.needs(service.OperateNode, func(c *call) (answer, error) { return a.setLogLevel(c, all) }))
	}
}

// timers has the members of Kong's answer. What Kong does on timers is done by goroutines here, which are counted instead.
func timers(*call) (answer, error) {
	n := runtime.NumGoroutine()
	return answer{status: http.StatusOK, body: map[string]any{
		"worker": map[string]any{"id": 0, "count": 1},
		"stats": map[string]any{
			"sys":        map[string]any{"total": n, "runs": n, "running": n, "pending": 0, "waiting": 0},
			"timers":     map[string]any{},
			"flamegraph": map[string]any{"running": "", "pending": "", "elapsed_time": ""},
		},
	}}, nil
}

// setLogLevel changes the level of this node, or of all.
func (a *API) setLogLevel(c *call, all bool) (answer, error) {
	name, l := c.params[0], a.o.Info.LogLevel
	level, ok := l.Parse(name)
	if !ok {
		return answer{}, malformed("unknown log level: " + name)
	}
	body, _, err := readOptional(c.w, c.r)
	if err != nil {
		return answer{}, err
	}
	d := defaultLevelTime
	if text := cmp.Or(c.query("timeout"), argument(body["timeout"])); text != "" {
		seconds, err := strconv.ParseFloat(text, 64)
		switch {
		case err != nil || seconds > math.MaxInt32:
			return answer{}, malformed("timeout must be a number of seconds")
		case !(seconds >= 0):
			return answer{}, malformed("timeout must be greater than or equal to 0")
		}
		d = time.Duration(math.Ceil(seconds)) * time.Second
	}
	message := "log level is already " + name
	if l.Var.Level() != level {
		l.Set(level, d)
		a.o.Log.Warn("log level changed through the Admin API", "level", name, "for", d.String(), "client", c.r.RemoteAddr)
		message = "log level changed"
	}
	if all && l.Tell != nil {
		if err := l.Tell(name, int(d/time.Second)); err != nil {
			return answer{}, &statusError{http.StatusInternalServerError, "failed broadcasting to cluster: " + err.Error(), "the nodes that are not named have the level"}
		}
	}
	return answer{status: http.StatusOK, body: errorBody{Message: message}}, nil
}

// argument is a value of a body as text.
func argument(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}
