// Package waypoint makes, finds and enrols waypoints: Gateways of class
// istio-waypoint, and the labels that lead traffic to them.
//
// What it does: writes the Gateway, decides which labels enrol a namespace, a
// Service or a service account, and reads a Gateway's condition.
//
// What it never does: it runs no waypoint; the control plane turns the Gateway
// into a Deployment.
//
// Invariants: enrolling a service account labels exactly the Services whose
// pods all run as it (TestEnrolServiceAccount); only Gateways of our class are
// listed or deleted (TestOnlyWaypoints).
//
// Neighbours: marrow/internal/cli prints, internal/lab stores.
package waypoint
