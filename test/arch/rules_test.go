// Package arch checks the rules of the house that no compiler checks: who may import whom, that every package says what it
// is, that nothing runs before main. It tests the source, not the product.
package arch

// A rule says that packages matching Of, and everything they import directly or indirectly, stay clear of the packages in
// Never. A pattern is an import path; "/..." after it includes all below; Except takes packages out of Of.
type rule struct {
	Name   string
	Of     []string
	Except []string
	Never  []string
	Why    string
}

var rules = []rule{
	{
		Name: "cmd-is-the-top", Of: []string{"concord/fsm/...", "concord/cluster/...", "concord/ratelimit/...", "concord/proxy/...", "concord/admin/...", "concord/proto/..."},
		Never: []string{"concord/cmd/...", "concord/test/..."},
		Why:   "cmd wires the parts and tests look at them from outside: a part that knew either could not be used without it",
	},
	{
		Name: "schema-is-a-leaf", Of: []string{"concord/fsm/schema"},
		Never: []string{"concord/fsm/entity", "concord/fsm/state", "concord/fsm/seal", "concord/fsm/command", "concord/fsm", "concord/cluster/...", "concord/proxy/...", "concord/admin/...", "net/http"},
		Why:   "schemas are data that every other room derives from",
	},
	{
		Name: "entity-knows-schemas-only", Of: []string{"concord/fsm/entity"},
		Never: []string{"concord/fsm/state", "concord/fsm/seal", "concord/fsm/command", "concord/fsm", "concord/cluster/...", "concord/proxy/...", "concord/admin/..."},
		Why:   "an entity is a struct and its schema; storing and serving it is the business of others",
	},
	{
		Name: "state-knows-no-log", Of: []string{"concord/fsm/state"},
		Never: []string{"concord/fsm/command", "concord/fsm"},
		Why:   "the tables are also read by the proxy, which has no business with log entries",
	},
	{
		Name: "machine-is-deterministic", Of: []string{"concord/fsm/..."},
		Never: []string{"concord/cluster/...", "concord/admin/...", "concord/proxy/...", "concord/ratelimit/...", "net/http", "math/rand", "math/rand/v2", "github.com/hashicorp/raft", "github.com/hashicorp/memberlist"},
		Why:   "every node must reach the same state from the same log: no network, no chance, no knowledge of who asked",
	},
	{
		Name: "cluster-is-below-admin", Of: []string{"concord/cluster/..."},
		Never: []string{"concord/admin/...", "concord/proxy/..."},
		Why:   "consensus moves commands it does not understand",
	},
	{
		Name: "admin-does-not-proxy", Of: []string{"concord/admin/..."},
		Never: []string{"concord/proxy/..."},
		Why:   "plugin schemas reach the Admin API as values wired by cmd, so that it can be tested and changed without a data plane",
	},
	{
		Name: "rest-is-not-rpc", Of: []string{"concord/admin/rest/..."},
		Never: []string{"concord/admin/rpc/..."},
		Why:   "both are fronts of admin/service; what they share belongs there",
	},
	{
		Name: "rpc-is-not-rest", Of: []string{"concord/admin/rpc/..."},
		Never: []string{"concord/admin/rest/..."},
		Why:   "both are fronts of admin/service; what they share belongs there",
	},
	{
		Name: "proxy-never-depends-on-quorum", Of: []string{"concord/proxy/..."}, Except: []string{"concord/proxy/plugin/plugintest"},
		Never: []string{"concord/admin/...", "concord/cluster/...", "concord/fsm", "concord/fsm/command", "github.com/hashicorp/raft", "github.com/hashicorp/memberlist"},
		Why:   "traffic goes on when the cluster does not: the proxy sees tables, never the log or the members",
	},
	{
		Name: "exchange-is-neutral", Of: []string{"concord/proxy/exchange"},
		Never: []string{"concord/fsm/state", "concord/proxy/plugin", "concord/proxy/h1", "concord/proxy/router", "net/http"},
		Why:   "plugins and both HTTP fronts meet here; it must belong to none of them",
	},
	{
		Name: "h1-is-only-the-wire", Of: []string{"concord/proxy/h1"},
		Never: []string{"concord/fsm/state", "concord/proxy/plugin", "concord/proxy/router", "concord/proxy/dataplane", "concord/proxy/balancer"},
		Why:   "a parser that knows routes or plugins cannot be fuzzed against another parser",
	},
	{
		Name: "router-is-pure", Of: []string{"concord/proxy/router"},
		Never: []string{"concord/proxy/plugin", "concord/proxy/h1", "concord/proxy/dataplane", "concord/proxy/upstream", "net/http"},
		Why:   "matching is a function of routes and a request",
	},
	{
		Name: "plugin-contract-is-below-plugins", Of: []string{"concord/proxy/plugin"},
		Never: []string{"concord/proxy/plugins/...", "concord/proxy/h1", "concord/proxy/router", "concord/proxy/dataplane", "concord/proxy/upstream", "concord/proxy/listen"},
		Why:   "plugins see the exchange and their environment, nothing else of the gateway",
	},
	{
		Name: "plugins-see-the-contract-only", Of: []string{"concord/proxy/plugins/..."},
		Never: []string{"concord/proxy", "concord/proxy/h1", "concord/proxy/router", "concord/proxy/dataplane", "concord/proxy/upstream", "concord/proxy/listen"},
		Why:   "plugins see the exchange and their environment, nothing else of the gateway",
	},
	{
		Name: "plugins-are-wired-by-cmd", Of: []string{"concord/proxy/...", "concord/ratelimit/..."}, Except: []string{"concord/proxy/plugins/..."},
		Never: []string{"concord/proxy/plugins/..."},
		Why:   "plugins/all is the only list and cmd its only reader, so that the data plane can be tested with any plugins",
	},
	{
		Name: "ratelimit-is-arithmetic", Of: []string{"concord/ratelimit/..."},
		Never: []string{"concord/cluster/...", "concord/proxy/...", "concord/admin/...", "github.com/hashicorp/memberlist", "net/http"},
		Why:   "quotas are proved and simulated without a network; cluster/gossip implements the interface they need",
	},
	{
		Name: "black-box-tests", Of: []string{"concord/test/demo", "concord/test/harness", "concord/test/e2e", "concord/test/cluster"},
		Never: []string{"concord/fsm/...", "concord/cluster/...", "concord/proxy/...", "concord/admin/...", "concord/ratelimit/...", "concord/proto/..."},
		Why:   "these tests see what a user sees: settings, verbs, URLs",
	},
}
