package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
)

// accessOf adds admin tokens and the audit log, which also comes in versions that somebody laid hands on: below /edited, /removed, /moved and /cut.
func accessOf(mux *http.ServeMux, calls string) {
	note := func(r *http.Request, body []byte) {
		f, err := os.OpenFile(calls, os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			fmt.Fprintf(f, "%s %s %q %s\n", r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"), body)
			f.Close()
		}
	}
	say := func(w http.ResponseWriter, status int, text string) { w.WriteHeader(status); fmt.Fprint(w, text) }
	mux.HandleFunc("POST /admin/tokens", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // a short one is refused by what it lacks
		note(r, body)
		switch {
		case bytes.Contains(body, []byte(`"taken"`)):
			say(w, 409, `{"message":"UNIQUE violation detected on '{name=\"taken\"}'","name":"unique constraint violation","code":5,"fields":{"name":"taken"}}`)
		case bytes.Contains(body, []byte(`"boss"`)):
			say(w, 400, `{"message":"schema violation (role: expected one of: super, admin, read-only)","code":2,"fields":{"role":"expected one of: super, admin, read-only"}}`)
		default:
			say(w, 201, `{"id":"id-1","name":"alice","role":"super","entities":null,"tags":null,"created_at":1700000000,"ttl":null,"token":"gwat_secret"}`)
		}
	})
	mux.HandleFunc("GET /admin/tokens", func(w http.ResponseWriter, r *http.Request) {
		note(r, nil)
		if r.URL.Query().Get("offset") == "" {
			say(w, 200, `{"data":[{"id":"id-1","name":"alice","role":"super","created_at":1700000000,"last_used_at":1700000100}],"offset":"o/"}`)
		} else {
			say(w, 200, `{"data":[{"id":"id-2","name":"ci","role":"admin","entities":["services"],"tags":["a","b"],"created_at":1700000000,"ttl":90}],"offset":""}`)
		}
	})
	mux.HandleFunc("DELETE /admin/tokens/{token}", func(w http.ResponseWriter, r *http.Request) {
		note(r, nil)
		if r.PathValue("token") == "alice" {
			w.WriteHeader(http.StatusNoContent)
		} else {
			say(w, 404, `{"message":"Not found"}`)
		}
	})
	for prefix, tamper := range map[string]func([]auditRecord) []auditRecord{
		"": func(l []auditRecord) []auditRecord { return l },
		"/edited": func(l []auditRecord) []auditRecord {
			l[2].raw = bytes.Replace(l[2].raw, []byte("services"), []byte("routes"), 1)
			return l
		},
		"/removed": func(l []auditRecord) []auditRecord { return slices.Delete(l, 2, 3) },
		"/moved":   func(l []auditRecord) []auditRecord { l[2], l[3] = l[3], l[2]; return l },
		"/cut":     func(l []auditRecord) []auditRecord { return l[:4] },
	} {
		list, head := chainOf(6)
		list = tamper(list)
		more, _ := chainOf(7)
		mux.HandleFunc("GET "+prefix+"/admin/audit", func(w http.ResponseWriter, r *http.Request) {
			after, _ := strconv.ParseFloat(r.URL.Query().Get("after"), 64)
			send := list
			if r.URL.Query().Has("wait") {
				if send = more; after >= 11 { // nothing more will come
					say(w, 503, `{"message":"the node is stopping"}`)
					return
				}
			}
			data := []string{}
			for i, rec := range send {
				if float64(i+5) > after {
					data = append(data, string(rec.raw))
				}
			}
			end, _ := json.Marshal(map[string]any{"seq": head.Seq, "first": head.First, "prev": head.Prev, "hash": head.Hash}) // texts and numbers
			say(w, 200, `{"data":[`+strings.Join(data, ",")+`],"head":`+string(end)+`}`)
		})
	}
}
