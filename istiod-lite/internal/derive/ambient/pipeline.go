package ambient

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	clientnetworking "istio.io/client-go/pkg/apis/networking/v1"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/collect"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
)

// Type URLs of the resources.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// Resource is one message as it is served. Version is the hash of its bytes, so equal content has equal versions.
type Resource struct {
	Name    string
	Version string
	Body    *anypb.Any
	// Aliases are further names by which clients on demand look up an Address: network/address.
	Aliases []string
	// Message is what Body holds: *workload.Address or *security.Authorization. Nobody may change it.
	Message proto.Message
}

// Delta is what changed of one type: resources that are new or different and names that are gone, both ordered.
type Delta struct {
	Updated []Resource
	Removed []string
}

// Changes is the outcome of one batch.
type Changes struct {
	Addresses      Delta
	Authorizations Delta
	// Conditions are those of the objects for which they changed, complete per object; the object may be gone.
	Conditions []ObjectConditions
	// Problems are refused mesh settings; the last good ones stay in force.
	Problems []error
}

// Pipeline turns events into changes. One goroutine owns it.
type Pipeline struct {
	cfg            Config
	engine         *collect.Engine
	in             inputs
	rows           *rows
	gateways       gatewayTables
	services       serviceTables
	policies       policyTables
	addresses      []feed
	authorizations []feed
	conditions     []conditionSource
}

// feed gives the changes of one table since the last call as resources and as names that are gone.
type feed func(updated func(Resource), gone func(string))

type conditionSource struct {
	group, kind string
	output      *collect.Output[name, []Condition]
}

// NewPipeline returns a pipeline without objects.
func NewPipeline(cfg Config) *Pipeline {
	cfg = cfg.withDefaults()
	e := collect.NewEngine()
	p := &Pipeline{cfg: cfg, engine: e, in: newInputs(e)}
	p.rows = newRows(cfg, e, p.in)
	p.gateways = newGatewayTables(p.rows, p.in.classes)
	p.services = newServiceTables(p.rows, p.gateways)
	p.policies = newPolicyTables(p.rows, p.gateways, p.services)
	guards := newGuardTables(p.rows, p.gateways, p.services)
	w := newWorkloadTables(p.rows, p.gateways, p.services, p.policies, guards)
	for _, t := range w.all {
		p.addresses = append(p.addresses, observe(t, workloadResource))
	}
	for _, t := range []*collect.Table[hostKey, boundService]{p.services.kube, p.services.external} {
		p.addresses = append(p.addresses, observe(t, serviceResource))
	}
	p.authorizations = []feed{
		observe(p.policies.authorizations, authorizationResource[name]),
		observe(p.policies.ports, authorizationResource[name]),
		observe(p.policies.static, authorizationResource[only]),
		observe(guards.kube, authorizationResource[string]),
		observe(guards.external, authorizationResource[string]),
	}
	p.conditions = []conditionSource{
		{"", "Service", collect.NewOutput(p.services.conditions[0])},
		{manifest.GroupNetworking, "ServiceEntry", collect.NewOutput(p.services.conditions[1])},
		{manifest.GroupNetworking, "WorkloadEntry", collect.NewOutput(w.conditions)},
		{manifest.GroupSecurity, "AuthorizationPolicy", collect.NewOutput(p.policies.conditions)},
	}
	return p
}

// Apply takes a batch of events and returns what it changed. Objects must not be changed afterwards.
func (p *Pipeline) Apply(batch []source.Event) Changes {
	var out Changes
	for _, e := range batch {
		if err := p.set(e); err != nil {
			out.Problems = append(out.Problems, err)
		}
	}
	p.engine.Settle()
	out.Addresses, out.Authorizations = deltaOf(p.addresses), deltaOf(p.authorizations)
	for _, c := range p.conditions {
		changed, removed := c.output.Take()
		for _, k := range removed { // gone, or not looked at any more: what an earlier state had is to be removed
			changed = append(changed, collect.Row[name, []Condition]{Key: k})
		}
		for _, row := range changed {
			out.Conditions = append(out.Conditions, ObjectConditions{
				Object:     manifest.Key{Group: c.group, Kind: c.kind, Namespace: row.Key.Namespace, Name: row.Key.Name},
				Conditions: row.Value,
			})
		}
	}
	return out
}

func (p *Pipeline) set(e source.Event) error {
	k := name{Namespace: e.Key.Namespace, Name: e.Key.Name}
	switch e.Key.Group + "/" + e.Key.Kind {
	case "/Namespace":
		put(p.in.namespaces, k.Name, e.Object, (*corev1.Namespace)(nil))
	case "/Node":
		put(p.in.nodes, k.Name, e.Object, (*corev1.Node)(nil))
	case "/Pod":
		put(p.in.pods, k, e.Object, (*corev1.Pod)(nil))
	case "/Service":
		put(p.in.services, k, e.Object, (*corev1.Service)(nil))
	case manifest.GroupDiscovery + "/EndpointSlice":
		put(p.in.slices, k, e.Object, (*discoveryv1.EndpointSlice)(nil))
	case manifest.GroupGateway + "/Gateway":
		put(p.in.gateways, k, e.Object, (*gatewayv1.Gateway)(nil))
	case manifest.GroupGateway + "/GatewayClass":
		put(p.in.classes, k.Name, e.Object, (*gatewayv1.GatewayClass)(nil))
	case manifest.GroupNetworking + "/ServiceEntry":
		put(p.in.entries, k, e.Object, (*clientnetworking.ServiceEntry)(nil))
	case manifest.GroupNetworking + "/WorkloadEntry":
		put(p.in.workloads, k, e.Object, (*clientnetworking.WorkloadEntry)(nil))
	case manifest.GroupSecurity + "/AuthorizationPolicy":
		put(p.in.policies, k, e.Object, (*clientsecurity.AuthorizationPolicy)(nil))
	case manifest.GroupSecurity + "/PeerAuthentication":
		put(p.in.peers, k, e.Object, (*clientsecurity.PeerAuthentication)(nil))
	case "/ConfigMap":
		return p.setMesh(k, e.Object)
	}
	return nil
}

// put sets or deletes a row; the last argument only says the type.
func put[K comparable, V comparable](t *collect.Table[K, V], k K, o manifest.Object, _ V) {
	if v, ok := o.(V); ok {
		t.Set(k, v)
		return
	}
	t.Delete(k)
}

func (p *Pipeline) setMesh(k name, o manifest.Object) error {
	if k != (name{Namespace: p.cfg.SystemNamespace, Name: "istio"}) {
		return nil
	}
	cm, ok := o.(*corev1.ConfigMap)
	if !ok {
		p.in.settings.Delete(only{})
		return nil
	}
	s, unknown, err := ParseSettings(p.cfg, cm.Data["mesh"])
	if err != nil {
		return fmt.Errorf("ConfigMap/%s: %w; the settings before stay in force", k, err)
	}
	p.in.settings.Set(only{}, s)
	if unknown != nil {
		return fmt.Errorf("ConfigMap/%s: settings that are not known here have no effect: %w", k, unknown)
	}
	return nil
}

// Mesh returns the settings in force.
func (p *Pipeline) Mesh() Settings {
	s, ok := p.in.settings.Peek(only{})
	if !ok {
		s, _, _ = ParseSettings(p.cfg, "") // an empty text has no errors
	}
	return s
}

// observe makes a feed of a table.
func observe[K comparable, V any](t *collect.Table[K, V], resource func(K, V) Resource) feed {
	out := collect.NewOutput(t)
	names := map[K]string{} // of the rows that were reported: a removal has no value to make a name of
	return func(updated func(Resource), gone func(string)) {
		changed, removed := out.Take()
		for _, row := range changed {
			r := resource(row.Key, row.Value)
			if old, known := names[row.Key]; known && old != r.Name {
				gone(old)
			}
			names[row.Key] = r.Name
			updated(r)
		}
		for _, k := range removed {
			gone(names[k])
			delete(names, k)
		}
	}
}

// deltaOf merges the changes of several tables. A name that left one table and came to another changed.
func deltaOf(feeds []feed) Delta {
	var d Delta
	updated := map[string]bool{}
	var gone []string
	for _, s := range feeds {
		s(func(r Resource) {
			d.Updated = append(d.Updated, r)
			updated[r.Name] = true
		}, func(n string) { gone = append(gone, n) })
	}
	for _, n := range gone {
		if !updated[n] {
			d.Removed = append(d.Removed, n)
		}
	}
	slices.SortFunc(d.Updated, func(a, b Resource) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(d.Removed)
	return d
}

// pack marshals a message so that equal messages are equal bytes.
func pack(resource, url string, m proto.Message) Resource {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// Strings of objects come from JSON, which is UTF-8; nothing else can fail.
		panic(fmt.Sprintf("ambient: %s cannot be marshalled: %v", resource, err))
	}
	return Resource{
		Name: resource, Version: strconv.FormatUint(xxhash.Sum64(body), 16),
		Body: &anypb.Any{TypeUrl: url, Value: body}, Message: m,
	}
}

// aliasOf is how an address is looked up on demand.
func aliasOf(network string, address []byte, length *uint32) string {
	ip, _ := netip.AddrFromSlice(address)
	text := network + "/" + ip.String()
	if length != nil {
		text += "/" + strconv.Itoa(int(*length))
	}
	return text
}

func workloadResource(uid string, w *workload.Workload) Resource {
	r := pack(uid, AddressType, &workload.Address{Type: &workload.Address_Workload{Workload: w}})
	for _, a := range w.GetAddresses() {
		r.Aliases = append(r.Aliases, aliasOf(w.GetNetwork(), a, nil))
	}
	return r
}

func serviceResource(k hostKey, s boundService) Resource {
	r := pack(k.String(), AddressType, &workload.Address{Type: &workload.Address_Service{Service: s.message}})
	for _, a := range s.message.GetAddresses() {
		r.Aliases = append(r.Aliases, aliasOf(a.GetNetwork(), a.GetAddress(), a.Length))
	}
	return r
}

func authorizationResource[K comparable](_ K, a *security.Authorization) Resource {
	return pack(a.GetNamespace()+"/"+a.GetName(), AuthorizationType, a)
}

// Runs counts the derivations that ran so far: a measure of the work of a batch.
func (p *Pipeline) Runs() int { return p.engine.TotalRuns() }
