package entity

import "slices"

// All lists every entity by table number. A number is never reused.
func All() []Def {
	return slices.Concat([]Def{
		services,
		routes,
		consumers,
		plugins,
		jwtSecrets,
		keyAuthCredentials,
		basicAuthCredentials,
		acls,
	}, balancing(), []Def{
		certificates,
		snis,
		caCertificates,
		vaults,
		keys,
		keySets,
		hmacAuthCredentials,
		oauth2Credentials,
		oauth2Tokens,
		oauth2AuthorizationCodes,
		sessions,
		acmeStorage,
		consumerGroups,
		consumerGroupConsumers,
	}, clusterDefs(), adminDefs(), auditDefs())
}

// Lookup finds an entity by its plural name.
func Lookup(name string) (Def, bool) {
	for _, d := range All() {
		if d.Schema.Name == name {
			return d, true
		}
	}
	return Def{}, false
}
