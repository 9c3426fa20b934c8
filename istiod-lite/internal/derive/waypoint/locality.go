package waypoint

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	networkingapi "istio.io/api/networking/v1alpha3"
)

// Place is where pods of a waypoint run. Resources are derived for one place: what is near depends on it.
type Place struct{ Region, Zone, Subzone string }

// String is the place in Istio's form, region/zone/subzone; empty = unknown.
func (p Place) String() string {
	if p == (Place{}) {
		return ""
	}
	return p.Region + "/" + p.Zone + "/" + p.Subzone
}

// Labels that stand for where a workload runs, wherever it runs.
const (
	networkLabel = "topology.istio.io/network"
	regionLabel  = "topology.kubernetes.io/region"
	zoneLabel    = "topology.kubernetes.io/zone"
	subzoneLabel = "topology.istio.io/subzone"
	nodeLabel    = "kubernetes.io/hostname"
	clusterLabel = "topology.istio.io/cluster"
)

// nearness is how a cluster prefers near endpoints; the zero value is not at all.
type nearness struct {
	distribute []*networkingapi.LocalityLoadBalancerSetting_Distribute
	failover   []*networkingapi.LocalityLoadBalancerSetting_Failover
	labels     []string // a label, or label=value
	active     bool
}

// nearness finds what holds for a service: the DestinationRule's word, the service's own, the mesh's. Without outlier detection
// nobody would notice that near endpoints fail, so only a service's own wish makes them preferred then.
func (d *derivation) nearness(s *Service, policy *networkingapi.TrafficPolicy) nearness {
	lb, outlier := policy.GetLoadBalancer(), policy.GetOutlierDetection() != nil
	own := lb.GetLocalityLbSetting()
	switch {
	case lb.GetZoneAwareLbSetting() != nil: // at a waypoint no more than failover by locality
		return nearness{active: outlier}
	case own != nil && own.GetEnabled() != nil && !own.GetEnabled().GetValue():
		return nearness{}
	case own != nil:
		return ruled(own, outlier)
	case len(s.Prefer) > 0:
		return nearness{labels: s.Prefer, active: true}
	}
	mesh := d.in.Mesh.Config.GetLocalityLbSetting()
	if mesh.GetEnabled() != nil && !mesh.GetEnabled().GetValue() {
		return nearness{}
	}
	return ruled(mesh, outlier)
}

func ruled(l *networkingapi.LocalityLoadBalancerSetting, outlier bool) nearness {
	n := nearness{distribute: l.GetDistribute(), failover: l.GetFailover(), labels: l.GetFailoverPriority()}
	n.active = len(n.distribute) > 0 || outlier
	return n
}

// priority of an endpoint before gaps are closed; a place that is not known prefers nothing.
func (d *derivation) priority(n *nearness, e *Endpoint) uint32 {
	p := d.in.Place
	switch {
	case !n.active || len(n.distribute) > 0:
		return 0
	case len(n.labels) > 0:
		return d.labelPriority(n.labels, e)
	case p.Region == "":
		return 0
	case e.Region == p.Region && e.Zone == p.Zone && e.Subzone == p.Subzone:
		return 0
	case e.Region == p.Region && e.Zone == p.Zone:
		return 1
	case e.Region == p.Region:
		return 2
	}
	for _, f := range n.failover {
		if f.GetFrom() == p.Region {
			if f.GetTo() == e.Region {
				return 3
			}
			return 4
		}
	}
	return 3
}

// labelPriority counts the leading labels that endpoint and waypoint have in common.
func (d *derivation) labelPriority(labels []string, e *Endpoint) uint32 {
	for i, l := range labels {
		key, want, given := strings.Cut(l, "=")
		if !given {
			want = d.ownLabel(key)
		}
		if d.placeLabel(&e.Workload, key) != want {
			return uint32(len(labels) - i)
		}
	}
	return 0
}

func (d *derivation) ownLabel(key string) string {
	w := Workload{Region: d.in.Place.Region, Zone: d.in.Place.Zone, Subzone: d.in.Place.Subzone, Network: d.in.Network, Labels: d.in.Labels}
	return d.placeLabel(&w, key)
}

// placeLabel is a label's value; where a workload runs is told by what is known of it.
func (d *derivation) placeLabel(w *Workload, key string) string {
	switch key {
	case networkLabel:
		return w.Network
	case regionLabel:
		return w.Region
	case zoneLabel:
		return w.Zone
	case subzoneLabel:
		return w.Subzone
	case nodeLabel:
		return w.Node
	case clusterLabel:
		return d.in.Mesh.ClusterID
	}
	return w.Labels[key]
}

// closeGaps numbers priorities from 0 without holes: Envoy refuses others.
func closeGaps(groups []*group) {
	used := map[uint32]bool{}
	for _, g := range groups {
		used[g.priority] = true
	}
	order := slices.Sorted(maps.Keys(used))
	for _, g := range groups {
		i, _ := slices.BinarySearch(order, g.priority)
		g.priority = uint32(i)
	}
}

type groupKey struct {
	at       locality
	priority uint32
}

// group is the endpoints of one locality and priority.
type group struct {
	groupKey
	endpoints []*Endpoint
	weight    uint64
}

// distributed gives localities the weights that the first rule for the waypoint's own says; others get nothing. The groups stay as
// they are where no rule speaks of this place.
func (n *nearness) distributed(own Place, groups []*group) []*group {
	for _, rule := range n.distribute {
		if !covers(rule.GetFrom(), locality{own.Region, own.Zone, own.Subzone}) {
			continue
		}
		var out []*group
		taken := map[*group]bool{}
		for _, to := range bySpecificity(rule.GetTo()) {
			var matched []*group
			total := uint64(0)
			for _, g := range groups {
				if !taken[g] && covers(to, g.at) {
					taken[g] = true
					matched, total = append(matched, g), total+g.weight
				}
			}
			for _, g := range matched {
				const fine = 1000 // so that shares of small percentages are not rounded away
				share := uint64(rule.GetTo()[to]) * fine * g.weight / max(total, 1)
				if rule.GetTo()[to] > 0 {
					g.weight = max(share, 1)
					out = append(out, g)
				}
			}
		}
		slices.SortFunc(out, func(a, b *group) int { return a.at.compare(b.at) })
		return out
	}
	return groups
}

// bySpecificity puts exact localities before patterns, longer ones first.
func bySpecificity(to map[string]uint32) []string {
	keys := slices.Sorted(maps.Keys(to))
	depth := func(s string) int { return strings.Count(strings.TrimSuffix(s, "*"), "/")*2 - strings.Count(s, "*") }
	slices.SortStableFunc(keys, func(a, b string) int { return cmp.Compare(depth(b), depth(a)) })
	return keys
}

// covers matches a pattern such as "region", "region/*" or "region/zone/subzone".
func covers(pattern string, at locality) bool {
	have := []string{at.region, at.zone, at.subzone}
	for i, part := range strings.SplitN(pattern, "/", len(have)) {
		if part == "*" {
			return true
		}
		if part != have[i] {
			return false
		}
	}
	return true
}
