package waypoint

import (
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
)

// asksServerName says that some policy of the set judges a connection by the server that a TLS client asks for.
func (set policySet) asksServerName() bool {
	return slices.ContainsFunc(set, func(c *compiledPolicy) bool {
		for _, p := range c.tcp {
			if slices.ContainsFunc(p.GetPermissions(), asksServerName) {
				return true
			}
		}
		return false
	})
}

func asksServerName(p *rbacv3.Permission) bool {
	switch r := p.GetRule().(type) {
	case *rbacv3.Permission_AndRules:
		return slices.ContainsFunc(r.AndRules.GetRules(), asksServerName)
	case *rbacv3.Permission_OrRules:
		return slices.ContainsFunc(r.OrRules.GetRules(), asksServerName)
	case *rbacv3.Permission_NotRule:
		return asksServerName(r.NotRule)
	case *rbacv3.Permission_RequestedServerName:
		return true
	}
	return false
}

// nameInspector looks for the server's name on the ports whose policies ask for it, and on no other: a protocol in which the server
// speaks first would wait for it. nil = nobody asks.
func (d *derivation) nameInspector() *listenerv3.ListenerFilter {
	f := listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{})
	if len(d.in.Workloads) > 0 && d.policiesFor(nil).asksServerName() {
		return f // the ports of pods are not known here
	}
	asked := map[uint32]bool{}
	for i := range d.in.Services {
		s := &d.in.Services[i]
		if !s.Bound || !d.policiesFor(s).asksServerName() {
			continue
		}
		for _, p := range s.Ports {
			if p.Protocol != Ignored && !p.Protocol.isHTTP() {
				asked[p.Number] = true
			}
		}
	}
	if len(asked) == 0 {
		return nil
	}
	f.FilterDisabled = &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_NotMatch{
		NotMatch: exceptPorts(asked, nil),
	}}
	return f
}
