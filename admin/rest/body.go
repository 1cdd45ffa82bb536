package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"

	"concord/admin/service"
	"concord/fsm/schema"
)

// maxBody is Kong's limit on the body of an Admin API request.
const maxBody = 10 << 20

// statusError is a refusal that HTTP itself has a status for.
type statusError struct {
	status        int
	message, hint string
}

func (e *statusError) Error() string { return e.message }

func notAllowed() error { return &statusError{http.StatusMethodNotAllowed, "Method not allowed", ""} }

func malformed(message string) *service.Error {
	return &service.Error{Kind: service.Malformed, Message: message}
}

// readBody decodes a request's entity. form reports that its values are text still. Nothing is no JSON (Kong).
func readBody(w http.ResponseWriter, r *http.Request) (rec schema.Record, form bool, err error) {
	return decodeBody(w, r, false)
}

// readOptional is readBody for what is done without a body as well, whatever type the client says that nothing has.
func readOptional(w http.ResponseWriter, r *http.Request) (rec schema.Record, form bool, err error) {
	return decodeBody(w, r, true)
}

func decodeBody(w http.ResponseWriter, r *http.Request, optional bool) (rec schema.Record, form bool, err error) {
	types := r.Header.Values("Content-Type")
	if len(types) > 1 {
		return nil, false, malformed("Multiple Content-Type headers not allowed")
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, false, &statusError{http.StatusUnsupportedMediaType, "Content-Encoding " + enc + " is not understood", "send the body as it is"}
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, false, &statusError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", maxBody), ""}
	case err != nil:
		return nil, false, malformed("the body ended early")
	}
	kind := ""
	if len(types) > 0 {
		kind, _, _ = strings.Cut(types[0], ";")
		kind = strings.ToLower(strings.TrimSpace(kind))
	}
	if len(data) == 0 && (optional || kind != "application/json") {
		return schema.Record{}, false, nil
	}
	switch kind {
	case "application/json":
		rec, err = readJSON(data)
		return rec, false, err
	case "application/x-www-form-urlencoded":
		fields, err := parseURLEncoded(string(data))
		if err != nil {
			return nil, false, err
		}
		rec, err = nest(fields)
		return rec, true, err
	case "multipart/form-data":
		fields, err := parseMultipart(types[0], data)
		if err != nil {
			return nil, false, err
		}
		rec, err = nest(fields)
		return rec, true, err
	}
	hint := "send Content-Type: application/json, application/x-www-form-urlencoded or multipart/form-data"
	if kind == "" {
		return nil, false, &statusError{http.StatusUnsupportedMediaType, "the body has no Content-Type", hint}
	}
	return nil, false, &statusError{http.StatusUnsupportedMediaType, fmt.Sprintf("Content-Type %q is not understood", kind), hint}
}

func readJSON(data []byte) (schema.Record, error) {
	rec, err := schema.Decode(data)
	if err == nil {
		return rec, nil
	}
	e := malformed("Cannot parse JSON body")
	e.Hint = err.Error()
	if text := strings.TrimSpace(string(data)); strings.HasPrefix(text, "[") {
		e.Hint = "the body must be one JSON object, not an array"
	} else if json.Valid(data) && !strings.HasPrefix(text, "{") {
		e.Hint = "the body must be one JSON object"
	}
	return nil, e
}

func parseMultipart(contentType string, data []byte) ([]field, error) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil || params["boundary"] == "" {
		return nil, malformed("multipart/form-data without a boundary")
	}
	var fields []field
	parts := multipart.NewReader(strings.NewReader(string(data)), params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return fields, nil
		}
		if err != nil {
			return nil, malformed("Cannot parse multipart body: " + err.Error())
		}
		if len(fields) == maxArgs {
			return nil, malformed("Too many arguments")
		}
		value, err := io.ReadAll(part)
		if err != nil {
			return nil, malformed("Cannot parse multipart body: " + err.Error())
		}
		f := field{name: part.FormName(), value: string(value)}
		if f.name == "" {
			return nil, malformed("a part of the multipart body has no name")
		}
		if kind, _, _ := strings.Cut(part.Header.Get("Content-Type"), ";"); strings.EqualFold(strings.TrimSpace(kind), "application/json") {
			var v any
			if err := json.Unmarshal(value, &v); err != nil {
				return nil, malformed(fmt.Sprintf("Cannot parse JSON of part %q", f.name))
			}
			f.value = v
		}
		fields = append(fields, f)
	}
}
