package rest

import (
	"bytes"
	"net/http"
	"strconv"
	"time"
)

const (
	auditPage = 1000
	auditWait = 30 * time.Second
	auditPoll = 200 * time.Millisecond
)

// auditRoutes show the audit log.
func (a *API) auditRoutes() {
	a.router.add(http.MethodGet, "/admin/audit", a.audit)
}

// audit answers the records behind ?after=, at most ?size= of them, and with ?wait=1 waits a while until there is one.
func (a *API) audit(c *call) (answer, error) {
	number := func(name string, def, most uint64) (uint64, error) {
		text := c.query(name)
		if text == "" {
			return def, nil
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n > most {
			return 0, malformed(name + " must be a number up to " + strconv.FormatUint(most, 10))
		}
		return n, nil
	}
	after, err := number("after", 0, 1<<62)
	if err != nil {
		return answer{}, err
	}
	size, err := number("size", auditPage, auditPage)
	if err != nil {
		return answer{}, err
	}
	deadline := time.Now().Add(auditWait)
	for {
		list, err := a.o.Service.Audit(c.r.Context(), after, int(size))
		if err != nil {
			return answer{}, err
		}
		if len(list.Records) > 0 || !flag(c, "wait") || time.Now().After(deadline) {
			var b bytes.Buffer
			b.WriteString(`{"data":[`)
			b.Write(bytes.Join(list.Records, []byte(",")))
			b.WriteString(`],"head":`)
			if list.Head == nil {
				list.Head = []byte("null")
			}
			b.Write(list.Head)
			b.WriteByte('}')
			return answer{status: http.StatusOK, body: b.Bytes(), index: list.Index}, nil
		}
		select {
		case <-c.r.Context().Done():
			return answer{}, c.r.Context().Err()
		case <-time.After(auditPoll):
		}
	}
}
