package rest

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"concord/admin/service"
	"concord/cluster"
)

// Membership changes who belongs to the cluster; *cluster.Node has it.
type Membership interface {
	CreateToken(context.Context, cluster.TokenOptions) (string, error)
	Join(ctx context.Context, addr, token string, discard bool) error
	Leave(context.Context) error
	Remove(ctx context.Context, nodeID string) error
}

// Cluster is what the Admin API needs of the cluster.
type Cluster interface {
	Membership
	ID() string
	Status(context.Context) cluster.Status
	TransferLeadership(ctx context.Context, to string) error
}

func (a *API) clusterRoutes() {
	if a.o.Cluster == nil {
		return
	}
	a.router.add(http.MethodGet, "/cluster/status", func(c *call) (answer, error) {
		return answer{status: http.StatusOK, body: a.o.Cluster.Status(c.r.Context())}, nil
	})
	a.router.add(http.MethodPost, "/cluster/tokens", a.needs(service.ManageCluster, a.createToken))
	a.router.add(http.MethodPost, "/cluster/join", a.needs(service.ManageCluster, a.join))
	a.router.add(http.MethodPost, "/cluster/leave", a.act(func(c *call, _ *arguments) error { return a.o.Cluster.Leave(c.r.Context()) }))
	a.router.add(http.MethodDelete, "/cluster/nodes/{node}", a.act(func(c *call, _ *arguments) error {
		id, err := a.nodeID(c, c.params[0])
		if err != nil {
			return err
		}
		return a.o.Cluster.Remove(c.r.Context(), id)
	}))
	a.router.add(http.MethodPost, "/cluster/leader", a.act(func(c *call, args *arguments) error {
		to := args.text("to")
		if err := args.err(); err != nil {
			return err
		}
		if to != "" {
			var err error
			if to, err = a.nodeID(c, to); err != nil {
				return err
			}
		}
		return a.o.Cluster.TransferLeadership(c.r.Context(), to)
	}))
}

// needs wraps a handler that does not go through the service's entities, which would ask who may do it.
func (a *API) needs(p service.Power, h handler) handler {
	return func(c *call) (answer, error) {
		if err := a.o.Service.Authorize(c.r.Context(), p); err != nil {
			return answer{}, err
		}
		return h(c)
	}
}

// act runs something that changes the cluster's members and answers 204.
func (a *API) act(do func(*call, *arguments) error) handler {
	return a.needs(service.ManageCluster, func(c *call) (answer, error) {
		args, err := readArguments(c)
		if err != nil {
			return answer{}, err
		}
		if err := do(c, args); err != nil {
			return answer{}, clusterError(err)
		}
		return answer{status: http.StatusNoContent}, nil
	})
}

func (a *API) createToken(c *call) (answer, error) {
	args, err := readArguments(c)
	if err != nil {
		return answer{}, err
	}
	o := cluster.TokenOptions{Role: args.text("role"), TTL: args.duration("ttl"), Uses: args.count("uses")}
	if o.Role != "" && o.Role != cluster.Voter && o.Role != cluster.Nonvoter {
		args.refuse("role", "expected one of: voter, nonvoter")
	}
	if err := args.err(); err != nil {
		return answer{}, err
	}
	token, err := a.o.Cluster.CreateToken(c.r.Context(), o)
	if err != nil {
		return answer{}, clusterError(err)
	}
	return answer{status: http.StatusCreated, body: map[string]string{"token": token}}, nil
}

func (a *API) join(c *call) (answer, error) {
	args, err := readArguments(c)
	if err != nil {
		return answer{}, err
	}
	addr, token, discard := args.required("address"), args.required("token"), args.flag("discard_local_data")
	if err := args.err(); err != nil {
		return answer{}, err
	}
	if err := a.o.Cluster.Join(c.r.Context(), addr, token, discard); err != nil {
		return answer{}, clusterError(err)
	}
	return answer{status: http.StatusOK, body: a.o.Cluster.Status(c.r.Context())}, nil
}

// nodeID resolves a node's id or name.
func (a *API) nodeID(c *call, ref string) (string, error) {
	var found []string
	for _, n := range a.o.Cluster.Status(c.r.Context()).Nodes {
		if n.ID == ref {
			return ref, nil
		}
		if n.Name == ref {
			found = append(found, n.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", cluster.ErrUnknownNode
	case 1:
		return found[0], nil
	}
	return "", &statusError{http.StatusConflict, "several nodes are called " + ref, "use the node's id, as cluster status shows it"}
}

// clusterError maps the cluster's errors to HTTP.
func clusterError(err error) error {
	var refused *cluster.RefusedError
	var lost *cluster.NoLeaderError
	var direct *statusError
	var known *service.Error
	switch {
	case errors.As(err, &direct), errors.As(err, &known):
		return err
	case errors.Is(err, cluster.ErrUnknownNode):
		return &statusError{http.StatusNotFound, err.Error(), ""}
	case errors.Is(err, cluster.ErrHoldsData):
		return &statusError{http.StatusConflict, err.Error(), ""}
	case errors.As(err, &refused):
		return &statusError{http.StatusBadRequest, err.Error(), ""}
	case errors.As(err, &lost), errors.Is(err, cluster.ErrNotLeader), errors.Is(err, cluster.ErrOutcomeUnknown),
		errors.Is(err, cluster.ErrClosed), errors.Is(err, context.DeadlineExceeded):
		return &service.Error{Kind: service.Unavailable, Message: err.Error()}
	}
	return &statusError{http.StatusInternalServerError, err.Error(), ""}
}

// arguments are the body of a cluster request, with the complaints about them. Forms give text, JSON gives types; both are taken.
type arguments struct {
	values map[string]any
	bad    map[string]any
}

func readArguments(c *call) (*arguments, error) {
	rec, _, err := readOptional(c.w, c.r)
	return &arguments{values: rec, bad: map[string]any{}}, err
}

func (a *arguments) refuse(name, why string) { a.bad[name] = why }

func (a *arguments) err() error {
	for _, name := range sortedKeys(a.values) {
		a.refuse(name, "unknown field")
	}
	for _, name := range sortedKeys(a.bad) {
		return &service.Error{Kind: service.SchemaViolation, Name: "schema violation", Fields: a.bad,
			Message: "schema violation (" + name + ": " + a.bad[name].(string) + ")"}
	}
	return nil
}

func (a *arguments) take(name string) any {
	v := a.values[name]
	delete(a.values, name)
	if v == "" {
		return nil
	}
	return v
}

func (a *arguments) text(name string) string {
	v := a.take(name)
	s, ok := v.(string)
	if v != nil && !ok {
		a.refuse(name, "expected a string")
	}
	return s
}

func (a *arguments) required(name string) string {
	s := a.text(name)
	if s == "" && a.bad[name] == nil {
		a.refuse(name, "required field missing")
	}
	return s
}

func (a *arguments) flag(name string) bool {
	switch a.take(name) {
	case nil, false, "false":
		return false
	case true, "true":
		return true
	}
	a.refuse(name, "expected a boolean")
	return false
}

func (a *arguments) count(name string) int {
	v := a.take(name)
	if s, ok := v.(string); ok {
		v = number(s)
	}
	n, ok := v.(float64)
	if v != nil && (!ok || n < 1 || n > 1e6 || n != float64(int(n))) {
		a.refuse(name, "value should be between 1 and 1000000")
		return 0
	}
	return int(n)
}

// duration takes Go's notation ("1h30m") or seconds.
func (a *arguments) duration(name string) time.Duration {
	v := a.take(name)
	if s, ok := v.(string); ok {
		if d, err := time.ParseDuration(s); err == nil && d > 0 {
			return d
		}
		v = number(s)
	}
	n, ok := v.(float64)
	if v != nil && (!ok || n < 1 || n > 1e9) {
		a.refuse(name, "expected a duration like 1h or 30m, or seconds")
		return 0
	}
	return time.Duration(n * float64(time.Second))
}

// number is the number in a form's text; false, which nothing accepts, when it is none.
func number(s string) any {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return false
	}
	return n
}
