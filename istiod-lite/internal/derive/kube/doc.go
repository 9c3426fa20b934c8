// Package kube holds what the derivations know about Kubernetes and Istio objects in common: names of labels, hostnames
// of Services, protocols of ports, selectors, age, waypoint references, locality, telemetry names.
//
// Everything here is a pure function over one or two objects. The package never decides what a client gets; that is the
// work of derive/ambient, derive/waypoint and derive/gateway, its neighbours.
package kube
