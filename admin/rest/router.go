package rest

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// handler serves one method of one path.
type handler func(c *call) (answer, error)

// endpoint is a path with its methods.
type endpoint struct {
	path    string // as /endpoints shows it: "/services/{services}/routes"
	methods map[string]handler
}

// router finds endpoints by path segments. It exists because net/http's mux redirects, cleans paths and decodes %2F
// before matching, none of which Kong does, and refuses overlapping patterns that Kong's API has.
type router struct {
	root      branch
	endpoints []*endpoint
}

type branch struct {
	static map[string]*branch
	param  *branch
	leaf   *endpoint
}

// add registers a method of a path whose parameters are segments in braces.
func (r *router) add(method, path string, h handler) {
	b := &r.root
	for _, seg := range segments(path) {
		next := &b.param
		if !strings.HasPrefix(seg, "{") {
			if b.static == nil {
				b.static = map[string]*branch{}
			}
			if b.static[seg] == nil {
				b.static[seg] = &branch{}
			}
			b = b.static[seg]
			continue
		}
		if *next == nil {
			*next = &branch{}
		}
		b = *next
	}
	if b.leaf == nil {
		b.leaf = &endpoint{path: path, methods: map[string]handler{}}
		r.endpoints = append(r.endpoints, b.leaf)
	}
	b.leaf.methods[method] = h
}

// find returns the endpoint of an escaped path and the decoded values of its parameters. Each segment is decoded once; a
// trailing slash does not matter; literal segments win over parameters.
func (r *router) find(escaped string) (*endpoint, []string) {
	segs := segments(escaped)
	for i, s := range segs {
		text, err := url.PathUnescape(s)
		if err != nil || text == "" {
			return nil, nil
		}
		segs[i] = text
	}
	return r.root.find(segs, nil)
}

func (b *branch) find(segs, params []string) (*endpoint, []string) {
	if len(segs) == 0 {
		return b.leaf, params
	}
	if next := b.static[segs[0]]; next != nil {
		if e, p := next.find(segs[1:], params); e != nil {
			return e, p
		}
	}
	if b.param == nil {
		return nil, nil
	}
	return b.param.find(segs[1:], append(slices.Clip(params), segs[0]))
}

func segments(path string) []string {
	path = strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/")
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

// LogPath is an escaped path without the keys and tokens that it may name rows by: "/key-auths/{keyauth_credentials}" for that of an API key.
func (a *API) LogPath(escaped string) string {
	found, _ := a.router.find(escaped)
	if found == nil {
		return escaped
	}
	segs := segments(escaped)
	for i, name := range segments(found.path) {
		if a.secretRefs[name] { // an id, too: many keys look like one
			segs[i] = name
		}
	}
	return "/" + strings.Join(segs, "/")
}

// paths lists the endpoints by their segments, as Kong's /endpoints does.
func (r *router) paths() []string {
	var list []string
	for _, e := range r.endpoints {
		list = append(list, e.path)
	}
	slices.SortFunc(list, func(a, b string) int { return slices.Compare(segments(a), segments(b)) })
	return list
}

// allow lists the methods of an endpoint, HEAD and OPTIONS included, sorted.
func (e *endpoint) allow() []string {
	list := []string{http.MethodOptions}
	for m := range e.methods {
		list = append(list, m)
		if m == http.MethodGet {
			list = append(list, http.MethodHead)
		}
	}
	slices.Sort(list)
	return list
}
