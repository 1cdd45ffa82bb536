package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// chainOf is an intact log of n records and its head.
func chainOf(n int) (list []auditRecord, head auditRecord) {
	prev := "anchor"
	for i := range n {
		rec := map[string]any{"seq": i + 5, "name": "a<b", "prev": prev, "changes": []any{map[string]any{"entity": "services", "id": "x", "before": "", "after": "y"}}}
		rec["time"], rec["index"], rec["from"], rec["verb"] = 1_700_000_000_000+1000*(i+5), 105+i, "10.0.0.9", "transfer"
		if i == 5 {
			rec["detail"] = `to "b"`
		}
		text, _ := json.Marshal(rec)
		text = []byte(strings.ReplaceAll(string(text), `\u003c`, "<"))
		sum := sha256.Sum256(text)
		prev = hex.EncodeToString(sum[:])
		raw := fmt.Appendf(nil, `{"hash":%q,%s`, prev, text[1:])
		r, err := readRecord(raw)
		if err != nil {
			panic(err)
		}
		list = append(list, r)
	}
	return list, auditRecord{Seq: float64(n + 4), First: 5, Prev: "anchor", Hash: prev}
}

func TestVerify(t *testing.T) {
	edit := func(list []auditRecord, i int, old, by string) []auditRecord {
		r, err := readRecord([]byte(strings.Replace(string(list[i].raw), old, by, 1)))
		if err != nil {
			t.Fatal(err)
		}
		list[i] = r
		return list
	}
	other, _ := chainOf(6)
	for _, c := range []struct {
		name string
		do   func([]auditRecord) []auditRecord
		want string
	}{
		{"intact", func(l []auditRecord) []auditRecord { return l }, ""},
		{"edited", func(l []auditRecord) []auditRecord { return edit(l, 2, "services", "routes") }, "record 7 was edited"},
		{"edited with a new hash", func(l []auditRecord) []auditRecord { return edit(l, 2, l[2].Hash, l[1].Hash) }, "record 7 was edited"},
		{"removed", func(l []auditRecord) []auditRecord { return slices.Delete(l, 2, 3) }, "record 8 follows record 6"},
		{"first removed", func(l []auditRecord) []auditRecord { return l[1:] }, "begins with record 6"},
		{"last removed", func(l []auditRecord) []auditRecord { return l[:5] }, "ends with record 9"},
		{"reordered", func(l []auditRecord) []auditRecord { l[2], l[3] = l[3], l[2]; return l }, "record 8 follows record 6"},
		{"repeated", func(l []auditRecord) []auditRecord { return slices.Insert(l, 2, l[2]) }, "record 7 follows record 7"},
		{"all removed", func([]auditRecord) []auditRecord { return nil }, "all records are gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list, head := chainOf(6)
			v := verifier{known: other[3].Hash}
			var err error
			for _, r := range c.do(list) {
				if err = v.add(r); err != nil {
					break
				}
			}
			if err == nil {
				err = v.matches(head)
			}
			if c.want == "" && (err != nil || !v.found) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
