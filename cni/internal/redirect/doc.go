// Package redirect decides which packets of a pod go to the node proxy, as a
// value: nftables tables, ip rules and routes for the pod's own network
// namespace, and the table that marks the node's probes.
//
// It touches no kernel, reads no configuration and has no state.
//
// Invariants:
//   - Every rule that redirects skips the proxy's own mark, so nothing loops
//     (TestEveryRedirectSkipsTheMark).
//   - Port 15008 is never redirected inbound; loopback never (golden files,
//     TestRulesInAPod).
//   - The same options give the same rules in the same order (golden files).
//
// Neighbours: pods asks with a pod's annotations, netsys applies.
package redirect
