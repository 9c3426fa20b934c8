// Package rbacgoldens compares layer 7 authorization with Istio's own translation of it, as behaviour.
//
// Istio's source module holds AuthorizationPolicies and, for each, the RBAC filters of Envoy that its control plane makes of them. The
// filters go into a stock Envoy; the policies go through istiod-lite's derivation into our waypoint's filters (by the seam of
// integration/authzl7). Requests that are made from the policy's own values go to both, over real connections with real certificates and
// addresses to Envoy; no verdict may differ. A rule with many clauses matches hardly anything, so that each clause, and each value of a
// clause, is also taken alone: the filter is cut where the policy is.
//
// The data is Istio's and no part of this repository: it is read from the module cache, or from the directory that MARROW_RBAC_GOLDENS names
// (the module's pilot/pkg/security/authz/builder/testdata); where it is not at hand the module is fetched. The tests have the build tag lab and
// are run by make rbac-goldens alone, since they need the network.
//
// Invariant: no verdict differs from that of Istio's filters (TestVerdictsEqualIstio).
//
// Neighbours: integration/authzl7 compares with a reference of our own; istiod-lite/internal/derive/waypoint and
// waypoint/internal/filters are what is judged.
package rbacgoldens
