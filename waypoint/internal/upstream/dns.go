package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Names is what a cluster's endpoints are called, for somebody to resolve.
type Names struct {
	list    *Assignment // endpoints without addresses where a host stands in hosts
	hosts   []string    // of the endpoint at the same place; empty = it has an address
	Refresh time.Duration
	One     bool // only the first address of a name counts
	Family  clusterv3.Cluster_DnsLookupFamily
}

// Lookup resolves a name.
type Lookup func(ctx context.Context, host string) ([]netip.Addr, error)

const (
	defaultRefresh = 5 * time.Second // as in Envoy
	leastRefresh   = time.Second
	lookupLimit    = 5 * time.Second
	maxLookups     = 16 // at a time
	maxAddresses   = 256
)

// compileNames compiles a cluster whose endpoints are names.
func (c *Config) compileNames(p *clusterv3.Cluster) error {
	n := &Names{One: p.GetType() == clusterv3.Cluster_LOGICAL_DNS, Family: p.GetDnsLookupFamily(), Refresh: defaultRefresh}
	if d := p.GetDnsRefreshRate().AsDuration(); d > 0 { //nolint:staticcheck // the newer form is an extension
		n.Refresh = max(d, leastRefresh)
	}
	n.list = &Assignment{Name: p.GetLoadAssignment().GetClusterName(), Overprovision: p.GetLoadAssignment().GetPolicy().GetOverprovisioningFactor().GetValue()}
	for _, g := range p.GetLoadAssignment().GetEndpoints() {
		if err := strict.Only(g, "locality", "lb_endpoints", "load_balancing_weight", "priority"); err != nil {
			return err
		}
		l := g.GetLocality()
		n.list.Groups = append(n.list.Groups, Group{Region: l.GetRegion(), Zone: l.GetZone(), Subzone: l.GetSubZone(), Weight: g.GetLoadBalancingWeight().GetValue()})
		for _, e := range g.GetLbEndpoints() {
			host := ""
			a, named := e.GetEndpoint().GetAddress().GetAddress().(*corev3.Address_SocketAddress)
			if named {
				if _, err := netip.ParseAddr(a.SocketAddress.GetAddress()); err != nil {
					host = a.SocketAddress.GetAddress()
				}
			}
			out := Endpoint{Healthy: true, Weight: 1}
			if host == "" {
				var err error
				if out, _, err = compileEndpoint(e); err != nil {
					return err
				}
			} else {
				out.Addr = netip.AddrPortFrom(netip.Addr{}, uint16(a.SocketAddress.GetPortValue()))
				if w := e.GetLoadBalancingWeight(); w != nil {
					out.Weight = w.GetValue()
				}
				var err error
				if out.Check, err = compileEndpointCheck(e.GetEndpoint().GetHealthCheckConfig()); err != nil {
					return err
				}
			}
			out.Priority, out.Group = g.GetPriority(), len(n.list.Groups)-1
			n.list.Endpoints, n.hosts = append(n.list.Endpoints, out), append(n.hosts, host)
		}
	}
	c.Kind, c.Names, c.EDSName = KindNames, n, "names of "+c.Name
	return nil
}

// resolved is the cluster's list with what its names mean now. Names that mean nothing have no endpoint.
func (n *Names) resolved(name string, known map[string][]netip.Addr) *Assignment {
	out := &Assignment{Name: name, Groups: n.list.Groups, Overprovision: n.list.Overprovision}
	for i, e := range n.list.Endpoints {
		if n.hosts[i] == "" {
			out.Endpoints = append(out.Endpoints, e)
			continue
		}
		addrs := n.wanted(known[n.hosts[i]])
		if n.One && len(addrs) > 1 {
			addrs = addrs[:1]
		}
		for _, a := range addrs {
			at := e
			at.Addr = netip.AddrPortFrom(a, e.Addr.Port())
			if !slices.ContainsFunc(out.Endpoints, func(o Endpoint) bool { return o.Addr == at.Addr && o.Priority == at.Priority }) {
				out.Endpoints = append(out.Endpoints, at)
			}
		}
	}
	return out
}

// wanted are the addresses of the families that count.
func (n *Names) wanted(all []netip.Addr) []netip.Addr {
	var four, six []netip.Addr
	for _, a := range all {
		if a = a.Unmap(); a.Is4() {
			four = append(four, a)
		} else {
			six = append(six, a)
		}
	}
	first, second := six, four
	switch n.Family {
	case clusterv3.Cluster_V4_ONLY:
		return four
	case clusterv3.Cluster_V6_ONLY:
		return six
	case clusterv3.Cluster_ALL:
		return slices.Concat(six, four)
	case clusterv3.Cluster_V4_PREFERRED:
		first, second = four, six
	case clusterv3.Cluster_AUTO:
	}
	if len(first) == 0 {
		return second
	}
	return first
}

// Resolve keeps the endpoints of clusters that are names up to date, until ctx ends. A name that cannot be asked about keeps what it
// meant; one that does not exist means nothing.
func (s *Store) Resolve(ctx context.Context, lookup Lookup) error {
	known, due := map[string][]netip.Addr{}, map[string]time.Time{}
	for {
		now := s.now()
		wanted := s.names()
		var ask []string
		for host := range wanted {
			if !due[host].After(now) {
				ask = append(ask, host)
			}
		}
		slices.Sort(ask)
		for host, addrs := range lookAll(ctx, lookup, ask) {
			if addrs.err == nil {
				known[host] = addrs.list
			}
			due[host] = now.Add(wanted[host])
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop
		}
		for host := range due {
			if _, still := wanted[host]; !still {
				delete(due, host)
				delete(known, host)
			}
		}
		s.applyNames(known, due)
		wait := time.Hour
		for host := range wanted {
			wait = min(wait, due[host].Sub(now))
		}
		t := time.NewTimer(max(wait, leastRefresh/10))
		select {
		case <-t.C:
		case <-s.renamed:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		t.Stop()
	}
}

// answer is what a lookup said.
type answer struct {
	list []netip.Addr
	err  error
}

func lookAll(ctx context.Context, lookup Lookup, hosts []string) map[string]answer {
	out := map[string]answer{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxLookups)
	for _, h := range hosts {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, lookupLimit)
			defer cancel()
			list, err := lookup(ctx, h)
			if d, ok := errors.AsType[*net.DNSError](err); ok && d.IsNotFound {
				list, err = nil, nil
			}
			slices.SortFunc(list, netip.Addr.Compare)
			mu.Lock()
			defer mu.Unlock()
			out[h] = answer{list[:min(len(list), maxAddresses)], err}
		})
	}
	wg.Wait()
	return out
}

// names are the names to resolve, each with how often.
func (s *Store) names() map[string]time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]time.Duration{}
	for _, c := range s.clusters {
		if c.Names == nil {
			continue
		}
		for _, h := range c.Names.hosts {
			if h == "" {
				continue
			}
			if every, there := out[h]; !there || c.Names.Refresh < every {
				out[h] = c.Names.Refresh
			}
		}
	}
	return out
}

// applyNames puts what names mean into the clusters. A cluster of which a name was never asked about waits.
func (s *Store) applyNames(known map[string][]netip.Addr, asked map[string]time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for _, c := range s.clusters {
		if c.Names == nil || slices.ContainsFunc(c.Names.hosts, func(h string) bool { _, ok := asked[h]; return h != "" && !ok }) {
			continue
		}
		next := c.Names.resolved(c.EDSName, known)
		if old := s.given[c.EDSName]; old == nil || !slices.Equal(old.Endpoints, next.Endpoints) || !slices.Equal(old.Groups, next.Groups) {
			s.given[c.EDSName], changed = next, true
		}
	}
	if changed {
		s.publish()
	}
}
