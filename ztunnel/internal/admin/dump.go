package admin

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/ztunnel/internal/certs"
	"github.com/marrowmesh/marrow/ztunnel/internal/config"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
	"github.com/marrowmesh/marrow/ztunnel/internal/pods"
)

// Sources is where the dump gets its facts.
type Sources struct {
	View   func() *mesh.View
	Certs  func() []certs.State
	Pods   func() []pods.State
	Conns  func(pod string, d conns.Direction) []conns.Entry
	Config *config.Config
	Build  obs.Build
}

type dump struct {
	Workloads    []workload                     `json:"workloads"`
	Services     []service                      `json:"services"`
	Policies     []policy                       `json:"policies"`
	Staged       map[string]map[string]endpoint `json:"stagedServices"`
	Static       static                         `json:"staticConfig"`
	Version      obs.Build                      `json:"version"`
	Config       *config.Config                 `json:"config"`
	Certificates []identityState                `json:"certificates"`
	State        map[string]podState            `json:"workloadState"`
}

// static is always empty: there is no static state.
type static struct {
	Workloads []struct{} `json:"workloads"`
	Policies  []struct{} `json:"policies"`
	Services  []struct{} `json:"services"`
}

type podState struct {
	State       string      `json:"state"`
	Connections connections `json:"connections"`
	Info        podInfo     `json:"info"`
}

type podInfo struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

type connections struct {
	Inbound  []connection `json:"inbound"`
	Outbound []connection `json:"outbound"`
}

type connection struct {
	Src      netip.AddrPort `json:"src"`
	Original *string        `json:"originalDst"`
	Actual   netip.AddrPort `json:"actualDst"`
	Protocol string         `json:"protocol"`
}

// Dump takes one View and describes everything.
func (s *Sources) Dump() (any, error) {
	v := s.View()
	d := dump{
		Workloads: []workload{}, Services: []service{}, Policies: []policy{}, Staged: map[string]map[string]endpoint{},
		Static: static{[]struct{}{}, []struct{}{}, []struct{}{}}, Version: s.Build, Config: s.Config,
		Certificates: []identityState{}, State: map[string]podState{},
	}
	for w := range v.Workloads() {
		d.Workloads = append(d.Workloads, workloadOf(w))
	}
	slices.SortFunc(d.Workloads, func(a, b workload) int { return cmp.Compare(a.UID, b.UID) })
	for svc := range v.Services() {
		d.Services = append(d.Services, serviceOf(v, svc))
	}
	slices.SortFunc(d.Services, func(a, b service) int {
		return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.Namespace, b.Namespace))
	})
	for p := range v.Policies() {
		d.Policies = append(d.Policies, policyOf(p))
	}
	slices.SortFunc(d.Policies, func(a, b policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for host, eps := range v.Staged() {
		d.Staged[stagedKey(host)] = endpointsOf(eps)
	}
	for _, c := range s.Certs() {
		d.Certificates = append(d.Certificates, identityOf(c))
	}
	for _, p := range s.Pods() {
		d.State[p.UID] = s.pod(p)
	}
	return &d, nil
}

func (s *Sources) pod(p pods.State) podState {
	out := podState{State: "Pending", Info: podInfo{p.Info.Name, p.Info.Namespace, p.Info.ServiceAccount}}
	if p.Up {
		out.State = "Up"
	}
	list := func(d conns.Direction) []connection {
		all := []connection{}
		for _, e := range s.Conns(p.UID, d) {
			c := connection{Src: e.Src, Actual: e.Actual, Protocol: e.Protocol}
			if e.Original != "" {
				c.Original = &e.Original
			}
			all = append(all, c)
		}
		return all
	}
	out.Connections = connections{Inbound: list(conns.Inbound), Outbound: list(conns.Outbound)}
	return out
}
