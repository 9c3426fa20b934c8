package admin

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/ztunnel/internal/certs"
)

// gateway is the dump's form of a waypoint or network gateway.
type gateway struct {
	Destination   string `json:"destination"`
	HBONEMtlsPort uint16 `json:"hboneMtlsPort"`
}

func gatewayOf(g *mesh.GatewayAddress) *gateway {
	if g == nil {
		return nil
	}
	return &gateway{Destination: g.String(), HBONEMtlsPort: g.Port}
}

type locality struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Subzone string `json:"subzone,omitempty"`
}

type tunnel struct {
	Protocol string  `json:"protocol"`
	Port     *uint16 `json:"port,omitempty"`
}

// names and place hold what the dump shows of a workload besides its network.
type names struct {
	UID               string `json:"uid,omitempty"`
	Name              string `json:"name"`
	Namespace         string `json:"namespace"`
	TrustDomain       string `json:"trustDomain,omitempty"`
	ServiceAccount    string `json:"serviceAccount,omitempty"`
	WorkloadName      string `json:"workloadName,omitempty"`
	WorkloadType      string `json:"workloadType,omitempty"`
	CanonicalName     string `json:"canonicalName,omitempty"`
	CanonicalRevision string `json:"canonicalRevision,omitempty"`
}

type place struct {
	Network   string    `json:"network,omitempty"`
	Hostname  string    `json:"hostname,omitempty"`
	Node      string    `json:"node,omitempty"`
	ClusterID string    `json:"clusterId"`
	Locality  *locality `json:"locality,omitempty"`
}

type workload struct {
	WorkloadIPs    []netip.Addr `json:"workloadIps"`
	Waypoint       *gateway     `json:"waypoint,omitempty"`
	NetworkGateway *gateway     `json:"networkGateway,omitempty"`
	Protocol       string       `json:"protocol"`
	NetworkMode    string       `json:"networkMode"`
	names
	place
	NativeTunnel bool     `json:"nativeTunnel,omitempty"`
	AppTunnel    *tunnel  `json:"applicationTunnel,omitempty"`
	Policies     []string `json:"authorizationPolicies,omitempty"`
	Status       string   `json:"status"`
	Services     []string `json:"services,omitempty"`
	Capacity     uint32   `json:"capacity"`
}

func workloadOf(w *mesh.Workload) workload {
	out := workload{
		WorkloadIPs: w.Addresses, Waypoint: gatewayOf(w.Waypoint), NetworkGateway: gatewayOf(w.NetworkGateway),
		Protocol: w.Protocol.String(), NetworkMode: "Standard", NativeTunnel: w.NativeTunnel,
		Policies: w.Policies, Status: health(w.Unhealthy), Capacity: w.Capacity,
		names: names{
			UID: w.UID, Name: w.Name, Namespace: w.Namespace, TrustDomain: w.ID.TrustDomain(), ServiceAccount: w.ID.ServiceAccount(),
			WorkloadName: w.WorkloadName, WorkloadType: w.WorkloadType, CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		},
		place: place{Network: w.Network, Hostname: w.Hostname, Node: w.Node, ClusterID: w.ClusterID},
	}
	if out.WorkloadIPs == nil {
		out.WorkloadIPs = []netip.Addr{}
	}
	if w.HostNetwork {
		out.NetworkMode = "HostNetwork"
	}
	if w.Locality != (mesh.Locality{}) {
		out.Locality = &locality{w.Locality.Region, w.Locality.Zone, w.Locality.Subzone}
	}
	if t := w.Tunnel; t != nil {
		out.AppTunnel = &tunnel{Protocol: t.Protocol.String()}
		if t.Port != 0 {
			out.AppTunnel.Port = &t.Port
		}
	}
	for i := range w.Services {
		out.Services = append(out.Services, w.Services[i].Service.String())
	}
	return out
}

func health(unhealthy bool) string {
	if unhealthy {
		return "Unhealthy"
	}
	return "Healthy"
}

type ports map[string]uint16

func portsOf(list []mesh.PortMapping) ports {
	out := make(ports, len(list))
	for _, p := range list {
		out[strconv.Itoa(int(p.Service))] = p.Target
	}
	return out
}

type endpoint struct {
	WorkloadUID string `json:"workloadUid"`
	Port        ports  `json:"port"`
	Status      string `json:"status"`
}

func endpointsOf(list []mesh.Endpoint) map[string]endpoint {
	out := make(map[string]endpoint, len(list))
	for i := range list {
		w := list[i].Workload
		out[w.UID] = endpoint{WorkloadUID: w.UID, Port: portsOf(list[i].Ports), Status: health(w.Unhealthy)}
	}
	return out
}

type cidr struct {
	Network string       `json:"network"`
	CIDR    netip.Prefix `json:"cidr"`
}

type weighted struct {
	Destination gateway `json:"destination"`
	Weight      uint32  `json:"weight"`
}

type balancer struct {
	RoutingPreferences []string `json:"routingPreferences"`
	Mode               string   `json:"mode"`
	HealthPolicy       string   `json:"healthPolicy"`
}

type service struct {
	Name              string              `json:"name"`
	Namespace         string              `json:"namespace"`
	Hostname          string              `json:"hostname"`
	VIPs              []string            `json:"vips"`
	CIDRVIPs          []cidr              `json:"cidrVips,omitempty"`
	Ports             ports               `json:"ports"`
	Endpoints         map[string]endpoint `json:"endpoints"`
	SANs              []string            `json:"subjectAltNames,omitempty"`
	Waypoint          *gateway            `json:"waypoint,omitempty"`
	WeightedWaypoints []weighted          `json:"weightedWaypoints,omitempty"`
	LoadBalancer      *balancer           `json:"loadBalancer,omitempty"`
	IPFamilies        string              `json:"ipFamilies,omitempty"`
	Canonical         bool                `json:"canonical,omitempty"`
	Visibility        string              `json:"visibility,omitempty"`
}

func serviceOf(v *mesh.View, s *mesh.Service) service {
	out := service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, VIPs: []string{}, Ports: portsOf(s.Ports),
		Endpoints: endpointsOf(v.Endpoints(s.Key())), Waypoint: gatewayOf(s.Waypoint), IPFamilies: s.Families.String(), Canonical: s.Canonical,
		Visibility: "Public",
	}
	if s.Private {
		out.Visibility = "Namespace"
	}
	for _, vip := range s.VIPs {
		if vip.Exact() {
			out.VIPs = append(out.VIPs, vip.Network+"/"+vip.Prefix.Addr().String())
		} else {
			out.CIDRVIPs = append(out.CIDRVIPs, cidr{vip.Network, vip.Prefix})
		}
	}
	for _, id := range s.SANs {
		out.SANs = append(out.SANs, id.String())
	}
	for i := range s.WeightedWaypoints {
		w := &s.WeightedWaypoints[i]
		out.WeightedWaypoints = append(out.WeightedWaypoints, weighted{*gatewayOf(&w.Destination), w.Weight})
	}
	if lb := s.LoadBalancing; lb.Mode != mesh.ModeStandard || len(lb.Preferences) > 0 || lb.AllowUnhealthy {
		out.LoadBalancer = &balancer{RoutingPreferences: []string{}, Mode: lb.Mode.String(), HealthPolicy: "OnlyHealthy"}
		if lb.AllowUnhealthy {
			out.LoadBalancer.HealthPolicy = "AllowAll"
		}
		for _, p := range lb.Preferences {
			out.LoadBalancer.RoutingPreferences = append(out.LoadBalancer.RoutingPreferences, p.String())
		}
	}
	return out
}

// stringMatch is {"Exact": "x"}, {"Prefix": ..}, {"Suffix": ..} or {"Presence": []}.
type stringMatch mesh.StringMatch

func (m stringMatch) MarshalJSON() ([]byte, error) {
	if m.Kind == mesh.Presence {
		return json.Marshal(map[string][]string{"Presence": {}})
	}
	return json.Marshal(map[string]string{m.Kind.String(): m.Value})
}

type account struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

type match struct {
	Namespaces          []stringMatch  `json:"namespaces,omitempty"`
	NotNamespaces       []stringMatch  `json:"notNamespaces,omitempty"`
	ServiceAccounts     []account      `json:"serviceAccounts,omitempty"`
	NotServiceAccounts  []account      `json:"notServiceAccounts,omitempty"`
	Principals          []stringMatch  `json:"principals,omitempty"`
	NotPrincipals       []stringMatch  `json:"notPrincipals,omitempty"`
	SourceIPs           []netip.Prefix `json:"sourceIps,omitempty"`
	NotSourceIPs        []netip.Prefix `json:"notSourceIps,omitempty"`
	DestinationIPs      []netip.Prefix `json:"destinationIps,omitempty"`
	NotDestinationIPs   []netip.Prefix `json:"notDestinationIps,omitempty"`
	DestinationPorts    []uint16       `json:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16       `json:"notDestinationPorts,omitempty"`
}

type policy struct {
	Name      string      `json:"name"`
	Namespace string      `json:"namespace"`
	Scope     string      `json:"scope"`
	Action    string      `json:"action"`
	Rules     [][][]match `json:"rules"`
	DryRun    bool        `json:"dryRun,omitempty"`
}

func policyOf(p *mesh.Policy) policy {
	out := policy{Name: p.Name, Namespace: p.Namespace, Scope: p.Scope.String(), Action: p.Action.String(), Rules: [][][]match{}, DryRun: p.DryRun}
	for _, r := range p.Rules {
		rule := [][]match{}
		for _, c := range r {
			clause := []match{}
			for i := range c {
				clause = append(clause, matchOf(&c[i]))
			}
			rule = append(rule, clause)
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

func matchOf(m *mesh.Match) match {
	return match{
		Namespaces: texts(m.Namespaces), NotNamespaces: texts(m.NotNamespaces), Principals: texts(m.Principals), NotPrincipals: texts(m.NotPrincipals),
		ServiceAccounts: accounts(m.ServiceAccounts), NotServiceAccounts: accounts(m.NotServiceAccounts),
		SourceIPs: m.SourceIPs, NotSourceIPs: m.NotSourceIPs, DestinationIPs: m.DestinationIPs, NotDestinationIPs: m.NotDestinationIPs,
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts,
	}
}

func texts(list []mesh.StringMatch) []stringMatch {
	var out []stringMatch
	for _, m := range list {
		out = append(out, stringMatch(m))
	}
	return out
}

func accounts(list []mesh.ServiceAccount) []account {
	var out []account
	for _, a := range list {
		out = append(out, account{a.Namespace, a.Name})
	}
	return out
}

type certificate struct {
	PEM       string `json:"pem"` // base64 of the PEM text
	Serial    string `json:"serialNumber"`
	ValidFrom string `json:"validFrom"`
	Expires   string `json:"expirationTime"`
}

type identityState struct {
	Identity  string        `json:"identity"`
	State     string        `json:"state"`
	CertChain []certificate `json:"certChain"`
	RootCerts []certificate `json:"rootCerts"`
}

func identityOf(s certs.State) identityState {
	out := identityState{Identity: s.ID.String(), State: s.Text(), CertChain: []certificate{}, RootCerts: []certificate{}}
	if s.Cert != nil {
		out.CertChain = certificatesOf(s.Cert.Chain)
		out.RootCerts = certificatesOf(s.Cert.Roots)
	}
	return out
}

func certificatesOf(list []*x509.Certificate) []certificate {
	out := make([]certificate, 0, len(list))
	for _, c := range list {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		out = append(out, certificate{
			PEM: base64.StdEncoding.EncodeToString(text), Serial: c.SerialNumber.String(),
			ValidFrom: c.NotBefore.UTC().Format(time.RFC3339), Expires: c.NotAfter.UTC().Format(time.RFC3339),
		})
	}
	return out
}

// stagedKey is "ns/host" of a service that endpoints name before it is known.
func stagedKey(n mesh.NamespacedHostname) string { return strings.TrimPrefix(n.String(), "/") }
