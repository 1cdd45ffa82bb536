package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// auditRecord is a record of the audit log. raw is its JSON, from which its hash is made.
type auditRecord struct {
	Seq     float64 `json:"seq"`
	First   float64 `json:"first"`
	Index   float64 `json:"index"`
	Time    float64 `json:"time"`
	Name    string  `json:"name"`
	From    string  `json:"from"`
	Verb    string  `json:"verb"`
	Entity  string  `json:"entity"`
	Changes []struct {
		Entity string `json:"entity"`
		ID     string `json:"id"`
		Before string `json:"before"`
		After  string `json:"after"`
	} `json:"changes"`
	More   float64 `json:"more"`
	Detail string  `json:"detail"`
	Prev   string  `json:"prev"`
	Hash   string  `json:"hash"`
	raw    []byte
}

func readRecord(raw []byte) (r auditRecord, err error) {
	err = json.Unmarshal(raw, &r)
	r.raw = raw
	return r, err
}

func auditCmd(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Read and verify the log of who changed what", Args: noArgs, RunE: showHelp,
		Example: "  gwctl audit tail -f\n  gwctl audit verify\n  gwctl audit export > audit.jsonl",
	}
	cmd.AddCommand(auditTailCmd(o), auditVerifyCmd(o), auditExportCmd(o))
	return cmd
}

// audit asks for the records behind a number.
func (o *options) audit(ctx context.Context, after uint64, wait bool) (list []auditRecord, head auditRecord, err error) {
	var page struct {
		Data []json.RawMessage
		Head json.RawMessage
	}
	path := "/admin/audit?after=" + strconv.FormatUint(after, 10)
	if wait {
		path += "&wait=1"
	}
	if err := o.call(ctx, "GET", path, nil, &page); err != nil {
		return nil, head, err
	}
	for _, raw := range page.Data {
		r, err := readRecord(raw)
		if err != nil {
			return nil, head, err
		}
		list = append(list, r)
	}
	if len(page.Head) > 0 && string(page.Head) != "null" {
		head, err = readRecord(page.Head)
	}
	return list, head, err
}

// each calls f with all records behind a number, in order, and returns the head of the log.
func (o *options) each(ctx context.Context, after uint64, f func(auditRecord) error) (head auditRecord, err error) {
	for {
		var list []auditRecord
		if list, head, err = o.audit(ctx, after, false); err != nil || len(list) == 0 {
			return head, err
		}
		for _, r := range list {
			if err := f(r); err != nil {
				return head, err
			}
			after = uint64(r.Seq)
		}
	}
}

func (r auditRecord) when() string { return time.UnixMilli(int64(r.Time)).UTC().Format(time.RFC3339) }

func (r auditRecord) line() string {
	who := r.Name
	if who == "" {
		who = "(no token)"
	}
	if r.From != "" {
		who += " from " + r.From
	}
	what := []string{}
	for _, c := range r.Changes {
		verb := "changed"
		switch {
		case c.Before == "":
			verb = "created"
		case c.After == "" && r.Verb == "expire":
			verb = "expired"
		case c.After == "":
			verb = "deleted"
		}
		what = append(what, verb+" "+c.Entity+" "+c.ID)
	}
	if r.More > 0 {
		what = append(what, fmt.Sprintf("and %.0f more", r.More))
	}
	if r.Detail != "" {
		what = append([]string{r.Verb + ": " + cell(r.Detail)}, what...)
	}
	return fmt.Sprintf("%.0f  %s  index %.0f  %s  %s", r.Seq, r.when(), r.Index, who, strings.Join(what, ", "))
}

func auditTailCmd(o *options) *cobra.Command {
	follow, count := false, 20
	cmd := &cobra.Command{
		Use: "tail", Short: "Show the newest records", Args: noArgs,
		Example: "  gwctl audit tail\n  gwctl audit tail -f -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if count < 0 {
				return usageError{errors.New("--lines must not be below zero")}
			}
			_, head, err := o.audit(ctx, 1<<62, false)
			if err != nil {
				return err
			}
			after := uint64(max(0, head.Seq-float64(count), head.First-1))
			show := func(r auditRecord) error {
				after = uint64(r.Seq)
				text := r.line()
				if o.output == "json" {
					text = string(r.raw)
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
				return err
			}
			if _, err := o.each(ctx, after, show); err != nil {
				return err
			}
			for follow && ctx.Err() == nil {
				list, _, err := o.audit(ctx, after, true)
				if err != nil {
					return err
				}
				for _, r := range list {
					if err := show(r); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new records")
	cmd.Flags().IntVarP(&count, "lines", "n", 20, "how many records to begin with")
	return cmd
}

func auditExportCmd(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "export", Short: "Write all records, one JSON object on a line", Args: noArgs,
		Example: "  gwctl audit export > audit.jsonl\n  gwctl audit verify --file audit.jsonl",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := o.each(cmd.Context(), 0, func(r auditRecord) error {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", r.raw)
				return err
			})
			return err
		},
	}
}

func auditVerifyCmd(o *options) *cobra.Command {
	var file, known string
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that no record was edited, removed or moved", Args: noArgs,
		Example: "  gwctl audit verify\n  gwctl audit verify --file audit.jsonl\n  gwctl audit verify --contains 6d0f…   # a hash that was noted before",
		Long: "Check the chain of hashes: each record holds the hash of the one before. The last hash, which verify prints, is worth keeping elsewhere:\n" +
			"with --contains verify also finds a log that was replaced as a whole.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := verifier{known: known}
			if file != "" {
				if err := v.file(file); err != nil {
					return err
				}
			} else {
				head, err := o.each(cmd.Context(), 0, v.add)
				if err == nil {
					err = v.matches(head)
				}
				if err != nil {
					return err
				}
			}
			if known != "" && !v.found {
				return fmt.Errorf("the log does not contain a record with the hash %s", known)
			}
			return o.done(cmd, "%s", v.verdict())
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "verify an export instead of the live log")
	cmd.Flags().StringVar(&known, "contains", "", "a hash that must be among the records")
	return cmd
}

// verifier checks records in order.
type verifier struct {
	known       string
	found       bool
	count       int
	first, last auditRecord
}

func (v *verifier) add(r auditRecord) error {
	var rec map[string]any
	if err := json.Unmarshal(r.raw, &rec); err != nil {
		return fmt.Errorf("record behind %.0f is no JSON: %w", v.last.Seq, err)
	}
	delete(rec, "hash")
	var text strings.Builder
	enc := json.NewEncoder(&text) // sorts the names
	enc.SetEscapeHTML(false)
	if err := enc.Encode(rec); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(strings.TrimSuffix(text.String(), "\n")))
	switch {
	case hex.EncodeToString(sum[:]) != r.Hash:
		return fmt.Errorf("record %.0f was edited: its hash does not match what it says", r.Seq)
	case v.count > 0 && r.Seq != v.last.Seq+1:
		return fmt.Errorf("record %.0f follows record %.0f: records were removed or moved", r.Seq, v.last.Seq)
	case v.count > 0 && r.Prev != v.last.Hash:
		return fmt.Errorf("record %.0f does not follow from record %.0f: one of them was replaced", r.Seq, v.last.Seq)
	}
	if v.count++; v.count == 1 {
		v.first = r
	}
	v.found = v.found || v.known != "" && (r.Hash == v.known || r.Prev == v.known)
	v.last = r
	return nil
}

// verdict says what was found intact, and where it begins.
func (v *verifier) verdict() string {
	if v.count == 0 {
		return "0 records are intact: nothing was recorded yet"
	}
	text := fmt.Sprintf("%d records are intact, from number %.0f (%s) to number %.0f (%s)", v.count, v.first.Seq, v.first.when(), v.last.Seq, v.last.when())
	if v.first.Seq > 1 {
		text += fmt.Sprintf(".\nOlder ones are not kept; the chain begins behind the hash %s", v.first.Prev)
	}
	return text + ".\nThe last hash is " + v.last.Hash
}

// matches compares the ends of the chain with what the cluster keeps about them.
func (v *verifier) matches(head auditRecord) error {
	switch {
	case v.count == 0 && head.Seq == 0:
		return nil
	case v.count == 0:
		return errors.New("all records are gone")
	case v.first.Seq != head.First || v.first.Prev != head.Prev:
		return fmt.Errorf("the log begins with record %.0f and should begin with %.0f: records were removed", v.first.Seq, head.First)
	case v.last.Seq < head.Seq, v.last.Seq == head.Seq && v.last.Hash != head.Hash:
		return fmt.Errorf("the log ends with record %.0f and should end with %.0f: records were removed", v.last.Seq, head.Seq)
	}
	return nil
}

func (v *verifier) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return usageError{err}
	}
	defer f.Close()
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadBytes('\n')
		if len(line) > 1 {
			rec, bad := readRecord(line)
			if bad != nil {
				return fmt.Errorf("%s: %w", path, bad)
			}
			if bad := v.add(rec); bad != nil {
				return bad
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
