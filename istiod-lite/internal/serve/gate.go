package serve

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/istiod-lite/internal/authn"
	"github.com/marrowmesh/marrow/istiod-lite/internal/publish"
)

// MeshScope is where the addresses and authorizations for node proxies are published.
const MeshScope = "mesh"

// WaypointScope is where one waypoint's resources are published, for its pods in one place; an unknown place is empty.
func WaypointScope(namespace, gateway, place string) string {
	scope := "waypoint/" + namespace + "/" + gateway
	if place != "" {
		scope += "/" + place
	}
	return scope
}

// Authenticator tells who makes a call.
type Authenticator interface {
	Caller(ctx context.Context) (authn.Caller, error)
}

// Gateways tells which Gateway a pod is an instance of.
type Gateways interface {
	// A router may also be an instance of what only selectors of Istio Gateways describe.
	GatewayOf(namespace, pod string, router bool) (gateway string, ok bool)
	// PlaceOf is where the pod runs, as a place is written in a scope; empty = not known.
	PlaceOf(namespace, pod string) string
}

// Gate implements [xds.Gatekeeper].
type Gate struct {
	Authenticator Authenticator
	Store         *publish.Store
	Gateways      Gateways
	Secrets       *Secrets
	// NodeAccounts ("namespace/name") may follow the whole mesh as node proxies do; empty lets every caller, as Istio does.
	NodeAccounts []string
	// OnRefuse is told why a stream was refused; nil ignores.
	OnRefuse func(node string, err error)
}

type callerKey struct{}

// Authenticate refuses a stream without a valid token.
func (g *Gate) Authenticate(ctx context.Context) (context.Context, error) {
	caller, err := g.Authenticator.Caller(ctx)
	if err != nil {
		return nil, g.refuse("", codes.Unauthenticated, err.Error())
	}
	return context.WithValue(ctx, callerKey{}, caller), nil
}

func (g *Gate) refuse(node string, code codes.Code, text string) error {
	err := status.Error(code, text)
	if g.OnRefuse != nil {
		g.OnRefuse(node, err)
	}
	return err
}

// Admit reads the node: "<type>~<ip>~<pod>.<namespace>~<domain>".
func (g *Gate) Admit(ctx context.Context, node *corev3.Node) (xds.Admission, error) {
	caller, ok := ctx.Value(callerKey{}).(authn.Caller)
	if !ok {
		return xds.Admission{}, g.refuse(node.GetId(), codes.Unauthenticated, "no authenticated caller")
	}
	parts := strings.Split(node.GetId(), "~")
	if len(parts) != 4 {
		return xds.Admission{}, g.refuse(node.GetId(), codes.InvalidArgument, fmt.Sprintf("node id %q: want type~address~pod.namespace~domain", node.GetId()))
	}
	if err := claims(caller, node); err != nil {
		return xds.Admission{}, g.refuse(node.GetId(), codes.PermissionDenied, err.Error())
	}
	switch parts[0] {
	case "ztunnel":
		// Every address, account and policy of the mesh is no ordinary pod's business.
		account := caller.Identity.Namespace() + "/" + caller.Identity.ServiceAccount()
		if len(g.NodeAccounts) > 0 && !slices.Contains(g.NodeAccounts, account) {
			return xds.Admission{}, g.refuse(node.GetId(), codes.PermissionDenied, fmt.Sprintf("service account %s is no node proxy's (CA_TRUSTED_NODE_ACCOUNTS)", account))
		}
		return xds.Admission{
			Scope:        MeshScope,
			Types:        map[string]bool{xds.AddressType: true, xds.AuthorizationType: true},
			Subscription: g.Store.Subscribe(MeshScope),
		}, nil
	case "waypoint", "router":
		return g.admitWaypoint(caller, node, parts[0] == "router")
	default:
		return xds.Admission{}, g.refuse(node.GetId(), codes.PermissionDenied, fmt.Sprintf("node type %q is not served; want ztunnel, waypoint or router", parts[0]))
	}
}

// claims checks what the node says of itself against the token, as Istio does.
func claims(caller authn.Caller, node *corev3.Node) error {
	for field, want := range map[string]string{"NAMESPACE": caller.Identity.Namespace(), "SERVICE_ACCOUNT": caller.Identity.ServiceAccount()} {
		if got := node.GetMetadata().GetFields()[field].GetStringValue(); got != "" && got != want {
			return fmt.Errorf("node metadata %s is %q, the token says %q", field, got, want)
		}
	}
	return nil
}

func (g *Gate) admitWaypoint(caller authn.Caller, node *corev3.Node, router bool) (xds.Admission, error) {
	ns := caller.Identity.Namespace()
	gateway, ok := g.Gateways.GatewayOf(ns, caller.PodName, router)
	if !ok {
		// The pod may be younger than our news of it.
		return xds.Admission{}, g.refuse(node.GetId(), codes.Unavailable, fmt.Sprintf("pod %s/%s is not known as an instance of a Gateway (label gateway.networking.k8s.io/gateway-name); try again", ns, caller.PodName))
	}
	scope := WaypointScope(ns, gateway, g.Gateways.PlaceOf(ns, caller.PodName))
	return xds.Admission{
		Scope: scope,
		Types: map[string]bool{
			xds.ListenerType: true, xds.ClusterType: true, xds.EndpointType: true, xds.RouteType: true, xds.SecretType: true,
			xds.AddressType: true,
		},
		Subscription: g.Secrets.subscribe(g.Store, caller.Identity, scope),
	}, nil
}
