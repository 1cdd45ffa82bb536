package rpc

import (
	"fmt"

	"google.golang.org/protobuf/types/known/structpb"

	"concord/fsm/schema"
	adminv1 "concord/proto/concord/admin/v1"
)

// entityOf is a row, as the service shows it, as a message.
func entityOf(kind string, row []byte, etag string) (*adminv1.Entity, error) {
	fields := &structpb.Struct{}
	if err := fields.UnmarshalJSON(row); err != nil {
		return nil, fmt.Errorf("%s %.100q: %w", kind, row, err)
	}
	return &adminv1.Entity{Kind: kind, Id: fields.GetFields()["id"].GetStringValue(), Etag: etag, Value: &adminv1.Entity_Fields{Fields: fields}}, nil
}

// recordOf is what a client wrote, as the service takes it. It goes through JSON, so that the same bounds hold as on Kong's paths.
func recordOf(kind string, m *adminv1.Entity) (schema.Record, error) {
	if m.GetKind() != "" && m.GetKind() != kind {
		return nil, malformed("entity.kind is %q and target.kind %q: leave the former out", m.GetKind(), kind)
	}
	if m.GetFields() == nil {
		return schema.Record{}, nil
	}
	text, err := m.GetFields().MarshalJSON()
	if err != nil {
		return nil, malformed("entity.fields: %v", err)
	}
	rec, err := schema.Decode(text)
	if err != nil {
		return nil, malformed("entity.fields: %v", err)
	}
	return rec, nil
}
