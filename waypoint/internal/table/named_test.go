package table

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	networkrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestPoliciesOnNamesAreSeen: a chain whose policy asks for the server's name, however deep, has the first bytes looked at, at the
// border even if no listener filter says so.
func TestPoliciesOnNamesAreSeen(t *testing.T) {
	filter := func(name string, m proto.Message) *listenerv3.Filter {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: a}}
	}
	name := &rbacconfig.Permission{Rule: &rbacconfig.Permission_RequestedServerName{RequestedServerName: &matcherv3.StringMatcher{
		MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "a.example"},
	}}}
	port := &rbacconfig.Permission{Rule: &rbacconfig.Permission_DestinationPort{DestinationPort: 443}}
	all := func(ps ...*rbacconfig.Permission) *rbacconfig.Permission {
		return &rbacconfig.Permission{Rule: &rbacconfig.Permission_AndRules{AndRules: &rbacconfig.Permission_Set{Rules: ps}}}
	}
	for what, tc := range map[string]struct {
		p    *rbacconfig.Permission
		want bool
	}{
		"a name":        {name, true},
		"no name":       {all(port, port), false},
		"a name inside": {all(port, &rbacconfig.Permission{Rule: &rbacconfig.Permission_NotRule{NotRule: all(name, port)}}), true},
	} {
		rules := &rbacconfig.RBAC{Action: rbacconfig.RBAC_DENY, Policies: map[string]*rbacconfig.Policy{"p": {
			Permissions: []*rbacconfig.Permission{tc.p}, Principals: []*rbacconfig.Principal{{Identifier: &rbacconfig.Principal_Any{Any: true}}},
		}}}
		for _, f := range []*networkrbac.RBAC{{StatPrefix: "t", Rules: rules}, {StatPrefix: "t", ShadowRules: rules}} {
			e, err := CompileEdge(&listenerv3.Listener{
				Name: "l", Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
					Address: "0.0.0.0", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 443},
				}}},
				FilterChains: []*listenerv3.FilterChain{{Name: "c", Filters: []*listenerv3.Filter{
					filter("rbac", f), filter("tcp", &tcpproxyv3.TcpProxy{StatPrefix: "t", ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: "x"}}),
				}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if e.Chains["c"].TCP.Named != tc.want || e.Looks != tc.want {
				t.Errorf("%s: named %v, looked at %v", what, e.Chains["c"].TCP.Named, e.Looks)
			}
		}
	}
}
