package rpc_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"

	"concord/admin/service"
	adminv1 "concord/proto/concord/admin/v1"
)

// TestWatch: changes arrive in each protocol; an interrupted watch goes on where it was; a stopping node says so.
func TestWatch(t *testing.T) {
	for name, options := range map[string][]connect.ClientOption{
		"connect": nil, "connect json": {connect.WithProtoJSON()}, "grpc": {connect.WithGRPC()}, "grpc-web": {connect.WithGRPCWeb()},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, service.Options{})
			c := b.config(options...)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			watch := func(from *uint64) *connect.ServerStreamForClient[adminv1.WatchResponse] {
				stream, err := c.Watch(ctx, connect.NewRequest(&adminv1.WatchRequest{FromIndex: from}))
				if err != nil {
					t.Fatal(err)
				}
				return stream
			}
			next := func(stream *connect.ServerStreamForClient[adminv1.WatchResponse]) *adminv1.WatchResponse {
				t.Helper()
				if !stream.Receive() {
					t.Fatalf("the stream ended: %v", stream.Err())
				}
				return stream.Msg()
			}
			create(t, c, "consumers", map[string]any{"username": "u0"})
			stream := watch(nil)
			first := next(stream)
			if !first.GetReset_() || first.GetMore() || len(first.GetChanges()) != 1 {
				t.Fatalf("begins with %v", first)
			}
			made := create(t, c, "consumers", map[string]any{"username": "u1"})
			got := next(stream)
			if got.GetIndex() != made.GetIndex() || len(got.GetChanges()) != 1 || got.GetChanges()[0].GetBefore() ||
				got.GetChanges()[0].GetEntity().GetFields().GetFields()["username"].GetStringValue() != "u1" {
				t.Fatalf("got %v", got)
			}
			if err := stream.Close(); err != nil {
				t.Log(err) // it was interrupted
			}
			for i := range 5 {
				create(t, c, "consumers", map[string]any{"username": fmt.Sprintf("v%d", i)})
			}
			from := got.GetIndex()
			stream = watch(&from)
			for i := 0; i < 5; {
				m := next(stream)
				if len(m.GetChanges()) == 0 {
					continue
				}
				if m.GetReset_() || m.GetIndex() != from+1+uint64(i) {
					t.Fatalf("change %d is %v", i, m)
				}
				i++
			}
			b.api.Close()
			for stream.Receive() {
			}
			if connect.CodeOf(stream.Err()) != connect.CodeUnavailable {
				t.Errorf("a stopping node ends the stream with %v", stream.Err())
			}
			future := uint64(1 << 40)
			stream = watch(&future)
			if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeUnavailable {
				t.Errorf("watching a node that stops: %v", stream.Err())
			}
		})
	}
	t.Run("a future index", func(t *testing.T) {
		b := start(t, service.Options{})
		future := uint64(1 << 40)
		stream, err := b.config().Watch(t.Context(), connect.NewRequest(&adminv1.WatchRequest{FromIndex: &future}))
		if err != nil {
			t.Fatal(err)
		}
		if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeOutOfRange {
			t.Errorf("got %v, %v", stream.Msg(), stream.Err())
		}
	})
}

// TestPreconditions: a change is made only to the version that it was meant for.
func TestPreconditions(t *testing.T) {
	b := start(t, service.Options{})
	c := b.config()
	made := create(t, c, "services", map[string]any{"name": "s", "host": "h"}).GetEntity()
	read, err := c.Get(t.Context(), connect.NewRequest(&adminv1.GetRequest{Target: &adminv1.Target{Kind: "services", Ref: "s"}, Consistency: adminv1.Consistency_CONSISTENCY_LINEARIZABLE}))
	if err != nil || made.GetEtag() == "" || read.Msg.GetEntity().GetEtag() != made.GetEtag() {
		t.Fatalf("etag %q made, %v read, %v", made.GetEtag(), read, err)
	}
	list, err := c.List(t.Context(), connect.NewRequest(&adminv1.ListRequest{Target: &adminv1.Target{Kind: "services"}}))
	if err != nil || list.Msg.GetEntities()[0].GetEtag() != made.GetEtag() {
		t.Fatalf("listed %v, %v", list, err)
	}
	update := func(etag string) error {
		_, err := c.Mutate(t.Context(), connect.NewRequest(&adminv1.MutateRequest{
			Verb: adminv1.Verb_VERB_UPDATE, Target: &adminv1.Target{Kind: "services", Ref: "s"}, IfMatch: etag, Entity: fields(t, map[string]any{"retries": 1.0}),
		}))
		return err
	}
	if err := update(made.GetEtag()); err != nil {
		t.Error(err)
	}
	if err := update(made.GetEtag()); connect.CodeOf(err) != connect.CodeAborted {
		t.Errorf("an old etag: %v", err)
	}
	b.log.NoLeader = true
	for level, code := range map[adminv1.Consistency]connect.Code{
		adminv1.Consistency_CONSISTENCY_UNSPECIFIED: 0, adminv1.Consistency_CONSISTENCY_LOCAL: 0,
		adminv1.Consistency_CONSISTENCY_LEADER: connect.CodeUnavailable, adminv1.Consistency_CONSISTENCY_LINEARIZABLE: connect.CodeUnavailable,
	} {
		_, err := c.Get(t.Context(), connect.NewRequest(&adminv1.GetRequest{Target: &adminv1.Target{Kind: "services", Ref: "s"}, Consistency: level}))
		if code == 0 && err != nil || code != 0 && connect.CodeOf(err) != code {
			t.Errorf("%v without a leader: %v", level, err)
		}
	}
}
