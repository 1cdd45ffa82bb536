package service

import (
	"context"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"concord/fsm/state"
)

// Conditions are the preconditions of a request (RFC 9110, 13.1) as the client wrote them. A mutation's are judged on the leader,
// against the row that it changes.
type Conditions struct {
	IfMatch     string `json:"if_match,omitempty"`
	IfNoneMatch string `json:"if_none_match,omitempty"`
}

// Met tells whether IfMatch and IfNoneMatch hold for a row with the entity tag; "": there is none.
func (c Conditions) Met(tag string) (match, noneMatch bool) {
	return c.IfMatch == "" || holdsTag(c.IfMatch, tag, false), c.IfNoneMatch == "" || !holdsTag(c.IfNoneMatch, tag, true)
}

// holdsTag finds a tag in a list of entity tags. "*" stands for any. Weak tags match only where the comparison is weak.
func holdsTag(list, tag string, weak bool) bool {
	if strings.TrimSpace(list) == "*" {
		return tag != ""
	}
	for one := range strings.SplitSeq(list, ",") {
		one = strings.TrimSpace(one)
		if weak {
			one = strings.TrimPrefix(one, "W/")
		}
		if tag != "" && one == tag {
			return true
		}
	}
	return false
}

// tagOf is the entity tag of a row: its index, and where others' rows are shown in it a sum over those.
func tagOf(index uint64, members *membership) string {
	text := strconv.FormatUint(index, 10)
	if members != nil {
		text += fmt.Sprintf("-%08x", crc32.ChecksumIEEE([]byte(strings.Join(members.names, "\x00"))))
	}
	return `"` + text + `"`
}

func (l lookup) tag(table state.AnyTable, row state.AnyRow) string {
	if table.Def().Members == nil {
		return tagOf(row.Index, nil)
	}
	return tagOf(row.Index, &membership{names: l.memberNames(table, row.ID)})
}

// conditions judges the mutation's preconditions. Creating in a collection has no row to compare.
func (p *planner) conditions(place place) error {
	tag := ""
	if place.found {
		tag = p.lookup().tag(p.table, place.row)
	}
	match, none := p.m.Conditions.Met(tag)
	switch {
	case match && (none || p.m.Verb == Create):
		return nil
	case tag == "":
		return &Error{Kind: Changed, Message: "precondition failed: there is no such entity"}
	case !none && match:
		return &Error{Kind: Changed, Message: "precondition failed: the entity exists already, with the ETag " + tag}
	}
	return (&Error{Kind: Changed, Message: "precondition failed: the entity has been changed, its ETag is now " + tag}).
		withHint("read it again, apply your change to what it is now, and send its new ETag")
}

// Consistency says how new the state must be that a read is answered from.
type Consistency string

// The levels of consistency.
const (
	Default      Consistency = ""             // every write that was answered before, as long as a leader can be asked; else what this node has
	Local        Consistency = "local"        // what this node has
	Leader       Consistency = "leader"       // what the leader has; an error without one. It may have been deposed a moment ago
	Linearizable Consistency = "linearizable" // every write that was answered before; an error if that cannot be had
)

// ParseConsistency reads a client's wish.
func ParseConsistency(text string) (Consistency, error) {
	switch c := Consistency(text); c {
	case Default, Local, Leader, Linearizable:
		return c, nil
	}
	return "", refuse(InvalidOptions, nil, "consistency must be local, leader or linearizable")
}

type consistencyKey struct{}

// WithConsistency says how new the state must be for reads with the context.
func WithConsistency(ctx context.Context, c Consistency) context.Context {
	return context.WithValue(ctx, consistencyKey{}, c)
}

// view is the state that a read with the context is answered from.
func (s *Service) view(ctx context.Context) (*state.View, error) {
	c, _ := ctx.Value(consistencyKey{}).(Consistency)
	limit, what := s.o.MinIndexTimeout, "consistency="+string(c)
	if c == Default {
		limit, what = s.o.Timeout, "what other nodes answered" // longer than an election takes: until its end nobody knows what this node lacks
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var index uint64
	var err error
	switch c {
	case Local:
	case Leader:
		index, err = s.leaderIndex(ctx)
	default:
		if index, err = s.o.Log.ReadIndex(ctx); c == Default {
			err = nil // without a leader it is what this node has: reading does not depend on quorum
		}
	}
	if err == nil && index > 0 {
		err = s.o.Log.Wait(ctx, index)
	}
	if err != nil {
		return nil, (&Error{Kind: Unavailable, Message: fmt.Sprintf("%s cannot be had now, this node is at index %d: %v", what, s.Index(), err)}).
			withHint("consistency=local answers from what this node has")
	}
	return s.store.View().At(time.Now().UnixMilli()), nil
}

// leaderIndex asks the leader how far it is, without having it prove that it still leads.
func (s *Service) leaderIndex(ctx context.Context) (uint64, error) {
	r, err := s.ask(ctx, request{Index: true})
	return r.Index, err
}
