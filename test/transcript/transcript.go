// Package transcript runs recorded conversations with an Admin API: requests and what must be answered. The same files
// test the handlers in memory and a running gateway from outside. It is for tests only.
//
// A transcript is a txtar archive. Its files are steps, run in order against a gateway without entities:
//
//	-- create a service --
//	POST /services
//	X-Some: header
//	form name=s1&url=http://127.0.0.1/base
//	=> 201
//	X-Config-Index: <int>
//	has {"name":"s1","id":"<uuid>"}
//	save s1 id
//
// The body is a line "json …", "form …" or "text …" (with a Content-Type of its own among the headers), or "body" and the
// lines up to the answer, joined with CRLF. Of the answer, "is" must equal the JSON body (apart from "hint"), "has" must be
// contained in it, "hint" must be part of the member hint, "part" of the body, "empty" demands no body. A line that begins with white space
// continues the one before. A file "let name" is no step: its content is ${name} in later ones, escaped for use inside a JSON string, and
// ${name:form} in a form. save keeps a member for use as ${s1} in later steps. In expected values <any>, <uuid>,
// <int>, <random> stand for values of that form, <absent> for no such member.
package transcript

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/txtar"
)

// Do sends a request.
type Do func(*http.Request) (*http.Response, error)

// Step is one request and its expected answer.
type Step struct {
	Name    string
	let     string // content of a file "let …"
	request []string
	answer  []string
}

// Parse splits a transcript into steps.
func Parse(data []byte) ([]Step, error) {
	var steps []Step
	for _, f := range txtar.Parse(data).Files {
		s := Step{Name: f.Name}
		if strings.HasPrefix(f.Name, "let ") {
			s.let = string(f.Data)
			steps = append(steps, s)
			continue
		}
		lines := &s.request
		for _, line := range strings.Split(strings.TrimRight(string(f.Data), "\n"), "\n") {
			switch {
			case strings.HasPrefix(line, "=> "):
				lines = &s.answer
				*lines = append(*lines, strings.TrimPrefix(line, "=> "))
			case len(*lines) > 0 && line != "" && strings.TrimLeft(line, " \t") != line && !contains(*lines, "body"):
				(*lines)[len(*lines)-1] += strings.TrimSpace(line)
			case line == "" && !contains(*lines, "body"):
			default:
				*lines = append(*lines, line)
			}
		}
		if len(s.request) == 0 || len(s.answer) == 0 {
			return nil, fmt.Errorf("step %q has no request or no answer", s.Name)
		}
		steps = append(steps, s)
	}
	return steps, nil
}

func contains(lines []string, what string) bool {
	for _, l := range lines {
		if l == what {
			return true
		}
	}
	return false
}

// Vars are the values that steps saved.
type Vars map[string]string

func (v Vars) expand(s string) string {
	for name, value := range v {
		s = strings.ReplaceAll(s, "${"+name+"}", value)
	}
	return s
}

// Run performs the step against base ("http://host:port") and returns what is wrong with the answer, nil if nothing.
func (s Step) Run(do Do, base string, vars Vars) error {
	if name, ok := strings.CutPrefix(s.Name, "let "); ok {
		text, err := json.Marshal(s.let)
		vars[name], vars[name+":form"] = strings.Trim(string(text), `"`), url.QueryEscape(s.let)
		return err
	}
	req, err := s.build(base, vars)
	if err != nil {
		return err
	}
	resp, err := do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if got := strconv.Itoa(resp.StatusCode); got != s.answer[0] {
		return fmt.Errorf("status %s, want %s: %s", got, s.answer[0], body)
	}
	for _, line := range s.answer[1:] {
		if err := check(vars.expand(line), resp, body, vars); err != nil {
			return fmt.Errorf("%w\nanswer: %s", err, body)
		}
	}
	return nil
}

var header = regexp.MustCompile(`^[A-Za-z0-9-]+: `)

func (s Step) build(base string, vars Vars) (*http.Request, error) {
	method, path, ok := strings.Cut(vars.expand(s.request[0]), " ")
	if !ok {
		return nil, fmt.Errorf("step %q: %q is no request line", s.Name, s.request[0])
	}
	var body, contentType string
	headers := http.Header{}
	for i, line := range s.request[1:] {
		line = vars.expand(line)
		kind, rest, _ := strings.Cut(line, " ")
		switch {
		case line == "body":
			body = vars.expand(strings.Join(s.request[i+2:], "\r\n"))
		case kind == "json":
			body, contentType = rest, "application/json"
		case kind == "form":
			body, contentType = rest, "application/x-www-form-urlencoded"
		case kind == "text":
			body = rest
		case header.MatchString(line):
			name, value, _ := strings.Cut(line, ": ")
			headers.Add(name, value)
		default:
			return nil, fmt.Errorf("step %q: line %q is not understood", s.Name, line)
		}
		if line == "body" {
			break
		}
	}
	req, err := http.NewRequest(method, base+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body == "" {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for name, values := range headers {
		req.Header[name] = values
		if name == "Host" {
			req.Host = values[0]
		}
	}
	return req, nil
}

func check(line string, resp *http.Response, body []byte, vars Vars) error {
	kind, want, _ := strings.Cut(line, " ")
	switch {
	case kind == "is" || kind == "has":
		var w, g any
		if err := json.Unmarshal([]byte(want), &w); err != nil {
			return fmt.Errorf("expectation %s: %w", want, err)
		}
		if err := json.Unmarshal(body, &g); err != nil {
			return fmt.Errorf("body is no JSON: %w", err)
		}
		return compare("", w, g, kind == "is")
	case line == "empty":
		if len(body) > 0 {
			return fmt.Errorf("body is not empty")
		}
	case kind == "part":
		if !strings.Contains(string(body), want) {
			return fmt.Errorf("body lacks %q", want)
		}
	case kind == "hint":
		var e struct{ Hint string }
		if json.Unmarshal(body, &e) != nil || !strings.Contains(e.Hint, want) {
			return fmt.Errorf("hint %q lacks %q", e.Hint, want)
		}
	case kind == "save":
		name, path, _ := strings.Cut(want, " ")
		var v any
		if err := json.Unmarshal(body, &v); err != nil {
			return err
		}
		for _, p := range strings.Split(path, ".") {
			if list, ok := v.([]any); ok {
				if i, err := strconv.Atoi(p); err == nil && i < len(list) {
					v = list[i]
					continue
				}
			}
			rec, _ := v.(map[string]any)
			v = rec[p]
		}
		if v == nil {
			return fmt.Errorf("nothing to save at %s", path)
		}
		vars[name] = fmt.Sprint(v)
	case header.MatchString(line):
		name, value, _ := strings.Cut(line, ": ")
		if _, present := resp.Header[http.CanonicalHeaderKey(name)]; !present {
			if value == "<absent>" {
				return nil
			}
			return fmt.Errorf("header %s is absent, want %s", name, value)
		}
		return compare("header "+name, value, resp.Header.Get(name), true)
	default:
		return fmt.Errorf("line %q is not understood", line)
	}
	return nil
}

var forms = map[string]*regexp.Regexp{
	"<uuid>":   regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`),
	"<int>":    regexp.MustCompile(`^-?[0-9]+$`),
	"<random>": regexp.MustCompile(`^[A-Za-z0-9]{32}$`),
	"<any>":    regexp.MustCompile(``),
}

// compare returns how got differs from want; exact forbids members that want does not have.
func compare(path string, want, got any, exact bool) error {
	switch w := want.(type) {
	case string:
		if f := forms[w]; f != nil {
			text, ok := got.(string)
			if n, isNumber := got.(float64); isNumber && w == "<int>" {
				text, ok = strconv.FormatFloat(n, 'f', -1, 64), true
			}
			if w == "<any>" || ok && f.MatchString(text) {
				return nil
			}
			return fmt.Errorf("%s is %v, want %s", path, got, w)
		}
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return fmt.Errorf("%s is %v, want an object", path, got)
		}
		for k, v := range w {
			have, ok := g[k]
			if absent := v == "<absent>"; absent != !ok {
				return fmt.Errorf("%s.%s: present %t, want %t", path, k, ok, !absent)
			} else if absent {
				continue
			}
			if err := compare(path+"."+k, v, have, exact); err != nil {
				return err
			}
		}
		var extra []string
		for k := range g {
			if _, ok := w[k]; exact && !ok && k != "hint" {
				extra = append(extra, k)
			}
		}
		if sort.Strings(extra); len(extra) > 0 {
			return fmt.Errorf("%s has %s too many", path, strings.Join(extra, ", "))
		}
		return nil
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Errorf("%s is %v, want %d elements", path, got, len(w))
		}
		for i := range w {
			if err := compare(path+"["+strconv.Itoa(i)+"]", w[i], g[i], exact); err != nil {
				return err
			}
		}
		return nil
	}
	if fmt.Sprintf("%T %v", want, want) != fmt.Sprintf("%T %v", got, got) {
		return fmt.Errorf("%s is %#v, want %#v", path, got, want)
	}
	return nil
}
