// Package ruleset holds nftables tables, policy routing rules and local
// routes as plain values that can be compared and printed, so that deciders
// produce them and tests read them.
//
// It does no I/O and knows nobody's reasons. Its text form is nft's, as far
// as that goes (TestText).
//
// Neighbours: cni/redirect makes values, netsys applies them.
package ruleset
