package waypoint

import (
	"cmp"
	"encoding/hex"
	"maps"
	"slices"

	"github.com/cespare/xxhash/v2"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Type URLs of what is derived here.
const (
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	RouteType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Resources is one waypoint's configuration, by resource name.
type Resources struct {
	Listeners map[string]*listenerv3.Listener
	Clusters  map[string]*clusterv3.Cluster
	Endpoints map[string]*endpointv3.ClusterLoadAssignment
	Routes    map[string]*routev3.RouteConfiguration
	Secrets   map[string]*tlsv3.Secret
}

// Resource is one packed message; Version is the hash of its bytes.
type Resource struct {
	Name    string
	Version string
	Body    *anypb.Any
}

// Finding is what somebody should be told about an object that does not do what its author may expect.
type Finding struct {
	Kind      string
	Namespace string
	Name      string
	Reason    string
	Message   string
}

type derivation struct {
	in       Input
	services map[string]*Service // by hostname
	routes   map[string]*routev3.RouteConfiguration
	wanted   map[string]clusterWant
	outside  map[string]*clusterv3.Cluster // of key sources outside the mesh
	rules    *ruleIndex
	secrets  map[string]*tlsv3.Secret // that clusters need
	closed   map[string]bool          // clusters to which nothing may be sent
	findings map[Finding]bool
	policies []*compiledPolicy
	extra    map[string]*clusterv3.Cluster // that are no service's
	// gatewayNames are what VirtualServices call the gateway whose routes are being made.
	gatewayNames []string
}

// Derive computes one waypoint's resources. Same input, same bytes, whatever the order of the rows.
func Derive(in Input) (Resources, []Finding) {
	d := newDerivation(in)
	if in.Edge != nil {
		out := d.deriveEdge()
		return out, d.sortedFindings()
	}
	out := Resources{
		Listeners: map[string]*listenerv3.Listener{
			ConnectTerminate: connectTerminate(d.in.Mesh),
			MainInternal:     d.mainInternal(), // fills routes and wanted
			ConnectOriginate: connectOriginate(),
		},
		Routes:    d.routes,
		Clusters:  meshClusters(d.in.Mesh),
		Endpoints: map[string]*endpointv3.ClusterLoadAssignment{},
	}
	for name, want := range d.wanted {
		out.Clusters[name] = d.serviceCluster(name, want)
		if want.service.Resolution == Listed {
			out.Endpoints[name] = d.assignment(name, want)
		}
	}
	out.Secrets = d.secrets
	maps.Copy(out.Clusters, d.outside)
	maps.Copy(out.Clusters, d.extra)
	return out, d.sortedFindings()
}

// newDerivation puts the rows in order and indexes them.
func newDerivation(in Input) *derivation {
	d := &derivation{
		in:       in.canonical(),
		services: map[string]*Service{},
		routes:   map[string]*routev3.RouteConfiguration{},
		wanted:   map[string]clusterWant{},
		secrets:  map[string]*tlsv3.Secret{},
		closed:   map[string]bool{},
		outside:  map[string]*clusterv3.Cluster{},
		findings: map[Finding]bool{},
		extra:    map[string]*clusterv3.Cluster{},
	}
	for i := range d.in.Services {
		s := &d.in.Services[i]
		if _, taken := d.services[s.Hostname]; !taken { // the oldest owns the name
			d.services[s.Hostname] = s
		}
	}
	d.rules = indexRules(d.in.DestinationRules, d.in.Mesh, d.in.Gateway.Namespace)
	d.policies = d.compilePolicies()
	return d
}

func (d *derivation) report(kind, namespace, name, reason, message string) {
	d.findings[Finding{Kind: kind, Namespace: namespace, Name: name, Reason: reason, Message: message}] = true
}

func (d *derivation) sortedFindings() []Finding {
	out := make([]Finding, 0, len(d.findings))
	for f := range d.findings {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name),
			cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Message, b.Message))
	})
	return out
}

// Pack gives the resources of one type URL, sorted by name. It is empty for a type that is not derived here.
func (r Resources) Pack(typeURL string) []Resource {
	switch typeURL {
	case ListenerType:
		return packAll(r.Listeners)
	case ClusterType:
		return packAll(r.Clusters)
	case EndpointType:
		return packAll(r.Endpoints)
	case RouteType:
		return packAll(r.Routes)
	case SecretType:
		return packAll(r.Secrets)
	}
	return nil
}

func packAll[M proto.Message](messages map[string]M) []Resource {
	out := make([]Resource, 0, len(messages))
	for name, m := range messages {
		body := pack(m)
		out = append(out, Resource{Name: name, Version: version(body.GetValue()), Body: body})
	}
	slices.SortFunc(out, func(a, b Resource) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func version(body []byte) string {
	h := xxhash.New()
	_, _ = h.Write(body) // a hash cannot fail to be written
	return hex.EncodeToString(h.Sum(nil))
}
