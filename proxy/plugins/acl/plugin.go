// Package acl lets consumers through by the groups they are in.
//
// Groups are rows of the acls table, or those an authentication plugin found (Exchange.Groups); never what a client says.
package acl

import (
	"context"
	"slices"
	"strings"
	"sync"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
)

// Plugin is the acl plugin. All its instances share the consumers' groups.
func Plugin() plugin.Plugin {
	var once sync.Once
	var groups *plugin.Derived[entity.Consumer, membership]
	return plugin.Plugin{
		Info: plugin.Info{
			Name: "acl", Priority: 950, Scopes: plugin.ScopeRoute | plugin.ScopeService,
			Config: schema.Field{Fields: []schema.Field{
				{Name: "allow", Type: schema.Array, Elem: &schema.Field{Type: schema.String},
					Description: "Groups that may pass; all others may not."},
				{Name: "deny", Type: schema.Array, Elem: &schema.Field{Type: schema.String},
					Description: "Groups that may not pass; all others may."},
				{Name: "hide_groups_header", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether the upstream is not told the groups."},
				{Name: "always_use_authenticated_groups", Type: schema.Boolean, Required: true, Default: false,
					Description: "Whether groups found by authentication count before those of the consumer."},
			}},
			Checks: []schema.Check{
				schema.OnlyOneOf{"config.allow", "config.deny"},
				schema.AtLeastOneOf{"config.allow", "config.deny"},
			},
		},
		New: plugin.Typed(func(_ context.Context, env plugin.Env, _ plugin.Config, c *config) (plugin.Instance, error) {
			once.Do(func() { groups = memberships(env.Store) })
			return &instance{config: *c, store: env.Store, groups: groups}, nil
		}),
	}
}

type config struct {
	Allow               []string `json:"allow"`
	Deny                []string `json:"deny"`
	HideGroupsHeader    bool     `json:"hide_groups_header"`
	AlwaysAuthenticated bool     `json:"always_use_authenticated_groups"`
}

type instance struct {
	config
	store  *state.Store
	groups *plugin.Derived[entity.Consumer, membership]
}

// membership is what a consumer's rows in acls say.
type membership struct {
	groups []string // sorted
	header string
}

func memberships(store *state.Store) *plugin.Derived[entity.Consumer, membership] {
	acls := state.TableOf[entity.ACL](store)
	return plugin.NewDerived(store,
		func(c *entity.Consumer) string { return c.ID },
		func(v *state.View, c *entity.Consumer) *membership {
			m := &membership{}
			for row := range acls.Scan(v, "consumer", c.ID) {
				m.groups = append(m.groups, strings.Clone(row.Val.Group)) // the store's own text would keep what is around it, too
			}
			slices.Sort(m.groups)
			m.header = strings.Join(m.groups, ", ")
			return m
		},
		func(row any) string {
			if a, ok := row.(*entity.ACL); ok {
				return a.Consumer.ID
			}
			return ""
		})
}

// Access implements plugin.Accessor.
func (i *instance) Access(x *exchange.Exchange) error {
	groups, header, name := x.Groups, "", plugin.HeaderAuthenticatedGroups
	switch {
	case x.Consumer != nil && (len(groups) == 0 || x.Credential != nil && !i.AlwaysAuthenticated):
		m := i.groups.Of(i.store.View(), x.Consumer.ID, x.Consumer)
		groups, header, name = m.groups, m.header, plugin.HeaderConsumerGroups
		if len(groups) == 0 && len(i.Deny) == 0 {
			return refuse(x)
		}
	case len(groups) == 0:
		return refuse(x)
	default:
		header = strings.Join(groups, ", ")
	}
	if len(i.Deny) > 0 == member(groups, i.Deny, i.Allow) {
		return forbidden()
	}
	if !i.HideGroupsHeader && header != "" {
		x.Request.Header.Set(name, header)
	}
	return nil
}

// member tells whether one of the groups is in the list that is configured.
func member(groups, deny, allow []string) bool {
	list := allow
	if len(deny) > 0 {
		list = deny
	}
	for _, g := range groups {
		if slices.Contains(list, g) {
			return true
		}
	}
	return false
}

// refuse answers a request without any group: 401 as long as authentication could help.
func refuse(x *exchange.Exchange) error {
	if x.Credential == nil {
		return plugin.Refuse(401, plugin.Message(401), "")
	}
	return forbidden()
}

func forbidden() error { return plugin.Refuse(403, "You cannot consume this service", "") }
