package h2

import (
	"strings"
	"testing"
)

func TestGet(t *testing.T) {
	_, addr := startServer(t, Options{Handler: &handlerFunc{serve: echo}})
	c := dialRaw(t, addr).hello()
	c.headers(1, true, append(getFields, "x-a", "b")...)
	a := c.await(1)
	if a.status != "200" || !strings.HasPrefix(a.body, "GET /x?y=1 path=/x host=a.test\nhost: a.test\nx-a: b\n") {
		t.Fatalf("%+v", a)
	}
	if a.header["content-length"] == "" || a.header["date"] == "" || a.header["content-type"] != "text/plain" {
		t.Errorf("%v", a.header)
	}
	c.headers(3, false, postFields...)
	c.data(3, false, "hello ")
	c.data(3, true, "world")
	if a := c.await(3); !strings.HasSuffix(a.body, "\n\nhello world") {
		t.Errorf("%+v", a)
	}
}
