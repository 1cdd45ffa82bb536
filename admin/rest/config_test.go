package rest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
)

// A dump that is sent in many portions is one text, whatever stands where they meet.
func TestDumpInPortions(t *testing.T) {
	g := newGateway()
	var rows []string
	for i := range 120 {
		id, _ := json.Marshal(strings.Repeat("日本é<&>\"\\\n\u2028😀", i) + fmt.Sprint(i))
		rows = append(rows, fmt.Sprintf(`{"username":"user-%d","custom_id":%s}`, i, id))
	}
	if resp := g.request("POST", "/config", "application/json", `{"_format_version":"3.0","consumers":[`+strings.Join(rows, ",")+`]}`); resp.StatusCode != http.StatusCreated {
		t.Fatal(resp.Status)
	}
	get := func(accept string) string {
		r := httptest.NewRequest("GET", "http://localhost/config", http.NoBody)
		r.Header.Set("Accept", accept)
		resp, _ := g.do(r)
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Length") != strconv.Itoa(len(body)) {
			t.Fatalf("%v %s: %d bytes, Content-Length %s", err, resp.Status, len(body), resp.Header.Get("Content-Length"))
		}
		return string(body)
	}
	text := get("application/yaml")
	if len(text) < 100<<10 {
		t.Fatalf("%d bytes are too few for this test", len(text))
	}
	var boxed struct{ Config string }
	if err := json.Unmarshal([]byte(get("application/json")), &boxed); err != nil || boxed.Config != text {
		t.Errorf("%v; as JSON %d bytes, as YAML %d", err, len(boxed.Config), len(text))
	}
	resp := g.request("POST", "/config?dry_run=1", "application/yaml", text)
	body, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(body), `"unchanged":120`) {
		t.Errorf("taken back: %s %.300s", resp.Status, body)
	}
}
