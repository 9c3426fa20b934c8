// Package labdns answers the lab's DNS names, as a cluster's DNS would.
//
// What it does: serves, over UDP and TCP, A, AAAA and SRV records of Services
// (<service>.<namespace>.svc.cluster.local; a headless Service has its pods'
// addresses, and <hostname>.<service>... for pods with a hostname), CNAME of
// ExternalName Services, and pods (a-b-c-d.<namespace>.pod.cluster.local).
// Answer is a pure function over Records; Server swaps Records as a whole.
//
// What it never does: it asks no other server. A name outside the cluster does
// not exist, so that a lab behaves the same on every machine.
//
// Invariants: an existing name without records of the asked type answers
// NOERROR with nothing, an unknown name NXDOMAIN (TestAnswer); foreign bytes
// never stop the server (FuzzServe).
//
// Neighbours: fabric owns the address it listens on; internal/lab feeds it.
package labdns
