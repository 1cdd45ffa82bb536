package balancer

import (
	"net/http"
	"reflect"

	"concord/fsm/entity"
)

// config is an upstream's row made ready for use.
type config struct {
	row     *entity.Upstream
	sources [2]source // of the value to hash
	passive rules
	active  rules
	checked bool // health is looked at
}

// rules say what outcomes count and how often.
type rules struct {
	statuses [1000]outcome
	limits   [timeout + 1]int // by outcome; 0: not counted
}

func newConfig(row *entity.Upstream) *config {
	h := &row.Healthchecks
	c := &config{row: row, sources: [2]source{
		{row.HashOn, row.HashOnHeader, row.HashOnQueryArg, row.HashOnURICapture},
		{row.HashFallback, row.HashFallbackHeader, row.HashFallbackQueryArg, row.HashFallbackURICapture},
	}}
	c.passive.set(&h.Passive.Healthy, &h.Passive.Unhealthy)
	if c.passive.statuses[http.StatusGatewayTimeout] == nothing {
		c.passive.statuses[http.StatusGatewayTimeout] = timeout // Kong: whoever says it
	}
	c.active.set(&h.Active.Healthy, &h.Active.Unhealthy)
	p := &h.Passive.Unhealthy
	c.checked = h.Active.Healthy.Interval != 0 || h.Active.Unhealthy.Interval != 0 ||
		p.TCPFailures != 0 || p.Timeouts != 0 || p.HTTPFailures != 0
	return c
}

func (r *rules) set(good *entity.Successes, bad *entity.Failures) {
	for _, s := range bad.HTTPStatuses {
		r.statuses[s%len(r.statuses)] = httpFailure
	}
	for _, s := range good.HTTPStatuses { // a status in both lists is a good one (Kong)
		r.statuses[s%len(r.statuses)] = success
	}
	r.limits = [...]int{success: good.Successes, httpFailure: bad.HTTPFailures, tcpFailure: bad.TCPFailures, timeout: bad.Timeouts}
}

func (r *rules) status(s int) outcome {
	if s < 0 || s >= len(r.statuses) {
		return nothing
	}
	return r.statuses[s]
}

// sameProbes tells whether running probes may go on.
func (c *config) sameProbes(o *config) bool {
	return c.row.HostHeader == o.row.HostHeader && reflect.DeepEqual(c.row.Healthchecks.Active, o.row.Healthchecks.Active)
}
