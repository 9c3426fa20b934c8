package ambient

import (
	"cmp"
	"net/netip"
	"strconv"

	"google.golang.org/protobuf/proto"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/istiod-lite/internal/collect"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// gatewayTables hold what Gateways mean to others: waypoints, and the ways to other networks.
type gatewayTables struct {
	waypoints *collect.Table[name, *Waypoint]
	networks  *collect.Table[networkKey, networkGateway]
	byNetwork *collect.Index[string, networkKey, networkGateway]
}

// networkKey is one address of a gateway to another network. Two Gateways with the same one are one gateway.
type networkKey struct {
	network, address string
	port             uint32
}

func (k networkKey) uid() string {
	return "NetworkGateway/" + k.network + "/" + k.address + "/" + strconv.Itoa(int(k.port))
}

func compareNetworks(a, b networkKey) int {
	return cmp.Or(cmp.Compare(a.network, b.network), cmp.Compare(a.address, b.address), cmp.Compare(a.port, b.port))
}

type networkGateway struct {
	namespace, account string
	ip                 netip.Addr // invalid: the address is a name
}

// networkClaim is a Gateway's word about a networkKey.
type networkClaim struct {
	gateway name
	key     networkKey
}

func newGatewayTables(t *rows, classes *collect.Table[string, *gatewayv1.GatewayClass]) gatewayTables {
	var g gatewayTables
	g.waypoints = collect.Derive(t.engine, "waypoints", t.gateways, kube.CompareNames, equalWaypoints,
		func(r *collect.Run, k name, emit func(name, *Waypoint)) {
			gw, _ := collect.Get(r, t.gateways, k)
			class, _ := collect.Get(r, classes, string(gw.Spec.GatewayClassName))
			if w := newWaypoint(gw, class, t.localNetwork(r)); w != nil {
				emit(k, w)
			}
		})
	claims := collect.Derive(t.engine, "network claims", t.gateways,
		func(a, b networkClaim) int {
			return cmp.Or(compareNetworks(a.key, b.key), kube.CompareNames(a.gateway, b.gateway))
		}, identical[networkGateway],
		func(r *collect.Run, k name, emit func(networkClaim, networkGateway)) {
			gw, _ := collect.Get(r, t.gateways, k)
			claimNetworks(gw, func(key networkKey, row networkGateway) { emit(networkClaim{k, key}, row) })
		})
	byKey := collect.NewIndex(claims, compareNetworks, func(c networkClaim, _ networkGateway) []networkKey { return []networkKey{c.key} })
	g.networks = collect.Derive(t.engine, "network gateways", byKey, compareNetworks, identical[networkGateway],
		func(r *collect.Run, k networkKey, emit func(networkKey, networkGateway)) {
			emit(k, collect.Rows(r, byKey, k)[0].Value)
		})
	g.byNetwork = collect.NewIndex(g.networks, cmp.Compare[string], func(k networkKey, _ networkGateway) []string { return []string{k.network} })
	return g
}

// claimNetworks reads a Gateway of the class for other networks.
func claimNetworks(gw *gatewayv1.Gateway, emit func(networkKey, networkGateway)) {
	network := gw.Labels[kube.LabelNetwork]
	if gw.Spec.GatewayClassName != kube.RemoteClass || network == "" {
		return
	}
	for _, l := range gw.Spec.Listeners {
		if l.Protocol != protocolHBONE {
			continue
		}
		account := first(gw.Annotations[kube.AnnotationGatewayServiceAccount], gw.Name+"-"+string(gw.Spec.GatewayClassName))
		for _, a := range gw.Status.Addresses {
			row := networkGateway{namespace: gw.Namespace, account: account}
			if a.Type == nil || *a.Type == gatewayv1.IPAddressType {
				ip, err := netip.ParseAddr(a.Value)
				if err != nil {
					continue
				}
				row.ip = ip
			}
			emit(networkKey{network, a.Value, uint32(l.Port)}, row)
		}
		return // the first listener counts
	}
}

// address is how workloads refer to the gateway.
func (g networkGateway) address(k networkKey) *workload.GatewayAddress {
	out := &workload.GatewayAddress{HboneMtlsPort: k.port}
	if g.ip.IsValid() {
		out.Destination = &workload.GatewayAddress_Address{
			Address: &workload.NetworkAddress{Network: k.network, Address: g.ip.AsSlice()},
		}
	} else {
		out.Destination = &workload.GatewayAddress_Hostname{
			Hostname: &workload.NamespacedHostname{Namespace: g.namespace, Hostname: k.address},
		}
	}
	return out
}

// workload lets node proxies know whom to expect at the gateway.
func (g networkGateway) workload(k networkKey, trustDomain string) *workload.Workload {
	w := &workload.Workload{
		Uid: k.uid(), Name: k.uid(), Namespace: g.namespace, Network: k.network, ServiceAccount: g.account,
		TrustDomain: trustDomain,
	}
	if g.ip.IsValid() {
		w.Addresses = [][]byte{g.ip.AsSlice()}
	} else {
		w.Hostname = k.address
	}
	return w
}

// gatewayOf fetches the gateway to a network, nil if none is known.
func (g gatewayTables) gatewayOf(r *collect.Run, network string) *workload.GatewayAddress {
	if network == "" {
		return nil
	}
	for _, row := range collect.Rows(r, g.byNetwork, network) {
		return row.Value.address(row.Key)
	}
	return nil
}

func equalWaypoints(a, b *Waypoint) bool {
	sameBinding := a.binding == nil && b.binding == nil || a.binding != nil && b.binding != nil && *a.binding == *b.binding
	return a.Name == b.Name && a.traffic == b.traffic && sameBinding && a.admits.String() == b.admits.String() &&
		proto.Equal(a.Address, b.Address)
}

// lookup fetches the waypoint that a binding names.
func (g gatewayTables) lookup(r *collect.Run, wanted bool, n name) *Waypoint {
	if !wanted {
		return nil
	}
	w, _ := collect.Get(r, g.waypoints, n)
	return w
}

// instance fetches the waypoint that a workload is a proxy of, nil if it is none.
func (g gatewayTables) instance(r *collect.Run, ns string, labels map[string]string) *Waypoint {
	gateway := labels[kube.LabelGatewayName]
	if gateway == "" {
		return nil
	}
	w, _ := collect.Get(r, g.waypoints, name{Namespace: ns, Name: gateway})
	return w
}
