// Package all is the list of the plugins that are part of the gateway.
package all

import (
	"concord/proxy/plugin"
	"concord/proxy/plugins/acl"
	"concord/proxy/plugins/basicauth"
	"concord/proxy/plugins/correlationid"
	"concord/proxy/plugins/jwt"
	"concord/proxy/plugins/keyauth"
	"concord/proxy/plugins/requestsizelimiting"
	"concord/proxy/plugins/requesttermination"
)

// Plugins lists them by name. Call it once per program: a plugin's instances share what they cache.
func Plugins() []plugin.Plugin {
	return []plugin.Plugin{
		acl.Plugin(),
		basicauth.Plugin(),
		correlationid.Plugin(),
		jwt.Plugin(),
		keyauth.Plugin(),
		requestsizelimiting.Plugin(),
		requesttermination.Plugin(),
	}
}
