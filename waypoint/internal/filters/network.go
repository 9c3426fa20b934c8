package filters

import (
	"fmt"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networkauthz "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	networkrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Network is a filter of an opaque connection: *RBAC, *ExtAuthz or KeepDestination.
type Network interface{ network() }

// KeepDestination stands for the filter that carries the dialled address to the next internal hop; upstream reads it from the request.
type KeepDestination struct{}

func (KeepDestination) network() {}

// CompileNetwork compiles a network filter other than the one that ends a chain.
func CompileNetwork(p *listenerv3.Filter) (Network, error) {
	fail := func(err error) (Network, error) { return nil, fmt.Errorf("network filter %q: %w", p.GetName(), err) }
	if err := strict.Only(p, "name", "typed_config"); err != nil {
		return fail(err)
	}
	switch typeName(p.GetTypedConfig()) {
	case "envoy.extensions.filters.network.rbac.v3.RBAC":
		m := &networkrbac.RBAC{}
		if err := p.GetTypedConfig().UnmarshalTo(m); err != nil {
			return fail(err)
		}
		r, err := compileNetworkRBAC(m)
		if err != nil {
			return fail(err)
		}
		return r, nil
	case "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz":
		m := &networkauthz.ExtAuthz{}
		if err := p.GetTypedConfig().UnmarshalTo(m); err != nil {
			return fail(err)
		}
		e, err := compileNetworkExtAuthz(m)
		if err != nil {
			return fail(err)
		}
		return e, nil
	case "envoy.extensions.filters.network.set_filter_state.v3.Config":
		m := &setstatev3.Config{}
		if err := strict.Unpack(p.GetTypedConfig(), m, "on_new_connection"); err != nil {
			return fail(err)
		}
		for _, v := range m.GetOnNewConnection() {
			if v.GetObjectKey() != "envoy.filters.listener.original_dst.local_ip" {
				return fail(fmt.Errorf("filter state %q: %w", v.GetObjectKey(), strict.ErrUnsupported))
			}
		}
		return KeepDestination{}, nil
	}
	return fail(fmt.Errorf("type %s: %w", p.GetTypedConfig().GetTypeUrl(), strict.ErrUnsupported))
}
