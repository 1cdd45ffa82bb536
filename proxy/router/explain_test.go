package router

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
)

func TestExplain(t *testing.T) {
	one := rt("1", paths("/api"))
	long := rt("2", paths("/api/v1"))
	host := rt("3", paths("/api"))
	host.Hosts = []string{"*.a.com", "a.com:81"}
	regex := rt("4", paths(`~/api/\d+`))
	post := rt("5", paths("/api"))
	post.Methods = []string{"POST"}
	old := rt("0", paths("/api"), func(r *entity.Route) { r.CreatedAt = -1 })
	head := rt("6", paths("/other"))
	head.Headers = map[string][]string{"x-a": {"1"}}
	head.SNIs = []string{"s.com"}
	tests := []struct {
		name   string
		routes []*entity.Route
		q      *Query
		want   []string
	}{
		{"the longer path wins", []*entity.Route{one, long}, req("x", "/api/v1/z"), []string{"2 ", "1 the winner's path is longer (7 bytes, this one 4)"}},
		{"kinds of criteria", []*entity.Route{one, host}, req("w.a.com", "/api"), []string{"3 ", "1 the winner has more kinds of criteria (2, this one 1)"}},
		{"a regex", []*entity.Route{one, regex}, req("x", "/api/7"), []string{"4 ", "1 the winner's path is a regex, which goes before a prefix"}},
		{"weights", []*entity.Route{post, host}, func() *Query { q := req("a.com:81", "/api"); q.Method = "POST"; return q }(),
			[]string{"3 ", "5 the winner's kinds of criteria weigh more: hosts, headers, paths, methods, snis in this order"}},
		{"age", []*entity.Route{one, old}, req("x", "/api"), []string{"0 ", "1 all else is equal, and the winner is older"}},
		{"none, the nearest first", []*entity.Route{head, post, host}, req("a.com:82", "/api"), []string{
			`3 hosts: "a.com:82", wanted *.a.com, a.com:81`, `5 methods: GET, wanted POST`,
			`6 paths: "/api", wanted the prefix /other; headers: x-a is absent, wanted 1`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, v := range build(t, tt.routes...).Explain(tt.q, 10) {
				line := v.Route.Entity.ID + " " + v.Lost
				sep := ""
				for _, c := range v.Checks {
					if !c.OK {
						line += fmt.Sprintf("%s%s: %s", sep, c.Criterion, c.Why)
						sep = "; "
					}
				}
				got = append(got, line)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestExplainIsBounded(t *testing.T) {
	r := build(t, manyRoutes(1000)...)
	if got := len(r.Explain(req("host0.example.com", "/api/v0/resource0"), 5)); got > 11 {
		t.Errorf("%d verdicts, want at most the winner and 5 of each kind", got)
	}
}
