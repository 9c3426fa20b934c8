package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
)

// Config says what to build.
type Config struct {
	Nodes []string // names, in the order of their numbers
	IPv6  bool     // both families; see HostHasIPv6
}

// Fabric is a running network. It is safe for concurrent use.
type Fabric struct {
	ipv6  bool
	ns    *Netns
	nodes []*Node

	mu   sync.Mutex
	pods map[string]*PodNet

	services serviceState
}

// Node is one node's namespace and addresses.
type Node struct {
	Plan

	ns   *Netns
	h    *netlink.Handle
	free numbers // guarded by Fabric.mu
}

// Netns is the node's network namespace.
func (n *Node) Netns() *Netns { return n.ns }

// IP4 is the node's own address.
func (n *Node) IP4() netip.Addr { return n.Node4.Addr() }

// IP6 is the node's own IPv6 address; whether it exists, Fabric.IPv6 says.
func (n *Node) IP6() netip.Addr { return n.Node6.Addr() }

// PodNet is one pod's network.
type PodNet struct {
	Key   string
	Node  string
	IP4   netip.Addr
	IP6   netip.Addr // zero without IPv6
	Iface string     // the node's side of the pod's link

	ns     *Netns
	number int
}

// Netns is the pod's network namespace.
func (p *PodNet) Netns() *Netns { return p.ns }

// Path names the namespace for other processes of the lab.
func (p *PodNet) Path() string { return p.ns.Path() }

// Addrs are the pod's addresses, IPv4 first.
func (p *PodNet) Addrs() []netip.Addr {
	if p.IP6.IsValid() {
		return []netip.Addr{p.IP4, p.IP6}
	}
	return []netip.Addr{p.IP4}
}

// New turns the current network namespace into the fabric and joins the nodes
// to it. The namespace must be one made for this (see package sandbox).
func New(ctx context.Context, cfg Config) (*Fabric, error) {
	ns, err := CurrentNetns("fabric")
	if err != nil {
		return nil, err
	}
	f := &Fabric{ipv6: cfg.IPv6, ns: ns, pods: map[string]*PodNet{}}
	if err := f.build(ctx, cfg.Nodes); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Fabric) build(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return errors.New("fabric: no nodes; name at least one")
	}
	if err := f.ns.apply(settings(f.ipv6, true)); err != nil {
		return err
	}
	if err := f.prepareFabric(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i, name := range names {
		if seen[name] {
			return fmt.Errorf("fabric: two nodes are named %q", name)
		}
		seen[name] = true
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("fabric: before node %s: %w", name, err)
		}
		if err := f.addNode(i+1, name); err != nil {
			return err
		}
	}
	return f.serviceRoutes()
}

// IPv6 reports whether the fabric has both families.
func (f *Fabric) IPv6() bool { return f.ipv6 }

// Netns is the fabric's own namespace.
func (f *Fabric) Netns() *Netns { return f.ns }

// Nodes are all nodes in order.
func (f *Fabric) Nodes() []*Node { return f.nodes }

// Node finds a node by name.
func (f *Fabric) Node(name string) (*Node, bool) {
	for _, n := range f.nodes {
		if n.Name == name {
			return n, true
		}
	}
	return nil, false
}

// Pod finds a pod by the key it was added with.
func (f *Fabric) Pod(key string) (*PodNet, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.pods[key]
	return p, ok
}

// AddPod makes a pod's namespace on the node and connects it. The key is the
// caller's name for the pod (its UID).
func (f *Fabric) AddPod(node, key string) (*PodNet, error) {
	n, ok := f.Node(node)
	if !ok {
		return nil, fmt.Errorf("fabric: pod %s wants node %q, which does not exist", key, node)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.pods[key]; ok {
		return nil, fmt.Errorf("fabric: pod %s exists already", key)
	}
	number, ok := n.free.take()
	if !ok {
		return nil, fmt.Errorf("fabric: node %s has no address left in %v for pod %s; use more nodes", node, n.Pods4, key)
	}
	p, err := f.connectPod(n, key, number)
	if err != nil {
		n.free.free(number)
		return nil, err
	}
	f.pods[key] = p
	return p, nil
}

// RemovePod takes a pod's link and address away and lets go of its namespace,
// which ends with the last process in it.
func (f *Fabric) RemovePod(key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.pods[key]
	if !ok {
		return fmt.Errorf("fabric: pod %s does not exist", key)
	}
	delete(f.pods, key)
	n, _ := f.Node(p.Node)
	n.free.free(p.number)
	return errors.Join(f.disconnectPod(n, p), p.ns.Close())
}

// Close takes everything down.
func (f *Fabric) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for key, p := range f.pods {
		errs = append(errs, p.ns.Close())
		delete(f.pods, key)
	}
	errs = append(errs, f.clearFabric())
	for _, n := range f.nodes {
		n.h.Close()
		errs = append(errs, n.ns.Close())
	}
	f.nodes = nil
	return errors.Join(append(errs, f.ns.Close())...)
}
