// Package upstream knows the clusters, chooses an endpoint and opens connections to it.
//
// Clusters and their endpoints arrive compiled from intake and are replaced as a whole; what was learnt of an endpoint (open requests,
// failures, pooled connections) lives on as long as the endpoint keeps its address and its identity. An endpoint in the mesh is reached
// through a tunnel to its node's proxy, as this waypoint's identity, and has to present the identity that the control plane named; any
// other endpoint is reached directly. It never decides which cluster a request takes and never retries.
// Rooms that have questions of their own put them by Store.Ask.
//
// How an endpoint is chosen follows Envoy: priorities share the load by how much of them is usable (TestFailoverByPriority), localities
// by their weights (TestLocalityWeights), endpoints by weight, load, turn or hash; ring and Maglev table are point for point Envoy's,
// so that both send a key to the same place.
//
// Where a cluster has health checks, its endpoints are asked as well, over connections that go the way of requests (TestChecks).
//
// Invariants: an unhealthy or ejected endpoint is not picked (TestPickSkipsUnhealthy, TestOutlierEjection); a new identity behind an
// old address never gets a connection of the old one (TestIdentityChangeDropsConnections); limits hold (TestCircuitBreakers); the same
// hash picks the same endpoint, and the loss of another endpoint moves few (TestHashIsConsistent).
//
// Neighbours: intake fills it, phases asks it, hbone and mtls carry the tunnels.
package upstream
