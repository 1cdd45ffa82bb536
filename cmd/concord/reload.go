package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"concord/cmd/concord/settings"
	"concord/fsm"
	"concord/proxy"
	"concord/proxy/listen"
)

// reload takes over what can be changed in a running node: everything or, when something of it cannot be used, nothing. It returns a line for each
// setting that is another one.
func (n *node) reload() (lines []string, err error) {
	defer func() {
		if err != nil {
			n.log.Error("reload: nothing was changed", "error", err)
		}
	}()
	next, warnings, err := n.load()
	for _, w := range warnings {
		n.log.Warn(string(w))
	}
	if err != nil {
		return nil, fmt.Errorf("the settings are not valid: %w", err)
	}
	if err := n.checkBind(next); err != nil {
		return nil, err
	}
	if err := prepare(next); err != nil {
		return nil, err
	}
	live, _ := n.live.Changed(next)
	_, restart := n.s.Changed(next)
	files, err := openLogs(next)
	if err != nil {
		return nil, err
	}
	if err := n.replaceSockets(next); err != nil {
		closeLogs(files)
		return nil, err
	}
	n.useLogs(next, files)
	n.reopenOwn()
	n.level.Set(next.LogLevel)
	if len(live) > 0 {
		n.front.use(n.newHandler(next), next)
	}
	n.live = next
	n.shown.Store(next)
	for _, key := range live {
		lines = append(lines, key+": changed")
		n.notice("reload: changed", "setting", key)
	}
	for _, key := range restart {
		lines = append(lines, key+": not changed, it takes `concord upgrade` or a restart")
		n.log.Warn("reload: not changed, it takes an upgrade or a restart", "setting", key)
	}
	n.notice("reloaded", "changed", orNone(strings.Join(live, ", ")))
	if len(live) > 0 {
		go n.recordReload(live)
	}
	return lines, nil
}

// recordTimeout is how long the record of a reload may wait for a leader.
const recordTimeout = time.Minute

// recordReload has the audit log tell that this node's settings are others. Their values are not in it: some are secrets.
func (n *node) recordReload(changed []string) {
	ctx, cancel := context.WithTimeout(context.Background(), recordTimeout)
	defer cancel()
	if err := n.cluster.Note(ctx, fsm.Cause{Verb: "reload", Entity: "settings", Detail: "changed: " + strings.Join(changed, ", ")}); err != nil {
		n.log.Warn("a reload of the settings is not in the audit log", "changed", changed, "error", err)
	}
}

// replaceSockets opens the listeners of other settings, with certificates as the files are now, and closes those that are not in them. Addresses that stay
// keep their socket, so that nobody finds them closed.
func (n *node) replaceSockets(next *settings.Settings) error {
	old := n.sockets.Load()
	copies, err := old.copies()
	defer func() {
		for _, c := range copies {
			c.Close()
		}
	}()
	if err == nil {
		err = n.openSockets(next, func(setting string) *listen.Inherited { return copies[setting] })
	}
	if err != nil {
		return err
	}
	n.serveListeners(next)
	gone := old.quic
	old.quic = nil
	for name := range n.sockets.Load().quic {
		delete(gone, name)
	}
	n.leaveQUIC(gone)
	old.stop()
	go func() {
		silent, cancel := context.WithTimeout(context.Background(), quiet)
		defer cancel()
		old.settle(silent)
	}()
	return nil
}

// leaveQUIC ends listeners of HTTP/3 that are not configured any more. Their connections end when nothing runs on them.
func (n *node) leaveQUIC(gone quicListeners) {
	for _, l := range gone {
		l.Stop()
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), n.s.UpgradeTimeout)
			defer cancel()
			l.Drain(ctx)
			l.Close()
		}()
	}
}

// The access logs of a node.
const (
	logProxy = iota
	logStream
	logAdmin
)

// openLogs opens the files of the access logs, anew if they are open: something may have moved them away.
func openLogs(s *settings.Settings) (files [3]*os.File, err error) {
	for i, l := range [...]struct{ key, path string }{
		logProxy: {"proxy_access_log", s.ProxyAccessLog}, logStream: {"proxy_stream_access_log", s.StreamLog}, logAdmin: {"admin_access_log", s.AdminAccessLog},
	} {
		if files[i], err = openLog(l.path); err != nil {
			closeLogs(files)
			return files, fmt.Errorf("%s: %w", l.key, err)
		}
	}
	return files, nil
}

func closeLogs(files [3]*os.File) {
	for _, f := range files {
		closeLog(f)
	}
}

// reopenLogs opens all logs anew, and changes nothing else: what nginx does at SIGUSR1, which is what programs that rotate logs send.
func (n *node) reopenLogs() {
	files, err := openLogs(n.live)
	if err != nil {
		n.log.Error("the logs were not opened anew", "error", err)
		return
	}
	n.useLogs(n.live, files)
	n.reopenOwn()
	n.notice("the logs were opened anew")
}

// reopenOwn opens the node's own log anew, if `concord start` has opened it.
func (n *node) reopenOwn() {
	if !n.ownLog {
		return
	}
	if err := replaceStderr(n.s.ErrorLog); err != nil {
		n.log.Error("proxy_error_log was not opened anew", "error", err)
	}
}

// useLogs has the access logs go on in other files. Who logs already goes on logging, in the format of before.
func (n *node) useLogs(s *settings.Settings, files [3]*os.File) {
	for i := range n.logs {
		n.logs[i].use(files[i])
	}
	if n.access == nil || n.accessJSON != s.AccessLogJSON {
		n.accessJSON = s.AccessLogJSON
		n.access = proxy.NewAccessLog(&n.logs[logProxy], n.accessJSON, n.log)
		n.streams = proxy.NewAccessLog(&n.logs[logStream], n.accessJSON, n.log)
		n.accessLogs = append(n.accessLogs, n.access, n.streams)
	}
}
