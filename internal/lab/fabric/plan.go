package fabric

import (
	"fmt"
	"net/netip"
)

const (
	// MTU of every link.
	MTU = 1500

	maxNodes = 254
	// firstPod is the first host number for pods; number 1 is the gateway.
	firstPod = 2
	lastPod  = 254
)

// DNS4 is the address of the lab's DNS server.
func DNS4() netip.Addr { return netip.AddrFrom4([4]byte{10, 96, 0, 10}) }

// DNS6 is the IPv6 address of the lab's DNS server.
func DNS6() netip.Addr { return netip.MustParseAddr("fd00:10:96::a") }

// ServiceCIDR4 is where Services get their IPv4 addresses.
func ServiceCIDR4() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96, 0, 0}), 16)
}

// ServiceCIDR6 is where Services get their IPv6 addresses.
func ServiceCIDR6() netip.Prefix { return netip.MustParsePrefix("fd00:10:96::/112") }

// Plan holds the addresses of one node.
type Plan struct {
	Index   int // from 1
	Name    string
	Link    string // the fabric's side of the uplink: n1, n2, ...
	Fabric4 netip.Prefix
	Fabric6 netip.Prefix
	Node4   netip.Prefix
	Node6   netip.Prefix
	Pods4   netip.Prefix
	Pods6   netip.Prefix
}

// PlanNode is the plan of node number index (from 1).
func PlanNode(index int, name string) (Plan, error) {
	if index < 1 || index > maxNodes {
		return Plan{}, fmt.Errorf("fabric: node %q has number %d; a lab has 1 to %d nodes", name, index, maxNodes)
	}
	i := byte(index)
	// In IPv6 the number is written with decimal digits, so that it reads the
	// same in both families: node 12 is fd00:10:244:12::/64.
	link6 := netip.MustParseAddr(fmt.Sprintf("fd00:172:30:%d::", index))
	pods6 := netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%d::", index))
	return Plan{
		Index:   index,
		Name:    name,
		Link:    fmt.Sprintf("n%d", index),
		Fabric4: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, i, 1}), 30),
		Node4:   netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, i, 2}), 30),
		Fabric6: netip.PrefixFrom(host6(link6, 1), 64),
		Node6:   netip.PrefixFrom(host6(link6, 2), 64),
		Pods4:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, i, 0}), 24),
		Pods6:   netip.PrefixFrom(pods6, 64),
	}, nil
}

// Gateway4 is the node's address on every pod's link.
func (p Plan) Gateway4() netip.Addr { return p.Pod4(1) }

// Gateway6 is the node's IPv6 address on every pod's link.
func (p Plan) Gateway6() netip.Addr { return p.Pod6(1) }

// Pod4 is the address of the pod with this host number.
func (p Plan) Pod4(number int) netip.Addr {
	a := p.Pods4.Addr().As4()
	a[3] = byte(number)
	return netip.AddrFrom4(a)
}

// Pod6 is the IPv6 address of the pod with this host number, written with
// decimal digits like the node's number.
func (p Plan) Pod6(number int) netip.Addr { return host6(p.Pods6.Addr(), number) }

// host6 puts a host number, with its decimal digits, into the last group.
func host6(prefix netip.Addr, number int) netip.Addr {
	a := prefix.As16()
	group := 0
	for shift, rest := 0, number; rest > 0; shift, rest = shift+4, rest/10 {
		group |= rest % 10 << shift
	}
	a[14], a[15] = byte(group>>8), byte(group)
	return netip.AddrFrom16(a)
}

// numbers gives out host numbers. It goes round before it gives a number
// again, so that the address of a pod that has just ended stays unused while
// connections to it are still remembered.
type numbers struct {
	used [lastPod + 1]bool
	next int
}

func (n *numbers) take() (int, bool) {
	for range lastPod - firstPod + 1 {
		if n.next < firstPod || n.next > lastPod {
			n.next = firstPod
		}
		got := n.next
		n.next++
		if !n.used[got] {
			n.used[got] = true
			return got, true
		}
	}
	return 0, false
}

func (n *numbers) free(number int) { n.used[number] = false }
