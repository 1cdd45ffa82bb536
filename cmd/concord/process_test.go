package main

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestPidFile: a node that has stopped leaves no pid, nor a part of one that could be another process's, but as much of a file as the next pid needs: the
// disk may be full then.
func TestPidFile(t *testing.T) {
	prefix := t.TempDir()
	l, err := claim(prefix)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(pidFile(prefix))
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(os.Getpid()) {
		t.Fatalf("%q, %v", b, err)
	}
	l.release()
	after, err := os.ReadFile(pidFile(prefix))
	if err != nil || strings.TrimSpace(string(after)) != "" || len(after) != len(b) {
		t.Errorf("%q, %v", after, err)
	}
	if _, err := runningNode(prefix); !errors.As(err, new(*notRunningError)) {
		t.Error(err)
	}
}
