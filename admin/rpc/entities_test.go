package rpc_test

import (
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	"concord/admin/service"
	"concord/fsm/entity"
	"concord/fsm/schema"
	adminv1 "concord/proto/concord/admin/v1"
)

// TestMessagesAgreeWithSchemas: every kind of the configuration has a message with the schema's fields, and no message has more.
func TestMessagesAgreeWithSchemas(t *testing.T) {
	oneof := (&adminv1.Entity{}).ProtoReflect().Descriptor().Oneofs().ByName("value").Fields()
	known := map[protoreflect.Name]bool{"fields": true}
	for _, d := range entity.All() {
		if d.Schema.Internal || d.Runtime {
			continue
		}
		name := protoreflect.Name(d.Schema.Name[:len(d.Schema.Name)-1])
		field := oneof.ByName(name)
		if field == nil {
			t.Errorf("%s: Entity has no %s", d.Schema.Name, name)
			continue
		}
		known[name] = true
		fields := d.Schema.Fields
		if d.Schema.TTL {
			fields = append(fields[:len(fields):len(fields)], schema.Field{Name: "ttl", Type: schema.Integer})
		}
		agree(t, d.Schema.Name, field.Message(), fields)
	}
	for i := range oneof.Len() {
		if name := oneof.Get(i).Name(); !known[name] {
			t.Errorf("Entity.%s is of no kind", name)
		}
	}
}

func agree(t *testing.T, path string, m protoreflect.MessageDescriptor, fields []schema.Field) {
	names := map[protoreflect.Name]bool{}
	for _, f := range fields {
		at, name := path+"."+f.Name, protoreflect.Name(f.Name)
		names[name] = true
		x := m.Fields().ByName(name)
		if x == nil {
			t.Errorf("%s is not in %s", at, m.FullName())
			continue
		}
		switch f.Type {
		case schema.Array, schema.Set:
			if !x.IsList() {
				t.Errorf("%s is not repeated", at)
			}
			agreeType(t, at, x, *f.Elem)
		case schema.Map:
			switch {
			case !x.IsMap() || x.MapKey().Kind() != protoreflect.StringKind:
				t.Errorf("%s is no map by text", at)
			case f.Elem.Type == schema.Array && (x.MapValue().Message() == nil || x.MapValue().Message().Name() != "StringList" || f.Elem.Elem.Type != schema.String):
				t.Errorf("%s is no map of StringList", at)
			case f.Elem.Type != schema.Array:
				agreeType(t, at, x.MapValue(), *f.Elem)
			}
		default:
			if x.IsList() || x.IsMap() {
				t.Errorf("%s is repeated", at)
			}
			agreeType(t, at, x, f)
			mustBeGiven := f.Required && f.Default == nil && !f.Auto
			if x.Message() == nil && x.HasOptionalKeyword() == mustBeGiven {
				t.Errorf("%s: optional is %t, want %t", at, x.HasOptionalKeyword(), !mustBeGiven)
			}
		}
	}
	for i := range m.Fields().Len() {
		if name := m.Fields().Get(i).Name(); !names[name] {
			t.Errorf("%s.%s of %s is not in the schema", path, name, m.FullName())
		}
	}
}

func agreeType(t *testing.T, at string, x protoreflect.FieldDescriptor, f schema.Field) {
	want := map[schema.Type]protoreflect.Kind{
		schema.String: protoreflect.StringKind, schema.Boolean: protoreflect.BoolKind, schema.Number: protoreflect.DoubleKind, schema.Integer: protoreflect.Int64Kind,
		schema.Foreign: protoreflect.MessageKind, schema.RecordT: protoreflect.MessageKind,
	}[f.Type]
	if f.Type == schema.Integer && (f.Between != nil && f.Between[0] >= -1<<31 && f.Between[1] < 1<<31 || len(f.OneOf) > 0) {
		want = protoreflect.Int32Kind
	}
	if x.Kind() != want {
		t.Errorf("%s is a %s in the message, want %s for a %s", at, x.Kind(), want, f.Type)
		return
	}
	switch {
	case f.Type == schema.Foreign:
		if x.Message().Name() != "Reference" {
			t.Errorf("%s is a %s, want Reference", at, x.Message().Name())
		}
	case f.Type == schema.RecordT && len(f.Fields) == 0:
		if x.Message().FullName() != "google.protobuf.Struct" {
			t.Errorf("%s is a %s, want Struct", at, x.Message().Name())
		}
	case f.Type == schema.RecordT:
		agree(t, at, x.Message(), f.Fields)
	}
}

// TestTyped: what is written as a message is read as one, and as fields, and nulls what it names.
func TestTyped(t *testing.T) {
	b := start(t, service.Options{})
	c := b.config()
	mutate := func(verb adminv1.Verb, target *adminv1.Target, e *adminv1.Entity, nulls ...string) *adminv1.Entity {
		t.Helper()
		res, err := c.Mutate(t.Context(), connect.NewRequest(&adminv1.MutateRequest{
			Verb: verb, Target: target, Entity: e, NullFields: nulls, Format: adminv1.Format_FORMAT_TYPED,
		}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.GetEntity()
	}
	create := func(kind string, e *adminv1.Entity) *adminv1.Entity {
		t.Helper()
		return mutate(adminv1.Verb_VERB_CREATE, &adminv1.Target{Kind: kind}, e)
	}
	s := create("services", &adminv1.Entity{Value: &adminv1.Entity_Service{Service: &adminv1.Service{
		Name: proto.String("s"), Host: "example.test", Retries: proto.Int32(0), Protocol: proto.String("https"), TlsVerify: proto.Bool(false), Tags: []string{"a", "b"},
	}}}).GetService()
	if s.GetRetries() != 0 || s.Retries == nil || s.GetPort() != 80 || s.TlsVerify == nil || s.Path != nil || s.GetCreatedAt() == 0 || len(s.GetTags()) != 2 {
		t.Errorf("made %v", s)
	}
	route := &adminv1.Route{
		Name: proto.String("r"), Service: &adminv1.Reference{Name: "s"}, Protocols: []string{"http"}, Paths: []string{"/x"}, StripPath: proto.Bool(false),
		Headers: map[string]*adminv1.StringList{"X-A": {Values: []string{"1", "2"}}}, RegexPriority: proto.Int64(1 << 40),
	}
	r := create("routes", &adminv1.Entity{Value: &adminv1.Entity_Route{Route: route}}).GetRoute()
	want := proto.Clone(route).(*adminv1.Route)
	want.Service = &adminv1.Reference{Id: s.GetId()}
	if d := cmp.Diff(want, r, protocmp.Transform(), protocmp.IgnoreFields(&adminv1.Route{}, "id", "created_at", "updated_at", "https_redirect_status_code",
		"preserve_host", "request_buffering", "response_buffering", "path_handling")); d != "" {
		t.Errorf("the route comes back changed (-want +got):\n%s", d)
	}
	r = mutate(adminv1.Verb_VERB_UPDATE, &adminv1.Target{Kind: "routes", Ref: "r"}, &adminv1.Entity{Value: &adminv1.Entity_Route{Route: &adminv1.Route{PreserveHost: proto.Bool(true)}}}, "headers", "name").GetRoute()
	if r.Name != nil || r.Headers != nil || !r.GetPreserveHost() || len(r.GetPaths()) != 1 {
		t.Errorf("updated %v", r)
	}
	u := create("upstreams", &adminv1.Entity{Value: &adminv1.Entity_Upstream{Upstream: &adminv1.Upstream{
		Name: "u.test", Healthchecks: &adminv1.Upstream_Healthchecks{Active: &adminv1.Upstream_Healthchecks_Active{Timeout: proto.Float64(2.5)}},
	}}}).GetUpstream()
	if a := u.GetHealthchecks().GetActive(); a.GetTimeout() != 2.5 || a.GetHttpPath() != "/" || len(u.GetHealthchecks().GetPassive().GetUnhealthy().GetHttpStatuses()) == 0 {
		t.Errorf("made %v", u)
	}
	target := create("targets", &adminv1.Entity{Value: &adminv1.Entity_Target{Target: &adminv1.UpstreamTarget{Upstream: &adminv1.Reference{Name: "u.test"}, Target: "h:80"}}}).GetTarget()
	if target.GetUpstream().GetId() != u.GetId() || target.GetWeight() != 100 {
		t.Errorf("made %v", target)
	}
	create("consumers", &adminv1.Entity{Value: &adminv1.Entity_Consumer{Consumer: &adminv1.Consumer{Username: proto.String("c")}}})
	key := create("keyauth_credentials", &adminv1.Entity{Value: &adminv1.Entity_KeyauthCredential{KeyauthCredential: &adminv1.KeyAuthCredential{
		Consumer: &adminv1.Reference{Name: "c"}, Key: proto.String("k"), Ttl: proto.Int64(300),
	}}}).GetKeyauthCredential()
	if key.GetTtl() < 290 || key.GetTtl() > 300 {
		t.Errorf("made %v", key)
	}
	group := create("consumer_groups", &adminv1.Entity{Value: &adminv1.Entity_ConsumerGroup{ConsumerGroup: &adminv1.ConsumerGroup{Name: "g", Tags: []string{"a"}}}}).GetConsumerGroup()
	joined := create("consumer_group_consumers", &adminv1.Entity{Value: &adminv1.Entity_ConsumerGroupConsumer{ConsumerGroupConsumer: &adminv1.ConsumerGroupConsumer{
		ConsumerGroup: &adminv1.Reference{Name: "g"}, Consumer: &adminv1.Reference{Name: "c"},
	}}}).GetConsumerGroupConsumer()
	if joined.GetConsumerGroup().GetId() != group.GetId() || joined.GetConsumer().GetId() != key.GetConsumer().GetId() {
		t.Errorf("made %v", joined)
	}
	under := &adminv1.Target{Kind: "consumer_group_consumers", Ref: "c", Parent: &adminv1.Parent{Kind: "consumer_groups", Ref: "g"}}
	if got, err := c.Get(t.Context(), connect.NewRequest(&adminv1.GetRequest{Target: under})); err != nil || got.Msg.GetEntity().GetId() != joined.GetId() {
		t.Errorf("under the group: %v %v", got, err)
	}
	for name, e := range map[string]*adminv1.Entity{
		"another kind's message": {Value: &adminv1.Entity_Consumer{Consumer: &adminv1.Consumer{}}},
		"a bad value":            {Value: &adminv1.Entity_Service{Service: &adminv1.Service{Host: "h", Port: proto.Int32(-1)}}},
		"another kind":           {Kind: "routes", Value: &adminv1.Entity_Fields{Fields: &structpb.Struct{}}},
	} {
		_, err := c.Mutate(t.Context(), connect.NewRequest(&adminv1.MutateRequest{Verb: adminv1.Verb_VERB_CREATE, Target: &adminv1.Target{Kind: "services"}, Entity: e}))
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}
