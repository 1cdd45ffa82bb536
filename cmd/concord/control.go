package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// A verb that wants an answer leaves a question in the prefix, which nobody else may enter, and sends a signal; the node answers beside it. A bare signal
// is a question without an answer.
type question struct {
	ID     string `json:"id"`
	Verb   string `json:"verb"`
	Binary string `json:"binary,omitempty"` // of an upgrade; "": that which runs
}

type reply struct {
	ID    string   `json:"id"`
	Lines []string `json:"lines,omitempty"`
	Error string   `json:"error,omitempty"`
}

func questionFile(prefix string) string { return filepath.Join(prefix, "question.json") }
func answerFile(prefix string) string   { return filepath.Join(prefix, "answer.json") }

// answer runs f for the question that belongs to a signal, if there is one.
func (n *node) answer(verb string, f func(question) ([]string, error)) error {
	var q question
	if b, err := os.ReadFile(questionFile(n.s.Prefix)); err == nil {
		if json.Unmarshal(b, &q) != nil || q.Verb != verb {
			q = question{}
		} else {
			_ = os.Remove(questionFile(n.s.Prefix))
		}
	}
	lines, err := f(q)
	if q.ID == "" {
		return err
	}
	r := reply{ID: q.ID, Lines: lines}
	if err != nil {
		r.Error = err.Error()
	}
	if werr := writeJSON(answerFile(n.s.Prefix), r); werr != nil {
		n.log.Error("the answer to a verb cannot be written", "verb", verb, "error", werr)
	}
	return err
}

// writeJSON leaves no half of a file.
func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// ask has the node of the prefix do something and returns what it says about it.
func ask(prefix string, sig syscall.Signal, q question, limit time.Duration) ([]string, error) {
	if _, err := runningNode(prefix); err != nil {
		return nil, err
	}
	q.ID = rand.Text()
	if err := writeJSON(questionFile(prefix), q); err != nil {
		return nil, err
	}
	defer func() {
		_ = os.Remove(questionFile(prefix))
		_ = os.Remove(answerFile(prefix))
	}()
	pid, err := signalNode(prefix, sig)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if b, err := os.ReadFile(answerFile(prefix)); err == nil {
			var r reply
			if json.Unmarshal(b, &r) == nil && r.ID == q.ID {
				if r.Error != "" {
					return r.Lines, errors.New(r.Error)
				}
				return r.Lines, nil
			}
		}
		if _, err := runningNode(prefix); errors.As(err, new(*notRunningError)) {
			return nil, fmt.Errorf("the node (process %d) has ended: look into its log", pid)
		}
	}
	return nil, fmt.Errorf("the node (process %d) has not answered within %v: look into its log", pid, limit)
}
