package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

// entities adds what the verbs for entities ask of an Admin API: a few rows, and a note of every call in the file calls.
func entities(mux *http.ServeMux, calls string) {
	handle := func(pattern string, answer func(body string) (int, string)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err == nil {
				var f *os.File
				if f, err = os.OpenFile(calls, os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
					_, err = fmt.Fprintf(f, "%s %s %q\n", r.Method, r.URL.RequestURI(), body)
					f.Close()
				}
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			status, text := answer(string(body))
			w.Header().Set("X-Config-Index", "42")
			w.WriteHeader(status)
			fmt.Fprint(w, strings.ReplaceAll(text, "$dry", fmt.Sprint(r.URL.Query().Has("dry_run"))))
		})
	}
	says := func(text string) func(string) (int, string) { return func(string) (int, string) { return 200, text } }
	const refusal = `{"message":"schema violation (config.minute: expected a number)","code":2,"fields":{"config":{"minute":"expected a number"}}}`

	handle("GET /endpoints", says(`{"data":["/","/services","/services/{services}","/services/{services}/routes","/services/{services}/routes/{routes}",`+
		`"/services/{services}/plugins","/services/{services}/plugins/{plugins}","/routes","/routes/{routes}","/routes/{routes}/service","/plugins","/plugins/{plugins}","/plugins/schema/{name}",`+
		`"/consumers","/consumers/{consumers}","/consumers/{consumers}/jwt","/consumers/{consumers}/jwt/{jwt_secrets}","/consumers/{consumers}/plugins","/consumers/{consumers}/plugins/{plugins}","/jwts","/jwts/{jwt_secrets}",`+
		`"/key-auths","/key-auths/{keyauth_credentials}","/upstreams/{upstreams}/targets","/upstreams/{upstreams}/targets/{targets}","/tags","/tags/{tags}","/cache","/cache/{key}","/apis","/apis/{api}"]}`))
	const one = `{"id":"id-1","name":"one","port":80,"tags":["a","b"],"ca":"line\nline","nothing":null}`
	mux.HandleFunc("GET /services", func(w http.ResponseWriter, r *http.Request) {
		f, err := os.OpenFile(calls, os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = fmt.Fprintf(f, "GET %s\n", r.URL.RequestURI())
			f.Close()
		}
		const two = `{"id":"id-2","name":"two","port":81,"tags":null}`
		const three = `{"id":"id-3","name":"three","port":82}`
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case r.URL.Query().Get("offset") != "":
			fmt.Fprintf(w, `{"data":[%s],"next":null}`, three)
		case r.URL.Query().Get("size") == "2":
			fmt.Fprintf(w, `{"data":[%s,%s],"next":"/services?offset=o","offset":"o"}`, one, two)
		default:
			fmt.Fprintf(w, `{"data":[%s,%s,%s],"next":null}`, one, two, three)
		}
	})
	handle("GET /services/one", says(one))
	handle("GET /services/none", func(string) (int, string) { return 404, `{"message":"Not found"}` })
	handle("DELETE /services/one", func(string) (int, string) { return 204, "" })
	handle("GET /consumers/{c}/jwt", says(`{"data":[],"next":null}`))
	handle("GET /key-auths", says(`{"data":[],"next":null}`))
	handle("GET /schemas/services", says(`{"fields":[{"id":{"type":"string","auto":true}},{"name":{"type":"string"}},{"tags":{"type":"set"}}]}`))
	created := func(body string) (int, string) {
		if strings.Contains(body, "port=0") {
			return 400, `{"message":"2 schema violations (config.minute: expected a number; port: must be between 0 and 65535)","code":2,"hint":"think",` +
				`"fields":{"port":"must be between 0 and 65535","config":{"minute":"expected a number"}}}`
		}
		return 201, `{"id":"id-7","name":"x","hint":"listen"}`
	}
	handle("POST /services", created)
	handle("POST /routes", created)
	handle("POST /services/{s}/routes", created)
	handle("POST /config", func(body string) (int, string) {
		if strings.Contains(body, "bad") {
			return 400, `{"code":14,"message":"declarative config is invalid: {services={{foo=\"unknown field\"}}}","fields":{"services":[{"foo":"unknown field"}]},` +
				`"flattened_errors":[{"entity_type":"service","entity_name":"one","errors":[{"type":"field","field":"foo","message":"unknown field"}]}]}`
		}
		return 200, `{"dry_run":$dry,"index":42,"summary":{"creating":1,"updating":1,"unchanged":2,"deleting":0},` +
			`"changes":[{"action":"create","entity":"services","id":"id-1","name":"one"},{"action":"update","entity":"jwt_secrets","id":"id-9","name":"secret"}]}`
	})
	handle("GET /plugins/p1", says(`{"id":"p1","name":"rate-limiting","enabled":true,"created_at":1,"updated_at":2,"tags":["a"],`+
		`"config":{"minute":5,"hour":null,"policy":"local"},"ordering":{"b":1}}`))
	handle("GET /schemas/plugins/rate-limiting", says(`{"fields":[{"config":{"type":"record","fields":[{"minute":{"type":"number"}},{"hour":{"type":"number"}}]}},{"ordering":{"type":"map"}}]}`))
	handle("PATCH /plugins/p1", func(body string) (int, string) {
		if strings.Contains(body, "bad") {
			return 400, refusal
		}
		return 200, `{}`
	})
	handle("POST /debug/route", func(body string) (int, string) {
		if strings.Contains(body, "none") {
			return 200, `{"path":"/none","matched":[],"near":[],"plugins":[],"notes":[]}`
		}
		return 200, `{"path":"/api","matched":[{"id":"id-1","name":"long","path":"/api","checks":[{"criterion":"paths","ok":true,"why":"\"/api\", wanted the prefix /api"}]},` +
			`{"id":"id-2","name":"short","path":"/","lost":"too short","checks":[]}],` +
			`"near":[{"id":"id-3","checks":[{"criterion":"paths","ok":true,"why":"fine"},{"criterion":"methods","ok":false,"why":"GET, wanted POST"}]}],` +
			`"plugins":[{"name":"key-auth","id":"p1","priority":1250,"scope":"global","phases":["access"]},{"name":"rate-limiting","id":"p2","priority":910,"scope":"route","phases":["access","header_filter"]}],` +
			`"service":"one","upstream":"http://127.0.0.1:1/","notes":["mind the gap"]}`
	})
}
