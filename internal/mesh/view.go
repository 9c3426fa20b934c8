package mesh

import (
	"hash/maphash"
	"iter"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

// View is one immutable state of the mesh with the indexes to decide on it.
// All methods are safe for concurrent use; what they return must not be changed.
type View struct {
	version   uint64
	workloads pmap[string, *Workload]
	// byAddr lists the holders of an address, the latest last; HostNetwork workloads are absent.
	byAddr      pmap[NetworkAddress, []*Workload]
	byPod       pmap[podKey, []*Workload]
	byWorkHost  pmap[NamespacedHostname, []*Workload]
	services    pmap[NamespacedHostname, *Service]
	byHost      pmap[string, []*Service]
	byVIP       pmap[NetworkAddress, []*Service]
	ranges      pmap[string, []vipRange]
	endpoints   pmap[NamespacedHostname, []Endpoint]
	policies    pmap[string, *Policy]
	policiesFor pmap[string, []*Policy]
}

type podKey struct{ namespace, name, account string }

// vipRange is one range of virtual addresses of one network.
type vipRange struct {
	prefix  netip.Prefix
	service *Service
}

// Endpoint is a workload in its role as a member of one service.
type Endpoint struct {
	Workload *Workload
	// Ports are the endpoint's own port numbers for that service.
	Ports []PortMapping
}

// NewView is the empty mesh.
func NewView() *View {
	seed := maphash.MakeSeed()
	return &View{
		workloads:   newMap[string, *Workload](seed),
		byAddr:      newMap[NetworkAddress, []*Workload](seed),
		byPod:       newMap[podKey, []*Workload](seed),
		byWorkHost:  newMap[NamespacedHostname, []*Workload](seed),
		services:    newMap[NamespacedHostname, *Service](seed),
		byHost:      newMap[string, []*Service](seed),
		byVIP:       newMap[NetworkAddress, []*Service](seed),
		ranges:      newMap[string, []vipRange](seed),
		endpoints:   newMap[NamespacedHostname, []Endpoint](seed),
		policies:    newMap[string, *Policy](seed),
		policiesFor: newMap[string, []*Policy](seed),
	}
}

// Version counts the batches behind the view.
func (v *View) Version() uint64 { return v.version }

// WorkloadByUID finds a workload by its primary key; nil if unknown.
func (v *View) WorkloadByUID(uid string) *Workload {
	w, _ := v.workloads.get(uid)
	return w
}

// WorkloadByAddr finds who holds an address. Of several holders pods win over
// other kinds, then HBONE over plaintext, then the latest.
func (v *View) WorkloadByAddr(network string, ip netip.Addr) *Workload {
	holders, _ := v.byAddr.get(NetworkAddress{network, ip})
	var best *Workload
	for _, w := range holders {
		if best == nil || rank(w) >= rank(best) {
			best = w
		}
	}
	return best
}

func rank(w *Workload) int {
	points := 0
	if strings.Contains(w.UID, "//Pod/") {
		points += 2
	}
	if w.Protocol == HBONE {
		points++
	}
	return points
}

// WorkloadByPod finds the workload of a pod; an empty node stands for any node.
func (v *View) WorkloadByPod(node, namespace, name, serviceAccount string) *Workload {
	found, _ := v.byPod.get(podKey{namespace, name, serviceAccount})
	for _, f := range slices.Backward(found) {
		if node == "" || f.Node == node {
			return f
		}
	}
	return nil
}

// WorkloadByHost finds a workload by its own host name.
func (v *View) WorkloadByHost(namespace, host string) *Workload {
	found, _ := v.byWorkHost.get(NamespacedHostname{namespace, host})
	if len(found) == 0 {
		return nil
	}
	return found[0]
}

// ServiceByVIP finds the service behind a virtual address as a client of clientNS sees it:
// exact addresses first, then ranges.
func (v *View) ServiceByVIP(network string, ip netip.Addr, clientNS string) *Service {
	exact, _ := v.byVIP.get(NetworkAddress{network, ip})
	if s := bestService(exact, clientNS); s != nil {
		return s
	}
	ranges, _ := v.ranges.get(network)
	var best *vipRange
	for i := range ranges {
		r := &ranges[i]
		if !r.prefix.Contains(ip) || !r.service.VisibleTo(clientNS) {
			continue
		}
		if best == nil || r.beats(best, clientNS) {
			best = r
		}
	}
	if best == nil {
		return nil
	}
	return best.service
}

// beats compares (in the client's namespace, prefix length, canonical).
func (r *vipRange) beats(o *vipRange, clientNS string) bool {
	if mine, theirs := r.service.Namespace == clientNS, o.service.Namespace == clientNS; mine != theirs {
		return mine
	}
	if r.prefix.Bits() != o.prefix.Bits() {
		return r.prefix.Bits() > o.prefix.Bits()
	}
	return r.service.Canonical && !o.service.Canonical
}

// bestService prefers the client's own namespace, then the canonical owner, then the first.
func bestService(candidates []*Service, clientNS string) *Service {
	var first, canonical *Service
	for _, s := range candidates {
		switch {
		case !s.VisibleTo(clientNS):
			continue
		case s.Namespace == clientNS:
			return s
		case s.Canonical:
			canonical = s
		}
		if first == nil {
			first = s
		}
	}
	if canonical != nil {
		return canonical
	}
	return first
}

// ServiceByHost finds a service by its exact name.
func (v *View) ServiceByHost(namespace, host string) *Service {
	s, _ := v.services.get(NamespacedHostname{namespace, host})
	return s
}

// BestServiceByHost finds the owner of a host name as a client of clientNS sees it.
func (v *View) BestServiceByHost(host, clientNS string) *Service {
	candidates, _ := v.byHost.get(host)
	return bestService(candidates, clientNS)
}

// ServicesByHost lists all owners of a host name, in order of arrival.
func (v *View) ServicesByHost(host string) []*Service {
	found, _ := v.byHost.get(host)
	return found
}

// Endpoints lists the members of a service, sorted by uid, whatever their health.
func (v *View) Endpoints(service NamespacedHostname) []Endpoint {
	found, _ := v.endpoints.get(service)
	return found
}

// Endpoint finds one member of a service.
func (v *View) Endpoint(service NamespacedHostname, uid string) *Endpoint {
	all := v.Endpoints(service)
	i := sort.Search(len(all), func(i int) bool { return all[i].Workload.UID >= uid })
	if i < len(all) && all[i].Workload.UID == uid {
		return &all[i]
	}
	return nil
}

// PolicyByName finds a policy by its resource name.
func (v *View) PolicyByName(resource string) *Policy {
	p, _ := v.policies.get(resource)
	return p
}

// PoliciesFor yields the policies that apply to a workload: of its namespace, of the
// whole mesh, and those it names. A name without a policy yields it with nil.
func (v *View) PoliciesFor(w *Workload) iter.Seq2[string, *Policy] {
	return func(yield func(string, *Policy) bool) {
		// Policies of the whole mesh are kept under the empty namespace.
		scopes := [2]string{w.Namespace, ""}
		for i, ns := range scopes {
			if i == 1 && w.Namespace == "" {
				break
			}
			found, _ := v.policiesFor.get(ns)
			for _, p := range found {
				if !yield(p.Resource, p) {
					return
				}
			}
		}
		for _, name := range w.Policies {
			if !yield(name, v.PolicyByName(name)) {
				return
			}
		}
	}
}

// Workloads yields all workloads in no particular order.
func (v *View) Workloads() iter.Seq[*Workload] { return values(v.workloads) }

// Services yields all services in no particular order.
func (v *View) Services() iter.Seq[*Service] { return values(v.services) }

// Policies yields all policies in no particular order.
func (v *View) Policies() iter.Seq[*Policy] { return values(v.policies) }

// Staged yields the names of services that have members but are not known themselves.
func (v *View) Staged() iter.Seq2[NamespacedHostname, []Endpoint] {
	return func(yield func(NamespacedHostname, []Endpoint) bool) {
		for key, members := range v.endpoints.all() {
			if v.ServiceByHost(key.Namespace, key.Hostname) == nil && !yield(key, members) {
				return
			}
		}
	}
}

// Sizes counts workloads, services and policies.
func (v *View) Sizes() (workloads, services, policies int) {
	return v.workloads.size, v.services.size, v.policies.size
}

func values[K comparable, V any](m pmap[K, V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, val := range m.all() {
			if !yield(val) {
				return
			}
		}
	}
}
