package mesh

import (
	"errors"
	"slices"
	"strings"
)

// Batch is one change of the mesh. Upserts replace what has the same name; removals come after them.
type Batch struct {
	Workloads []*Workload
	Services  []*Service
	Policies  []*Policy
	// Removed are address resource names: a workload's uid, or "namespace/hostname" of a service.
	Removed []string
	// RemovedPolicies are policy resource names.
	RemovedPolicies []string
}

// Empty says that the batch changes nothing.
func (b *Batch) Empty() bool {
	return len(b.Workloads)+len(b.Services)+len(b.Policies)+len(b.Removed)+len(b.RemovedPolicies) == 0
}

// Reject is one resource of a batch that could not be taken over, with the reason.
type Reject struct {
	Name string
	Err  error
}

// Reasons for which With refuses a resource.
var (
	ErrNoUID      = errors.New("workload has no uid: it could never be updated or removed")
	ErrNoHostname = errors.New("service has no hostname: nothing could refer to it")
	ErrNoName     = errors.New("policy has no resource name: it could never be updated or removed")
)

// With makes the next View. It shares with v all that the batch does not touch; v stays as it was.
// A resource that cannot be taken over is reported and does not hold back the others.
func (v *View) With(b Batch) (*View, []Reject) {
	next := *v
	next.version++
	e := &edit{View: &next, owner: new(owner), members: map[NamespacedHostname]map[string]Endpoint{}}
	for _, w := range b.Workloads {
		if w.UID == "" {
			e.rejects = append(e.rejects, Reject{Name: w.Namespace + "/" + w.Name, Err: ErrNoUID})
			continue
		}
		e.removeWorkload(w.UID)
		e.insertWorkload(w)
	}
	for _, s := range b.Services {
		if s.Hostname == "" {
			e.rejects = append(e.rejects, Reject{Name: s.ResourceName(), Err: ErrNoHostname})
			continue
		}
		e.removeService(s.Key())
		e.insertService(s)
	}
	for _, p := range b.Policies {
		if p.Resource == "" {
			e.rejects = append(e.rejects, Reject{Name: p.Key(), Err: ErrNoName})
			continue
		}
		e.removePolicy(p.Resource)
		e.insertPolicy(p)
	}
	for _, name := range b.Removed {
		e.removeAddress(name)
	}
	for _, name := range b.RemovedPolicies {
		e.removePolicy(name)
	}
	e.mergeMembers()
	return &next, e.rejects
}

// edit is a View under construction.
type edit struct {
	*View
	owner   *owner
	rejects []Reject
	// members collects the changed endpoints by service and uid; an Endpoint without workload is gone.
	members map[NamespacedHostname]map[string]Endpoint
}

// removeAddress resolves a removed name as the protocol wants it: a uid if there is
// such a workload, else "namespace/hostname" of a service.
func (e *edit) removeAddress(name string) {
	if e.WorkloadByUID(name) != nil {
		e.removeWorkload(name)
		return
	}
	ns, host, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(host, "/") {
		return // the uid of a workload we do not know
	}
	e.removeService(NamespacedHostname{ns, host})
}

func (e *edit) insertWorkload(w *Workload) {
	e.workloads.set(e.owner, w.UID, w)
	if !w.HostNetwork {
		for _, ip := range w.Addresses {
			addTo(&e.byAddr, e.owner, NetworkAddress{w.Network, ip}, w)
		}
	}
	addTo(&e.byPod, e.owner, podOf(w), w)
	if w.Hostname != "" {
		addTo(&e.byWorkHost, e.owner, NamespacedHostname{w.Namespace, w.Hostname}, w)
	}
	for i := range w.Services {
		e.member(w.Services[i].Service, w.UID, Endpoint{Workload: w, Ports: w.Services[i].Ports})
	}
}

func (e *edit) removeWorkload(uid string) {
	w := e.WorkloadByUID(uid)
	if w == nil {
		return
	}
	e.workloads.del(e.owner, uid)
	if !w.HostNetwork {
		for _, ip := range w.Addresses {
			dropFrom(&e.byAddr, e.owner, NetworkAddress{w.Network, ip}, w)
		}
	}
	dropFrom(&e.byPod, e.owner, podOf(w), w)
	if w.Hostname != "" {
		dropFrom(&e.byWorkHost, e.owner, NamespacedHostname{w.Namespace, w.Hostname}, w)
	}
	for i := range w.Services {
		e.member(w.Services[i].Service, uid, Endpoint{})
	}
}

func podOf(w *Workload) podKey { return podKey{w.Namespace, w.Name, w.ID.ServiceAccount()} }

func (e *edit) member(service NamespacedHostname, uid string, ep Endpoint) {
	changes := e.members[service]
	if changes == nil {
		changes = map[string]Endpoint{}
		e.members[service] = changes
	}
	changes[uid] = ep
}

// mergeMembers writes each changed endpoint list once, however many members changed.
func (e *edit) mergeMembers() {
	for service, changes := range e.members {
		old, _ := e.endpoints.get(service)
		next := make([]Endpoint, 0, len(old)+len(changes))
		for _, ep := range old {
			if _, changed := changes[ep.Workload.UID]; !changed {
				next = append(next, ep)
			}
		}
		kept := len(next)
		for _, ep := range changes {
			if ep.Workload != nil {
				next = append(next, ep)
			}
		}
		if len(next) == 0 {
			e.endpoints.del(e.owner, service)
			continue
		}
		if len(next) > kept {
			slices.SortFunc(next, func(a, b Endpoint) int { return strings.Compare(a.Workload.UID, b.Workload.UID) })
		}
		e.endpoints.set(e.owner, service, next)
	}
}

func (e *edit) insertService(s *Service) {
	e.services.set(e.owner, s.Key(), s)
	addTo(&e.byHost, e.owner, s.Hostname, s)
	for _, vip := range s.VIPs {
		if vip.Exact() {
			addTo(&e.byVIP, e.owner, NetworkAddress{vip.Network, vip.Prefix.Addr()}, s)
			continue
		}
		addTo(&e.ranges, e.owner, vip.Network, vipRange{prefix: vip.Prefix.Masked(), service: s})
	}
}

func (e *edit) removeService(key NamespacedHostname) {
	s := e.ServiceByHost(key.Namespace, key.Hostname)
	if s == nil {
		return
	}
	e.services.del(e.owner, key)
	dropFrom(&e.byHost, e.owner, s.Hostname, s)
	for _, vip := range s.VIPs {
		if vip.Exact() {
			dropFrom(&e.byVIP, e.owner, NetworkAddress{vip.Network, vip.Prefix.Addr()}, s)
			continue
		}
		dropFrom(&e.ranges, e.owner, vip.Network, vipRange{prefix: vip.Prefix.Masked(), service: s})
	}
}

func (e *edit) insertPolicy(p *Policy) {
	e.policies.set(e.owner, p.Resource, p)
	if ns, ok := scopeKey(p); ok {
		addTo(&e.policiesFor, e.owner, ns, p)
	}
}

func (e *edit) removePolicy(resource string) {
	p := e.PolicyByName(resource)
	if p == nil {
		return
	}
	e.policies.del(e.owner, resource)
	if ns, ok := scopeKey(p); ok {
		dropFrom(&e.policiesFor, e.owner, ns, p)
	}
}

// scopeKey is where a policy applies without being named; selector policies apply nowhere by themselves.
func scopeKey(p *Policy) (string, bool) {
	switch p.Scope {
	case PolicyGlobal:
		return "", true
	case PolicyNamespace:
		return p.Namespace, true
	case PolicySelector:
	}
	return "", false
}

// addTo appends to a list without disturbing older views of it; a value is listed once.
func addTo[K, V comparable](m *pmap[K, []V], o *owner, k K, val V) {
	old, _ := m.get(k)
	if slices.Contains(old, val) {
		return
	}
	m.set(o, k, append(slices.Clip(old), val))
}

// dropFrom removes a value from a list without disturbing older views of it.
func dropFrom[K, V comparable](m *pmap[K, []V], o *owner, k K, val V) {
	old, _ := m.get(k)
	i := slices.Index(old, val)
	switch {
	case i < 0:
	case len(old) == 1:
		m.del(o, k)
	default:
		m.set(o, k, slices.Concat(old[:i], old[i+1:]))
	}
}
