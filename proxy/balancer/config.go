package balancer

import (
	"crypto/tls"
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
	checked bool                   // health is looked at
	breaker *entity.CircuitBreaker // nil: none

	certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error) // of probes
}

// rules say what outcomes count and how often.
type rules struct {
	good, bad statuses
	limits    [timeout + 1]int // by outcome; 0: not counted
	timeout   int              // a status that is as good as a timeout, unless it is listed; 0: none
}

// statuses is a set of HTTP statuses, which are below 1,000. Every upstream has four, so they are small.
type statuses [16]uint64

func (s *statuses) add(list []int) {
	for _, n := range list {
		s[n>>6&15] |= 1 << (n & 63)
	}
}

func (s *statuses) has(n int) bool { return s[n>>6&15]>>(n&63)&1 != 0 }

func newConfig(row *entity.Upstream) *config {
	h := &row.Healthchecks
	c := &config{row: row, breaker: row.CircuitBreaker, sources: [2]source{
		{row.HashOn, row.HashOnHeader, row.HashOnQueryArg, row.HashOnURICapture},
		{row.HashFallback, row.HashFallbackHeader, row.HashFallbackQueryArg, row.HashFallbackURICapture},
	}}
	c.passive = newRules(&h.Passive.Healthy, &h.Passive.Unhealthy)
	c.passive.timeout = http.StatusGatewayTimeout // Kong: whoever says it
	c.active = newRules(&h.Active.Healthy, &h.Active.Unhealthy)
	p := &h.Passive.Unhealthy
	c.checked = h.Active.Healthy.Interval != 0 || h.Active.Unhealthy.Interval != 0 ||
		p.TCPFailures != 0 || p.Timeouts != 0 || p.HTTPFailures != 0
	return c
}

func newRules(good *entity.Successes, bad *entity.Failures) (r rules) {
	r.good.add(good.HTTPStatuses)
	r.bad.add(bad.HTTPStatuses)
	r.limits = [...]int{success: good.Successes, httpFailure: bad.HTTPFailures, tcpFailure: bad.TCPFailures, timeout: bad.Timeouts}
	return r
}

// status is what an answer says. A status in both lists is a good one (Kong).
func (r *rules) status(n int) outcome {
	switch {
	case r.good.has(n):
		return success
	case r.bad.has(n):
		return httpFailure
	case n != 0 && n == r.timeout:
		return timeout
	}
	return nothing
}

// sameProbes tells whether running probes may go on.
func (c *config) sameProbes(o *config) bool {
	return c.row.HostHeader == o.row.HostHeader && reflect.DeepEqual(c.row.Healthchecks.Active, o.row.Healthchecks.Active)
}
