package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/structpb"

	"concord/admin/service"
	"concord/fsm/schema"
	adminv1 "concord/proto/concord/admin/v1"
)

// Apply changes many entities in one transaction.
func (c config) Apply(ctx context.Context, req *connect.Request[adminv1.ApplyRequest]) (*connect.Response[adminv1.ApplyResponse], error) {
	out, err := c.apply(ctx, req.Msg)
	var wrong *service.BulkError
	if errors.As(err, &wrong) {
		return nil, wrongRows(wrong, len(req.Msg.GetWanted()))
	}
	if err != nil {
		return nil, c.refusal(ctx, err)
	}
	return answer(out, out.GetIndex()), nil
}

func (c config) apply(ctx context.Context, m *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	b := service.Bulk{Merge: !m.GetPrune(), SelectTags: m.GetSelectTags(), DryRun: m.GetDryRun(), Diff: m.GetDiff() || m.GetDryRun()}
	b.Show = !b.DryRun // a dry run is allowed to readers, who are shown no secrets
	for i, w := range m.GetWanted() {
		if _, err := c.kind(w.GetKind()); err != nil {
			return nil, within(err, "wanted", i)
		}
		body, err := recordOf(w.GetKind(), w.GetEntity(), nil)
		if err != nil {
			return nil, within(err, "wanted", i)
		}
		b.Rows = append(b.Rows, service.Wanted{
			Entity: w.GetKind(), Body: body, Parent: -1, Conditions: service.Conditions{IfMatch: w.GetIfMatch(), IfNoneMatch: w.GetIfNoneMatch()},
		})
	}
	for i, r := range m.GetRemovals() {
		if _, err := c.kind(r.GetKind()); err != nil {
			return nil, within(err, "removals", i)
		}
		if r.GetRef() == "" {
			return nil, malformed("removals[%d]: ref is missing", i)
		}
		b.Removals = append(b.Removals, service.Removal{Entity: r.GetKind(), Ref: r.GetRef(), Conditions: service.Conditions{IfMatch: r.GetIfMatch()}})
	}
	c.expand(&b)
	res, err := c.o.Service.Apply(ctx, b)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ApplyResponse{
		Index: res.Index, Created: uint32(res.Created), Updated: uint32(res.Updated), Deleted: uint32(res.Deleted), Unchanged: uint32(res.Unchanged),
	}
	for i := range res.Changes {
		d, err := difference(&res.Changes[i])
		if err != nil {
			return nil, err
		}
		out.Differences = append(out.Differences, d)
	}
	for i := range min(len(res.Rows), len(m.GetWanted())) {
		row := res.Rows[i]
		e, err := entityOf(b.Rows[i].Entity, row, "", m.GetFormat())
		if err != nil {
			return nil, err
		}
		out.Entities = append(out.Entities, e)
	}
	return out, nil
}

// expand adds the rows that lists of names stand for: the snis of certificates.
func (c config) expand(b *service.Bulk) {
	for i := range b.Rows {
		def, err := c.kind(b.Rows[i].Entity)
		if err != nil || def.Members == nil {
			continue
		}
		other, err := c.kind(def.Members.Entity)
		names, ok := b.Rows[i].Body[def.Members.Field].([]any)
		if err != nil || !ok {
			continue
		}
		for _, name := range names {
			b.Rows = append(b.Rows, service.Wanted{
				Entity: def.Members.Entity, Body: schema.Record{other.Schema.EndpointKey: name}, Parent: i, Field: def.Members.Ref,
			})
		}
	}
}

var actions = map[string]adminv1.Action{
	"create": adminv1.Action_ACTION_CREATE, "update": adminv1.Action_ACTION_UPDATE, "delete": adminv1.Action_ACTION_DELETE,
}

func difference(c *service.BulkChange) (*adminv1.Difference, error) {
	d := &adminv1.Difference{Action: actions[c.Action], Kind: c.Entity, Id: c.ID, Name: c.Name}
	for _, side := range []struct {
		text json.RawMessage
		to   **structpb.Struct
	}{{c.Before, &d.Before}, {c.After, &d.After}} {
		if side.text == nil {
			continue
		}
		*side.to = &structpb.Struct{}
		if err := (*side.to).UnmarshalJSON(side.text); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// within says which element of a list an error is about.
func within(err error, list string, i int) error {
	var e *service.Error
	if errors.As(err, &e) {
		at := *e
		at.Message = fmt.Sprintf("%s[%d]: %s", list, i, e.Message)
		return &at
	}
	return err
}

// wrongRows says what is wrong with which of the wanted entities, and with the rows behind them, which are names in their lists.
func wrongRows(e *service.BulkError, wanted int) error {
	bad := &errdetails.BadRequest{}
	for _, i := range slices.Sorted(maps.Keys(e.Rows)) {
		at := fmt.Sprintf("wanted[%d]", i)
		if i >= wanted {
			at = "a name in a list"
		}
		bad.FieldViolations = append(bad.FieldViolations, violations(at, map[string]any(e.Rows[i]))...)
	}
	text := e.Error()
	if len(bad.FieldViolations) > 0 {
		first := bad.FieldViolations[0]
		text += fmt.Sprintf(" (%s: %s)", first.GetField(), first.GetDescription())
	}
	out := connect.NewError(connect.CodeInvalidArgument, errors.New(text+": nothing was stored"))
	attach(out, bad)
	return out
}
