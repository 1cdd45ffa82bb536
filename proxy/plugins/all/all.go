// Package all is the list of the plugins that are part of the gateway.
package all

import (
	"concord/proxy/plugin"
	"concord/proxy/plugins/acl"
	"concord/proxy/plugins/acme"
	"concord/proxy/plugins/basicauth"
	"concord/proxy/plugins/botdetection"
	"concord/proxy/plugins/correlationid"
	"concord/proxy/plugins/cors"
	"concord/proxy/plugins/grpcweb"
	"concord/proxy/plugins/iprestriction"
	"concord/proxy/plugins/jwt"
	"concord/proxy/plugins/keyauth"
	"concord/proxy/plugins/mtlsauth"
	"concord/proxy/plugins/prometheus"
	"concord/proxy/plugins/proxyprotocol"
	"concord/proxy/plugins/ratelimiting"
	"concord/proxy/plugins/requestsizelimiting"
	"concord/proxy/plugins/requesttermination"
	"concord/ratelimit"
)

// Plugins lists them by name. Call it once per program: a plugin's instances share what they cache. Requests are counted in counters, those that
// rate-limiting limits on this node in limits; orders get certificates.
func Plugins(counters *prometheus.Registry, limits *ratelimit.Local, orders *acme.Orders) []plugin.Plugin {
	return []plugin.Plugin{
		acl.Plugin(),
		orders.Plugin(),
		basicauth.Plugin(),
		botdetection.Plugin(),
		correlationid.Plugin(),
		cors.Plugin(),
		grpcweb.Plugin(),
		iprestriction.Plugin(),
		jwt.Plugin(),
		keyauth.Plugin(),
		mtlsauth.Plugin(),
		counters.Plugin(),
		proxyprotocol.Plugin(),
		ratelimiting.Plugin(limits),
		requestsizelimiting.Plugin(),
		requesttermination.Plugin(),
	}
}
