// Package gateway turns Gateways into what runs them: for a Gateway of class istio-waypoint a ServiceAccount, a
// Deployment and a Service, all owned by it, and its status; and the GatewayClasses of this control plane. It is a
// decider: rows in, objects and statuses out.
//
// Derive answers with objects that have to be created or changed, already merged with what is stored: an object that is
// as it should be is not in the answer, so applying the answer until it is empty ends. Nothing is deleted here, owner
// references do that. Conditions carry no transition time; whoever writes them knows the clock.
//
// It never touches an object of another owner, a Gateway of another controller's class, or a GatewayClass that exists.
//
// Invariants:
//   - applying the answer makes the next answer empty (TestDeriveSettles)
//   - an address appears only when a pod is ready and never disappears while the Service stands (TestAddresses)
//   - a foreign Deployment, Service or GatewayClass of the same name is left alone and reported (TestConflicts)
//
// Neighbours: derive/ambient reads the addresses that are written here; derive/waypoint makes the configuration of the
// pods; status writes.
package gateway
