package rest

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"concord/admin/service"
	"concord/fsm/entity"
)

// ACME is the acme plugin of this node. Errors with a method NotFound that says so mean that it is not configured.
type ACME interface {
	// Obtain returns when there is a certificate for the name.
	Obtain(ctx context.Context, name string) error
	// Test asks for a challenge under the name, as the ACME server will.
	Test(ctx context.Context, name string) error
	// Renew begins to renew what is due.
	Renew() error
	// Certificates describes the certificates that are kept, or that of one name, without their keys.
	Certificates(name string) ([]any, error)
}

// acmeRoutes are the endpoints that Kong's plugin adds.
func (a *API) acmeRoutes() {
	if a.o.ACME == nil {
		return
	}
	a.router.add(http.MethodPost, "/acme", a.obtainCertificate)
	a.router.add(http.MethodPatch, "/acme", a.renewCertificates)
	a.router.add(http.MethodGet, "/acme/certificates", a.acmeCertificates)
	a.router.add(http.MethodGet, "/acme/certificates/{certificates}", a.acmeCertificates)
}

func acmeRow(name string) service.Target {
	return service.Target{Entity: entity.ACMEStorageTable, Ref: "cert:" + name}
}

func (a *API) obtainCertificate(c *call) (answer, error) {
	if err := a.o.Service.AuthorizeWrite(c.r.Context(), acmeRow("*")); err != nil {
		return answer{}, err
	}
	body, _, err := readOptional(c.w, c.r)
	if err != nil {
		return answer{}, err
	}
	host, _ := body["host"].(string)
	if host == "" || strings.ContainsAny(host, ":/ ,") {
		return answer{}, malformed("host must be provided and containing a single domain")
	}
	if err := a.o.Service.AuthorizeWrite(c.r.Context(), acmeRow(host)); err != nil {
		return answer{}, err
	}
	if test := body["test_http_challenge_flow"]; test == true || test == "true" {
		if err := a.o.ACME.Test(c.r.Context(), host); err != nil {
			return answer{}, acmeError(http.StatusBadRequest, "problem found running sanity check for "+host+": ", err)
		}
		return answer{status: http.StatusOK, body: map[string]string{"message": "sanity test for host " + host + " passed"}}, nil
	}
	if err := a.o.ACME.Obtain(c.r.Context(), host); err != nil {
		return answer{}, acmeError(http.StatusInternalServerError, "failed to update certificate for host "+host+": ", err)
	}
	return answer{status: http.StatusCreated, body: map[string]string{"message": "certificate for host " + host + " is created"}}, nil
}

func (a *API) renewCertificates(c *call) (answer, error) {
	err := a.o.Service.AuthorizeWrite(c.r.Context(), acmeRow("*"))
	if err == nil {
		err = acmeError(http.StatusInternalServerError, "", a.o.ACME.Renew())
	}
	return answer{status: http.StatusAccepted, body: map[string]string{"message": "Renewal process started successfully"}}, err
}

func (a *API) acmeCertificates(c *call) (answer, error) {
	// Whoever may not list the rows may not see this either.
	if _, err := a.o.Service.List(c.r.Context(), service.Target{Entity: entity.ACMEStorageTable}, service.ListOptions{Size: "1"}); err != nil {
		return answer{}, err
	}
	name := ""
	if len(c.params) > 0 {
		name = c.params[0]
	}
	list, err := a.o.ACME.Certificates(name)
	switch {
	case err != nil:
		return answer{}, acmeError(http.StatusInternalServerError, "", err)
	case name == "":
		return answer{status: http.StatusOK, body: map[string]any{"data": list}}, nil
	case len(list) == 0:
		return answer{}, &statusError{http.StatusNotFound, "Certificate for host " + name + " not found in storage", ""}
	}
	return answer{status: http.StatusOK, body: map[string]any{"data": list[0]}}, nil
}

func acmeError(status int, what string, err error) error {
	var missing interface{ NotFound() bool }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &missing) && missing.NotFound():
		return &statusError{http.StatusNotFound, err.Error(), ""}
	}
	return &statusError{status, what + err.Error(), ""}
}
