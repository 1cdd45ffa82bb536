package entity

// All lists every entity by table number. A number is never reused.
func All() []Def {
	return append([]Def{
		services,
		routes,
		consumers,
		plugins,
		jwtSecrets,
		keyAuthCredentials,
		basicAuthCredentials,
		acls,
	}, clusterDefs()...)
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
