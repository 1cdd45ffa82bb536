package rest

import (
	"fmt"
	"net/http"
)

// wasmRoutes are those of WebAssembly filters, which Kong has off unless told otherwise: each refuses whatever is asked. decK and Kong's ingress
// controller ask, and take this 400 for "there are none".
func (a *API) wasmRoutes() {
	refuse := func(*call) (answer, error) {
		return answer{}, malformed("this endpoint is only available when wasm is enabled")
	}
	for _, path := range []string{
		"/filter-chains", "/filter-chains/{filter_chains}", "/filter-chains/{filter_chains}/route", "/filter-chains/{filter_chains}/service",
		"/routes/{routes}/filter-chains", "/routes/{routes}/filter-chains/{filter_chains}",
		"/services/{services}/filter-chains", "/services/{services}/filter-chains/{filter_chains}",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			a.router.add(method, path, refuse)
		}
	}
	for _, which := range []string{"all", "enabled", "disabled"} {
		a.router.add(http.MethodGet, "/routes/{routes}/filters/"+which, refuse)
	}
	a.router.add(http.MethodGet, "/schemas/filters/{name}", func(c *call) (answer, error) {
		return answer{}, &statusError{http.StatusNotFound, fmt.Sprintf("Filter '%s' not found", c.params[0]), ""}
	})
}
