package lab

import (
	"fmt"
	"sort"
	"strings"

	"github.com/marrowmesh/marrow/api/policy"
)

func lower(s string) string { return strings.ToLower(s) }

// Kind is a kind that the lab's store can hold.
type Kind struct {
	Group      string
	Kind       string
	Namespaced bool
}

const (
	groupApps       = "apps"
	groupDiscovery  = "discovery.k8s.io"
	groupGateway    = "gateway.networking.k8s.io"
	groupNetworking = "networking.istio.io"
	groupSecurity   = "security.istio.io"
	groupTelemetry  = "telemetry.istio.io"
)

// kindTable answers a lower-case name, singular or plural or short, with its
// kind. It is built per call: it is small, and a package keeps no state.
func kindTable() map[string]Kind {
	table := map[string]Kind{}
	add := func(group, kind string, namespaced bool, names ...string) {
		k := Kind{Group: group, Kind: kind, Namespaced: namespaced}
		table[lower(kind)] = k
		for _, n := range names {
			table[n] = k
		}
	}
	add("", "Namespace", false, "namespaces", "ns")
	add("", "Node", false, "nodes", "no")
	add("", "Pod", true, "pods", "po")
	add("", "Service", true, "services", "svc")
	add("", "ServiceAccount", true, "serviceaccounts", "sa")
	add("", "ConfigMap", true, "configmaps", "cm")
	add("", "Secret", true, "secrets")
	add("", "Endpoints", true, "ep")
	add(groupApps, "Deployment", true, "deployments", "deploy")
	add(groupApps, "ReplicaSet", true, "replicasets", "rs")
	add(groupApps, "DaemonSet", true, "daemonsets", "ds")
	add(groupDiscovery, "EndpointSlice", true, "endpointslices")
	add(groupGateway, "Gateway", true, "gateways", "gtw")
	add(groupGateway, "GatewayClass", false, "gatewayclasses", "gc")
	add(groupGateway, "HTTPRoute", true, "httproutes")
	add(groupGateway, "GRPCRoute", true, "grpcroutes")
	add(groupGateway, "TCPRoute", true, "tcproutes")
	add(groupGateway, "TLSRoute", true, "tlsroutes")
	add(groupGateway, "ReferenceGrant", true, "referencegrants")
	add(groupNetworking, "VirtualService", true, "virtualservices", "vs")
	add(groupNetworking, "DestinationRule", true, "destinationrules", "dr")
	add(groupNetworking, "ServiceEntry", true, "serviceentries", "se")
	add(groupNetworking, "WorkloadEntry", true, "workloadentries", "we")
	add(groupNetworking, "Sidecar", true, "sidecars")
	add(groupNetworking, "EnvoyFilter", true, "envoyfilters")
	add(groupSecurity, "AuthorizationPolicy", true, "authorizationpolicies", "ap")
	add(policy.Group, "RateLimitPolicy", true, "ratelimitpolicies", "rlp")
	add(groupSecurity, "PeerAuthentication", true, "peerauthentications", "pa")
	add(groupSecurity, "RequestAuthentication", true, "requestauthentications", "ra")
	add(groupTelemetry, "Telemetry", true, "telemetries")
	return table
}

// ParseKind reads a kind as users write it: "pod", "pods", "svc",
// "Deployment", "deployment.apps".
func ParseKind(s string) (Kind, error) {
	name, _, _ := strings.Cut(lower(s), ".")
	table := kindTable()
	if k, ok := table[name]; ok {
		return k, nil
	}
	var known []string
	for _, k := range table {
		known = append(known, lower(k.Kind))
	}
	sort.Strings(known)
	return Kind{}, fmt.Errorf("kind %q is not known to the lab; use one of %s", s, strings.Join(compact(known), ", "))
}

func compact(sorted []string) []string {
	out := sorted[:0]
	for i, s := range sorted {
		if i == 0 || s != sorted[i-1] {
			out = append(out, s)
		}
	}
	return out
}

// Ref is an object of this kind.
func (k Kind) Ref(namespace, name string) Ref {
	if !k.Namespaced {
		namespace = ""
	}
	return Ref{Group: k.Group, Kind: k.Kind, Namespace: namespace, Name: name}
}
