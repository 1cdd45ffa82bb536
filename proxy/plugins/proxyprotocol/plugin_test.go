package proxyprotocol_test

import (
	"testing"

	"concord/fsm/schema"
	"concord/proxy/exchange"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
	"concord/proxy/plugins/proxyprotocol"
)

func TestVersion(t *testing.T) {
	for version, config := range map[int]schema.Record{1: {}, 2: {"version": 2.0}} {
		i := plugintest.New(t).Build(proxyprotocol.Plugin(), config)
		x := plugintest.Request("GET", "/")
		if err := i.(plugin.Accessor).Access(x); err != nil || x.Upstream.ProxyProtocol != version {
			t.Errorf("request: version %d, %v, want %d", x.Upstream.ProxyProtocol, err, version)
		}
		x = &exchange.Exchange{Stream: &exchange.Stream{}}
		if err := i.(plugin.StreamAccessor).StreamAccess(x); err != nil || x.Upstream.ProxyProtocol != version {
			t.Errorf("session: version %d, %v, want %d", x.Upstream.ProxyProtocol, err, version)
		}
	}
}
