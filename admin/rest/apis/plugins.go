package apis

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"concord/fsm/schema"
)

// renamed gives the fields of plugin configurations that had another name before 1.0.
var renamed = map[string][][2]string{ // plugin → then, now
	"acl":            {{"whitelist", "allow"}, {"blacklist", "deny"}},
	"bot-detection":  {{"whitelist", "allow"}, {"blacklist", "deny"}},
	"ip-restriction": {{"whitelist", "allow"}, {"blacklist", "deny"}},
	"cors":           {{"origin", "origins"}},
}

// redis are the rate-limiting fields that moved into the record "redis".
var redis = []string{"host", "port", "password", "timeout", "database"}

// PluginIn is a plugin as its client of those days wrote it, in today's terms. fields are those of the plugin's configuration today: lists may
// come as text with commas.
func PluginIn(name string, body schema.Record, fields []schema.Field) schema.Record {
	out := maps.Clone(body)
	delete(out, "created_at")
	delete(out, "api_id")
	if id, given := out["consumer_id"]; given {
		delete(out, "consumer_id")
		if out["consumer"] = nil; id != nil && id != "" {
			out["consumer"] = schema.Record{"id": id}
		}
	}
	if text, isText := out["enabled"].(string); isText {
		if b, ok := boolean(text); ok {
			out["enabled"] = b
		}
	}
	config, ok := out["config"].(schema.Record)
	if !ok {
		return out
	}
	config = maps.Clone(config)
	for _, pair := range renamed[name] {
		if v, given := config[pair[0]]; given {
			delete(config, pair[0])
			config[pair[1]] = v
		}
	}
	if name == "rate-limiting" {
		for _, field := range redis {
			if v, given := config["redis_"+field]; given {
				delete(config, "redis_"+field)
				record, _ := config["redis"].(schema.Record)
				record = maps.Clone(record)
				if record == nil {
					record = schema.Record{}
				}
				record[field], config["redis"] = v, record
			}
		}
	}
	for _, f := range fields {
		text, isText := config[f.Name].(string)
		if b, ok := boolean(text); isText && ok && f.Type == schema.Boolean {
			config[f.Name] = b
		}
		if !isText || f.Type != schema.Array && f.Type != schema.Set {
			continue
		}
		parts := []any{}
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				parts = append(parts, part)
			}
		}
		config[f.Name] = parts
	}
	out["config"] = config
	return out
}

// PluginOut is a stored plugin as a client of those days knows it: with api_id and consumer_id, milliseconds, the old names, and without what is
// not set.
func PluginOut(row schema.Record) schema.Record {
	out := schema.Record{}
	for _, field := range []string{"id", "name", "enabled"} {
		out[field] = row[field]
	}
	for field, from := range map[string]string{"api_id": "service", "consumer_id": "consumer"} {
		if ref, ok := row[from].(schema.Record); ok {
			out[field] = ref["id"]
		}
	}
	if created, ok := row["created_at"].(float64); ok {
		out["created_at"] = float64(int64(created * 1000))
	}
	stored, _ := row["config"].(schema.Record)
	config := schema.Record{}
	for field, v := range stored {
		if v != nil {
			config[field] = v
		}
	}
	name, _ := row["name"].(string)
	for _, pair := range renamed[name] {
		v, set := config[pair[1]]
		if !set {
			continue
		}
		delete(config, pair[1])
		if list, ok := v.([]any); ok && pair[0] == "origin" && len(list) == 1 {
			v = list[0]
		}
		config[pair[0]] = v
	}
	if record, ok := config["redis"].(schema.Record); ok && name == "rate-limiting" {
		delete(config, "redis")
		for _, field := range redis {
			if record[field] != nil {
				config["redis_"+field] = record[field]
			}
		}
	}
	out["config"] = config
	return out
}

// thenNames gives the field of an API from which a field of its service or routes is made.
var thenNames = map[string][2]string{ // now → 0.9, 0.10
	"host": {"upstream_url", "upstream_url"}, "port": {"upstream_url", "upstream_url"}, "path": {"upstream_url", "upstream_url"},
	"protocol": {"upstream_url", "upstream_url"}, "hosts": {"request_host", "hosts"}, "paths": {"request_path", "uris"}, "strip_path": {"strip_request_path", "strip_uri"},
	"connect_timeout": {"upstream_connect_timeout", "upstream_connect_timeout"}, "write_timeout": {"upstream_send_timeout", "upstream_send_timeout"},
	"read_timeout": {"upstream_read_timeout", "upstream_read_timeout"},
}

// wordsThen are Kong's refusals before 1.0, after the field's name.
var wordsThen = map[string]string{
	"required field missing": " is required", "unknown field": " is an unknown field", "expected a boolean": " is not a boolean", "expected a number": " is not a number",
	"expected an integer": " is not a number", "expected a string": " is not a string", "expected an array": " is not an array", "expected a record": " is not a table",
}

// TakenPlugin are the errors of a plugin whose id, or whose place, another has.
func TakenPlugin(fields map[string]any) map[string]any {
	for _, field := range []string{"id", "name"} {
		if v, ok := fields[field].(string); ok {
			return map[string]any{field: fmt.Sprintf("already exists with value '%s'", v)}
		}
	}
	return fields
}

// FlatErrors are a row's errors in the shape of those days: text by field, with dots for what is nested.
func (a *API) FlatErrors(fields map[string]any) map[string]any {
	out := map[string]any{}
	flatten(out, "", fields)
	shape := 0
	if a.Lists {
		shape = 1
	}
	for now, then := range thenNames {
		for _, name := range slices.Collect(maps.Keys(out)) {
			if head, _, _ := strings.Cut(name, "."); head == now {
				out[then[shape]] = out[name]
				delete(out, name)
			}
		}
	}
	return out
}

// FlatPluginErrors are a plugin's errors by the names and in the words of those days.
func FlatPluginErrors(name string, fields map[string]any) map[string]any {
	out := map[string]any{}
	flatten(out, "", fields)
	for field, text := range out {
		if then, same := wordsThen[fmt.Sprint(text)]; same {
			out[field] = field[strings.LastIndexByte(field, '.')+1:] + then
		}
	}
	if text, wrong := out["name"].(string); wrong && strings.Contains(text, "not enabled") { // a plugin that is not there was its configuration's fault
		delete(out, "name")
		out["config"] = text
	}
	for _, pair := range renamed[name] {
		for _, field := range slices.Collect(maps.Keys(out)) {
			if rest, ok := strings.CutPrefix(field, "config."+pair[1]); ok && (rest == "" || rest[0] == '.') {
				out["config."+pair[0]+rest] = out[field]
				delete(out, field)
			}
		}
	}
	return out
}

func flatten(out map[string]any, prefix string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			if name == "@entity" {
				name = "message"
			}
			flatten(out, strings.TrimPrefix(prefix+"."+name, "."), inner)
		}
	case schema.Errors:
		flatten(out, prefix, map[string]any(v))
	case []any:
		for _, inner := range v {
			if inner != nil {
				flatten(out, prefix, inner)
			}
		}
	default:
		out[prefix] = v
	}
}
