package main

import "concord/proxy/plugins/acme"

// orders is the acme plugin as the Admin API knows it.
type orders struct{ *acme.Orders }

// Certificates implements rest.ACME.
func (o orders) Certificates(name string) ([]any, error) {
	list, err := o.Orders.Certificates(name)
	out := make([]any, len(list))
	for i, c := range list {
		out[i] = c
	}
	return out, err
}
