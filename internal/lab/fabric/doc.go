// Package fabric is the lab's network: nodes and pods as network namespaces.
//
// What it does: the namespace that New is called in becomes the fabric, a
// router. Each node is a namespace joined to it by a veth pair; each pod is a
// namespace joined to its node by a veth pair, point to point: the pod has a
// single address (IPv4 /32, IPv6 /128) and reaches everything through its
// node. SetServices programs the Services' virtual addresses into every
// node's nftables, as kube-proxy does. StartCapture records packets.
//
// Addresses (Plan): node i has pods 10.244.i.0/24 and fd00:10:244:i::/64, its
// uplink is 172.30.i.2/30 and fd00:172:30:i::2/64 (fabric side .1 and ::1).
// Services live in 10.96.0.0/16 and fd00:10:96::/112; the DNS address
// 10.96.0.10 (fd00:10:96::a) is on the fabric's own loopback.
//
// Kernel settings in every namespace: rp_filter is off, because a mesh proxy
// delivers to its pod with the client's source address; IPv6 duplicate address
// detection is off, so that addresses work at once; the fabric and the nodes
// forward, pods do not. Delivery over lo with a foreign source and a
// fwmark rule for the answers needs nothing else (TestSpoofedDeliveryOverLo):
// route_localnet and accept_local keep their defaults.
//
// What it never does: it runs no program, writes no file, keeps nothing
// outside the namespaces. When its process ends the kernel removes all of it.
//
// Invariants: pods reach each other on one node and across nodes, in both
// families, with their own address as source (TestPodToPod); a virtual address
// spreads over its endpoints, and one without endpoints is refused at once
// (TestServices, TestServiceRefused); UDP clients leave an endpoint that is gone
// (TestUDPLeavesGoneEndpoint); rules are replaced in one transaction
// (TestReplaceKeepsConnections); no address is given twice (TestPlanProperties).
//
// Neighbours: sandbox makes the namespace it starts in, proc runs programs in
// its namespaces, labdns listens on its DNS address, pcap writes and reads its
// captures.
package fabric
