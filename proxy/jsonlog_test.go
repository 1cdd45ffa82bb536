package proxy

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/entity"
	"concord/proxy/exchange"
	"concord/test/harness"
)

func loggedExchange(set func(*exchange.Exchange)) *exchange.Exchange {
	x := &exchange.Exchange{Start: time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC), RequestID: "0123", BytesSent: 500, BytesReceived: 90}
	x.Conn.Peer = netip.MustParseAddrPort("[::ffff:10.0.0.9]:1")
	r := &x.Request
	r.Method, r.Target, r.Scheme, r.Host, r.Major, r.Minor = "GET", "/x", "https", "a.test", 1, 1
	x.Response.Status = 200
	x.Response.SetBody([]byte("hello"))
	if set != nil {
		set(x)
	}
	return x
}

func TestJSONLine(t *testing.T) {
	const head = `{"time":"2026-01-02T03:04:05.678Z","client_ip":"10.0.0.9"`
	const asked = `,"method":"GET","scheme":"https","host":"a.test","uri":"/x","protocol":"HTTP/1.1"`
	const answered = `,"status":200,"body_bytes_sent":5,"bytes_received":90,"duration_ms":D`
	const tail = `,"request_id":"0123"}`
	for _, c := range []struct {
		name string
		set  func(*exchange.Exchange)
		want string
	}{
		{"own answer", nil, head + asked + answered + tail},
		{"proxied", func(x *exchange.Exchange) {
			x.Proxied, x.Tries, x.Peer = true, 2, netip.MustParseAddrPort("127.0.0.1:9000")
			x.SentAt = x.Start
			x.HeadersAt = x.Start.Add(1234567 * time.Nanosecond)
			x.Service, x.Route = &entity.Service{ID: "s", Name: "shop"}, &entity.Route{ID: "r"}
			x.SetConsumer(&entity.Consumer{ID: "c", Username: "kim"})
			x.SetCredential(exchange.Credential{Kind: "basic-auth", Identifier: "kim@"})
			x.ClientIP = netip.MustParseAddr("2001:db8::1")
		}, `{"time":"2026-01-02T03:04:05.678Z","client_ip":"2001:db8::1","user":"kim@"` + asked + answered +
			`,"upstream_ms":1.234,"upstream":"127.0.0.1:9000","tries":2,"service":"shop","route":"r","consumer":"kim"` + tail},
		{"a key is no user", func(x *exchange.Exchange) {
			x.SetCredential(exchange.Credential{Kind: "key-auth", Identifier: "secret"})
		}, head + asked + answered + tail},
		{"refused before it was understood", func(x *exchange.Exchange) { x.Request.Method, x.Response.Status = "", 400 },
			head + strings.Replace(answered, "200", "400", 1) + tail},
		{"injection", func(x *exchange.Exchange) {
			x.Request.Target = "/a\"},{\"status\":1\n\r\t\x00\x1b[31m\x7f\u009b\u2028"
			x.Request.Header.Add("User-Agent", "é\xff\U0001F600\\")
			x.Request.Host = "a.test"
		}, head + strings.Replace(asked, `"/x"`, `"/a\"},{\"status\":1\u000a\u000d\u0009\u0000\u001b[31m\u007f\u009b\u2028"`, 1) + answered +
			`,"user_agent":"\u00e9\ufffd\ud83d\ude00\\"` + tail},
		{"credentials", func(x *exchange.Exchange) {
			x.Request.Target = "/x?a=1&API%4bEY=\"b\"&mine=2&n=3"
			x.Request.Header.Add("Referer", "http://r/?token=t&é=1")
		}, head + strings.Replace(asked, `"/x"`, `"/x?a=1&API%4bEY=REDACTED&mine=REDACTED&n=3"`, 1) + answered + `,"referer":"http://r/?token=REDACTED&\u00e9=1"` + tail},
	} {
		t.Run(c.name, func(t *testing.T) {
			line := appendJSONLine(nil, loggedExchange(c.set), []string{"mine"})
			got := regexp.MustCompile(`"duration_ms":[0-9]+\.[0-9]{3}`).ReplaceAllString(string(line), `"duration_ms":D`)
			if d := cmp.Diff(c.want+"\n", got); d != "" {
				t.Error(d)
			}
			if !json.Valid(line) {
				t.Error("no JSON")
			}
		})
	}
}

// FuzzJSONLine: whatever a client sends, its request has one line, in ASCII, that decodes to what was sent.
func FuzzJSONLine(f *testing.F) {
	f.Add("/x?apikey=1", "agent\n\x1b", "http://r/?a=b&token=c")
	f.Add("\xff\"}\r\n{", "\u2028\U0010FFFF", "?&=&")
	f.Fuzz(func(t *testing.T, target, agent, referer string) {
		line := appendJSONLine(nil, loggedExchange(func(x *exchange.Exchange) {
			x.Request.Target = target
			x.Request.Header.Fields = append(x.Request.Header.Fields, exchange.Field{Name: "User-Agent", Value: agent}, // as it is: Add would clean it
				exchange.Field{Name: "Referer", Value: referer})
		}), nil)
		inside, ok := bytes.CutSuffix(line, []byte("\n"))
		if !ok || bytes.ContainsFunc(inside, func(r rune) bool { return r < 0x20 || r >= 0x7f }) {
			t.Fatalf("%q", line)
		}
		var got struct {
			Agent string `json:"user_agent"`
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if want := string([]rune(agent)); got.Agent != want {
			t.Fatalf("%q became %q", want, got.Agent)
		}
	})
}

func TestJSONLineDoesNotAllocate(t *testing.T) {
	x := loggedExchange(func(x *exchange.Exchange) { x.Request.Header.Add("User-Agent", "curl/8") })
	b := make([]byte, 0, 4096)
	harness.NoAllocs(t, "a line", func() { b = appendJSONLine(b[:0], x, nil) })
}

// TestAccessLogFails: a full disk is told once, and so is that there is room again.
func TestAccessLogFails(t *testing.T) {
	var out bytes.Buffer
	l := &AccessLog{log: slog.New(slog.NewTextHandler(&out, nil))}
	for _, w := range []io.Writer{failing{}, failing{}, failing{}, io.Discard, io.Discard} {
		l.w, l.buf = w, append(l.buf, "line\n"...)
		l.flush()
	}
	if text := out.String(); strings.Count(text, "cannot be written") != 1 || strings.Count(text, "written again") != 1 {
		t.Errorf("the log says %s", text)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, syscall.ENOSPC }
