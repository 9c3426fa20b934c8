// Package authzl7 compares layer 7 authorization, from the AuthorizationPolicy to the waypoint's verdict, with a slow and obvious reading
// of the policy (goal R7).
//
// The reference is written from the meaning of the API alone and knows neither Envoy's messages nor this project's programs. Random sets
// of policies and random requests, from a seed, go three ways: to the reference; to istiod-lite's derivation, which leaves the filters that
// it would send; and, with those, to the waypoint's filters, which leave their verdicts. The last two are other programs' rooms, so they are
// reached through their own tests (TestSeam in each) and files between them. Nothing may differ, neither for requests nor for opaque
// connections. MARROW_AUTHZ_CASES says how many requests; `make authz-l7` takes 100,000.
//
// The one place where Marrow is stricter than Istio on purpose is part of the reference: a host in a rule that refuses means that host with
// any port too.
//
// Invariant: no verdict differs from the reference's (TestVerdictsEqualReference).
//
// Neighbours: istiod-lite/internal/derive/waypoint and waypoint/internal/filters are what is judged.
package authzl7
