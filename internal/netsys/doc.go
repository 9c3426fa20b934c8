// Package netsys is the only room that speaks to the Linux kernel about
// networking: network namespaces, TCP sockets created inside a pod's
// namespace, original destinations of redirected connections, nftables
// tables, ip rules and routes.
//
// It does what it is told. It never decides where a packet or a connection
// goes, knows no pods, identities or protocols above TCP, and logs nothing.
//
// Invariants:
//   - A thread that entered a namespace either comes back to the one it left
//     or is destroyed, never reused elsewhere (TestDoRestoresThread).
//   - A socket belongs to the namespace it was made in for ever, so only its
//     creation happens on a locked thread; connecting and waiting use Go's
//     poller like any other connection (TestDialInsideNamespace).
//   - Sockets made in advance for a namespace that is called often are few, are
//     closed when nobody wants them, and do not outlive the namespace's holder
//     (TestSpareSockets).
//   - Addresses that leave this room are never IPv4-mapped IPv6
//     (TestUnmap).
//   - A table is replaced in one transaction: a packet sees the old rules or
//     the new ones (TestApplyTableReplaces).
//
// Neighbours: nft holds the tables as plain values, so that deciders can
// produce them; ztunnel's capture and outbound make sockets here; cni's
// drivers apply tables, rules and routes here.
package netsys
