package waypoint

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	meshapi "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/policy"
)

// Input is everything that one waypoint's configuration depends on. The order of the slices does not matter.
type Input struct {
	Mesh Mesh
	// Gateway is the waypoint's Gateway object.
	Gateway types.NamespacedName
	// ClientIdentity says that applications are told who their client is (AsksClientIdentity).
	ClientIdentity bool
	// Place, Network and Labels are those of the waypoint's pods for which the resources are.
	Place   Place
	Network string
	Labels  map[string]string
	// Places are all places where its pods run.
	Places []Place
	// Services are all that a route may send to; those with Bound are reached through this waypoint.
	Services []Service
	// Workloads are the pods that are reached through this waypoint by their own address.
	Workloads        []Workload
	HTTPRoutes       []*gatewayv1.HTTPRoute
	GRPCRoutes       []*gatewayv1.GRPCRoute
	TLSRoutes        []*gatewayv1.TLSRoute
	TCPRoutes        []*gatewayv1.TCPRoute
	VirtualServices  []*networkingv1.VirtualService
	DestinationRules []*networkingv1.DestinationRule
	Secrets          []*corev1.Secret    // of the waypoint's namespace
	ConfigMaps       []*corev1.ConfigMap // of the waypoint's namespace
	Policies         []*securityv1.AuthorizationPolicy
	Authentications  []*securityv1.RequestAuthentication
	Additions
}

// Additions are rows beside those that make routes.
type Additions struct {
	BackendTLS  BackendTLS
	RateLimits  []*policy.RateLimitPolicy
	Telemetries []*telemetryv1.Telemetry
	// Edge makes the proxy a gateway at the mesh's border instead of a waypoint; nil is a waypoint.
	Edge *Edge
}

// Mesh holds what is the same for every waypoint.
type Mesh struct {
	TrustDomain   string // "cluster.local"
	ClusterDomain string // suffix of service hostnames, "cluster.local"
	RootNamespace string // "istio-system"
	ClusterID     string
	// Config is what the mesh's settings say (MeshConfig); nil is nothing.
	Config *meshapi.MeshConfig
	// IPv6 says that waypoint pods have IPv6 addresses, so that connect_terminate listens there too.
	IPv6 bool
}

// Protocol is what a waypoint assumes about the bytes behind a service port.
type Protocol int

const (
	// Sniffed ports declare nothing: each connection shows by its first bytes whether it speaks HTTP.
	Sniffed Protocol = iota
	// HTTP is HTTP/1.1.
	HTTP
	// HTTP2 is HTTP/2 without TLS, gRPC too.
	HTTP2
	// TCP is any bytes; they are passed on unread.
	TCP
	// Ignored ports (UDP) are not proxied.
	Ignored
)

func (p Protocol) isHTTP() bool { return p == HTTP || p == HTTP2 }

// Port is one port of a service.
type Port struct {
	Number   uint32
	Name     string
	Protocol Protocol
	// Encrypted says that requests came to a gateway by TLS.
	Encrypted bool
}

// Service is a destination by name.
type Service struct {
	Kind       string // "Service" or "ServiceEntry"
	Namespace  string
	Name       string
	Hostname   string
	VIPs       []netip.Addr
	Ports      []Port
	Created    time.Time
	Endpoints  []Endpoint
	Resolution Resolution
	// Prefer are labels of place; endpoints that have more of them, from the first on, in common with the waypoint are preferred.
	Prefer []string
	// Waypoint are the pods of the waypoint through which gateways have to go (istio.io/ingress-use-waypoint), with their
	// own port; nil is straight to the endpoints. Empty and not nil is a waypoint without pods, which nothing goes around.
	Waypoint []Endpoint
	// Bound says that the service's traffic passes this waypoint.
	Bound bool
}

// Resolution is how a service's endpoints are found.
type Resolution int

// The ways.
const (
	// Listed endpoints have addresses.
	Listed Resolution = iota
	// DNS endpoints are all addresses of their names.
	DNS
	// OneByDNS is the address that its name has at the moment; connections stay where they are.
	OneByDNS
	// Dialled is wherever the client wanted to go.
	Dialled
)

func (s *Service) key() string { return s.Namespace + "/" + s.Hostname }

func (s *Service) port(number uint32) (Port, bool) {
	i := slices.IndexFunc(s.Ports, func(p Port) bool { return p.Number == number })
	if i < 0 {
		return Port{}, false
	}
	return s.Ports[i], true
}

// Endpoint is one pod (or other address) behind a service.
type Endpoint struct {
	Workload
	// Targets maps service ports to the endpoint's own; a service port that is absent is not served here.
	Targets map[uint32]uint32
	Healthy bool
	Weight  uint32 // 0 = 1
}

func (e *Endpoint) weight() uint32 { return min(max(e.Weight, 1), maxWeight) }

// Workload is an addressable pod.
type Workload struct {
	UID       string
	Namespace string
	Name      string // the workload's (Deployment's) name
	Addresses []netip.Addr
	// HBONE says that the pod's node proxy ends tunnels for it.
	HBONE             bool
	Labels            map[string]string
	ServiceAccount    string
	TrustDomain       string
	CanonicalName     string
	CanonicalRevision string
	Region            string
	Zone              string
	Subzone           string
	Network           string
	Node              string
	// Hostname stands for an endpoint without addresses; it is for the waypoint to resolve.
	Hostname string
}

func (w *Workload) identity() string {
	return "spiffe://" + w.TrustDomain + "/ns/" + w.Namespace + "/sa/" + w.ServiceAccount
}

// canonical puts the rows into the one order from which everything is derived.
func (in Input) canonical() Input {
	in.Services = slices.Clone(in.Services)
	slices.SortFunc(in.Services, func(a, b Service) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.key(), b.key())
	})
	in.Workloads = slices.Clone(in.Workloads)
	slices.SortFunc(in.Workloads, func(a, b Workload) int { return strings.Compare(a.UID, b.UID) })
	in.HTTPRoutes = byAge(in.HTTPRoutes)
	in.GRPCRoutes = byAge(in.GRPCRoutes)
	in.TLSRoutes = byAge(in.TLSRoutes)
	in.TCPRoutes = byAge(in.TCPRoutes)
	in.VirtualServices = byAge(in.VirtualServices)
	in.DestinationRules = byAge(in.DestinationRules)
	in.Policies = byAge(in.Policies)
	in.Authentications = byAge(in.Authentications)
	in.BackendTLS.Policies = byAge(in.BackendTLS.Policies)
	in.RateLimits = byAge(in.RateLimits)
	in.Telemetries = byAge(in.Telemetries)
	return in
}
