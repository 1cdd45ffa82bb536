package rpc

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"

	"concord/fsm/entity"
	"concord/fsm/schema"
	adminv1 "concord/proto/concord/admin/v1"
)

// Between records and messages there is one adapter for all kinds: a message's fields are found by the names of the schema's fields. What
// either side lacks is a mistake that a test finds.

// member is the field of Entity's oneof for a kind: "service" for "services". nil: the kind has no message.
func member(kind string) protoreflect.FieldDescriptor {
	return (&adminv1.Entity{}).ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(strings.TrimSuffix(kind, "s")))
}

// entityOf is a row, as the service shows it, as a message.
func entityOf(kind string, row []byte, etag string, format adminv1.Format) (*adminv1.Entity, error) {
	var rec schema.Record
	if err := json.Unmarshal(row, &rec); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	id, _ := rec["id"].(string)
	e := &adminv1.Entity{Kind: kind, Id: id, Etag: etag}
	if field := member(kind); field != nil && format == adminv1.Format_FORMAT_TYPED {
		m := e.ProtoReflect().Mutable(field).Message()
		if err := fill(m, rec); err != nil {
			return nil, fmt.Errorf("%s %s: %w", kind, id, err)
		}
		return e, nil
	}
	fields, err := structpb.NewStruct(rec)
	e.Value = &adminv1.Entity_Fields{Fields: fields}
	return e, err
}

// fill sets the fields of a message from a record. null is absent.
func fill(m protoreflect.Message, rec schema.Record) error {
	if s, ok := m.Interface().(*structpb.Struct); ok {
		x, err := structpb.NewStruct(rec)
		if err == nil {
			proto.Merge(s, x)
		}
		return err
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		v := rec[string(f.Name())]
		if v == nil {
			continue
		}
		var err error
		switch {
		case f.IsMap():
			err = fillMap(m.Mutable(f).Map(), f, v)
		case f.IsList():
			err = fillList(m.Mutable(f).List(), f, v)
		case f.Message() != nil:
			x, ok := v.(schema.Record)
			if err = mismatch(ok, v); ok {
				err = fill(m.Mutable(f).Message(), x)
			}
		default:
			var x protoreflect.Value
			if x, err = scalar(f, v); err == nil {
				m.Set(f, x)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return nil
}

func fillList(list protoreflect.List, f protoreflect.FieldDescriptor, v any) error {
	items, ok := v.([]any)
	if !ok {
		return mismatch(false, v)
	}
	for _, item := range items {
		if f.Message() != nil {
			rec, ok := item.(schema.Record)
			if !ok {
				return mismatch(false, item)
			}
			if err := fill(list.AppendMutable().Message(), rec); err != nil {
				return err
			}
			continue
		}
		x, err := scalar(f, item)
		if err != nil {
			return err
		}
		list.Append(x)
	}
	return nil
}

// fillMap takes a list as the StringList that stands for it, since a map cannot have lists.
func fillMap(m protoreflect.Map, f protoreflect.FieldDescriptor, v any) error {
	rec, ok := v.(schema.Record)
	if !ok {
		return mismatch(false, v)
	}
	for key, item := range rec {
		at := protoreflect.ValueOfString(key).MapKey()
		if f.MapValue().Message() != nil {
			x := m.NewValue()
			if err := fill(x.Message(), schema.Record{"values": item}); err != nil {
				return err
			}
			m.Set(at, x)
			continue
		}
		x, err := scalar(f.MapValue(), item)
		if err != nil {
			return err
		}
		m.Set(at, x)
	}
	return nil
}

func scalar(f protoreflect.FieldDescriptor, v any) (protoreflect.Value, error) {
	switch x := v.(type) {
	case string:
		if f.Kind() == protoreflect.StringKind {
			return protoreflect.ValueOfString(x), nil
		}
	case bool:
		if f.Kind() == protoreflect.BoolKind {
			return protoreflect.ValueOfBool(x), nil
		}
	case float64:
		switch whole := x == math.Trunc(x); {
		case f.Kind() == protoreflect.DoubleKind:
			return protoreflect.ValueOfFloat64(x), nil
		case f.Kind() == protoreflect.Int32Kind && whole && x >= math.MinInt32 && x <= math.MaxInt32:
			return protoreflect.ValueOfInt32(int32(x)), nil
		case f.Kind() == protoreflect.Int64Kind && whole && math.Abs(x) < 1<<63:
			return protoreflect.ValueOfInt64(int64(x)), nil
		}
	}
	return protoreflect.Value{}, mismatch(false, v)
}

func mismatch(ok bool, v any) error {
	if ok {
		return nil
	}
	return fmt.Errorf("a %T does not fit", v)
}

// recordOf is what a client wrote, as the service takes it: what is absent is not in the record.
func recordOf(kind string, m *adminv1.Entity, nulls []string) (schema.Record, error) {
	if m.GetKind() != "" && m.GetKind() != kind {
		return nil, malformed("entity.kind is %q and target.kind %q: leave the former out", m.GetKind(), kind)
	}
	rec := schema.Record{}
	if m != nil {
		r := m.ProtoReflect()
		switch field := r.WhichOneof(r.Descriptor().Oneofs().ByName("value")); {
		case field == nil:
		case field == member(kind):
			def, _ := entity.Lookup(kind)
			rec = recordFrom(r.Get(field).Message(), def.Schema)
		case field.Name() == "fields":
			rec = m.GetFields().AsMap()
		default:
			return nil, malformed("entity.%s is not of the kind %s", field.Name(), kind)
		}
	}
	for _, path := range nulls {
		at, names := rec, strings.Split(path, ".")
		for _, name := range names[:len(names)-1] {
			inner, ok := at[name].(schema.Record)
			if !ok {
				inner = schema.Record{}
				at[name] = inner
			}
			at = inner
		}
		last := names[len(names)-1]
		if at[last] != nil {
			return nil, malformed("null_fields: %s is given, too", path)
		}
		at[last] = nil
	}
	// Through JSON, so that the same bounds hold as on Kong's paths.
	text, err := json.Marshal(rec)
	if err != nil {
		return nil, malformed("entity: %v", err)
	}
	if rec, err = schema.Decode(text); err != nil {
		return nil, malformed("entity: %v", err)
	}
	return rec, nil
}

// recordFrom is the record of a message. sch is nil for records within.
func recordFrom(m protoreflect.Message, sch *schema.Schema) schema.Record {
	if s, ok := m.Interface().(*structpb.Struct); ok {
		return s.AsMap()
	}
	rec := schema.Record{}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		switch {
		case f.IsMap():
			out := schema.Record{}
			v.Map().Range(func(k protoreflect.MapKey, x protoreflect.Value) bool {
				if f.MapValue().Message() != nil {
					list, _ := recordFrom(x.Message(), nil)["values"].([]any)
					out[k.String()] = append([]any{}, list...)
				} else {
					out[k.String()] = plain(f.MapValue(), x)
				}
				return true
			})
			rec[name] = out
		case f.IsList():
			out := []any{}
			for i := range v.List().Len() {
				out = append(out, plain(f, v.List().Get(i)))
			}
			rec[name] = out
		default:
			rec[name] = plain(f, v)
			if ref, ok := v.Interface().(protoreflect.Message); ok && sch != nil {
				if r, ok := ref.Interface().(*adminv1.Reference); ok {
					rec[name] = reference(r, sch, name)
				}
			}
		}
		return true
	})
	return rec
}

func plain(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return recordFrom(v.Message(), nil)
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		return float64(v.Int())
	}
	return v.Interface()
}

// reference is a foreign field: by id, or by the key that the kind is looked up by.
func reference(r *adminv1.Reference, sch *schema.Schema, field string) any {
	f, _ := sch.Field(field)
	to, _ := entity.Lookup(f.Ref)
	if r.GetName() != "" && to.Schema != nil && to.Schema.EndpointKey != "" {
		return schema.Record{to.Schema.EndpointKey: r.GetName()}
	}
	return schema.Record{"id": r.GetId()}
}
