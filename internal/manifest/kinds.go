package manifest

import (
	clientextensions "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	clientnetworking "istio.io/client-go/pkg/apis/networking/v1"
	clientnetworkingalpha "istio.io/client-go/pkg/apis/networking/v1alpha3"
	clientnetworkingbeta "istio.io/client-go/pkg/apis/networking/v1beta1"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"
	clienttelemetry "istio.io/client-go/pkg/apis/telemetry/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/policy"
)

// Groups of the kinds that this package knows beside the core group.
const (
	GroupApps       = "apps"
	GroupDiscovery  = "discovery.k8s.io"
	GroupGateway    = "gateway.networking.k8s.io"
	GroupNetworking = "networking.istio.io"
	GroupSecurity   = "security.istio.io"
	GroupTelemetry  = "telemetry.istio.io"
	GroupExtensions = "extensions.istio.io"
	GroupPolicy     = policy.Group
)

// kindName is the group and kind of a Go type, with the version that the type is written as.
type kindName struct{ group, version, kind string }

func (k kindName) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.group, Version: k.version, Kind: k.kind}
}

// blank returns a new object of the kind, nil for kinds that are not known.
func blank(group, kind string) Object {
	switch group {
	case "":
		return blankCore(kind)
	case GroupApps:
		return blankApps(kind)
	case GroupDiscovery:
		if kind == "EndpointSlice" {
			return &discoveryv1.EndpointSlice{}
		}
	case GroupGateway:
		return blankGateway(kind)
	case GroupPolicy:
		if kind == "RateLimitPolicy" {
			return &policy.RateLimitPolicy{}
		}
	default:
		return blankIstio(group, kind)
	}
	return nil
}

func blankCore(kind string) Object {
	switch kind {
	case "Namespace":
		return &corev1.Namespace{}
	case "ServiceAccount":
		return &corev1.ServiceAccount{}
	case "Pod":
		return &corev1.Pod{}
	case "Service":
		return &corev1.Service{}
	case "ConfigMap":
		return &corev1.ConfigMap{}
	case "Secret":
		return &corev1.Secret{}
	case "Node":
		return &corev1.Node{}
	case "Endpoints":
		return &corev1.Endpoints{} //nolint:staticcheck // deprecated in Kubernetes, still in users' files
	}
	return nil
}

func blankApps(kind string) Object {
	switch kind {
	case "Deployment":
		return &appsv1.Deployment{}
	case "ReplicaSet":
		return &appsv1.ReplicaSet{}
	case "DaemonSet":
		return &appsv1.DaemonSet{}
	case "StatefulSet":
		return &appsv1.StatefulSet{}
	}
	return nil
}

func blankGateway(kind string) Object {
	switch kind {
	case "Gateway":
		return &gatewayv1.Gateway{}
	case "GatewayClass":
		return &gatewayv1.GatewayClass{}
	case "HTTPRoute":
		return &gatewayv1.HTTPRoute{}
	case "GRPCRoute":
		return &gatewayv1.GRPCRoute{}
	case "TCPRoute":
		return &gatewayv1.TCPRoute{}
	case "TLSRoute":
		return &gatewayv1.TLSRoute{}
	case "UDPRoute":
		return &gatewayv1.UDPRoute{}
	case "ReferenceGrant":
		return &gatewayv1.ReferenceGrant{}
	case "BackendTLSPolicy":
		return &gatewayv1.BackendTLSPolicy{}
	case "ListenerSet":
		return &gatewayv1.ListenerSet{}
	}
	return nil
}

func blankIstio(group, kind string) Object {
	switch group + "/" + kind {
	case GroupNetworking + "/VirtualService":
		return &clientnetworking.VirtualService{}
	case GroupNetworking + "/DestinationRule":
		return &clientnetworking.DestinationRule{}
	case GroupNetworking + "/Gateway":
		return &clientnetworking.Gateway{}
	case GroupNetworking + "/ServiceEntry":
		return &clientnetworking.ServiceEntry{}
	case GroupNetworking + "/WorkloadEntry":
		return &clientnetworking.WorkloadEntry{}
	case GroupNetworking + "/WorkloadGroup":
		return &clientnetworking.WorkloadGroup{}
	case GroupNetworking + "/Sidecar":
		return &clientnetworking.Sidecar{}
	case GroupNetworking + "/EnvoyFilter":
		return &clientnetworkingalpha.EnvoyFilter{}
	case GroupNetworking + "/ProxyConfig":
		return &clientnetworkingbeta.ProxyConfig{}
	case GroupSecurity + "/AuthorizationPolicy":
		return &clientsecurity.AuthorizationPolicy{}
	case GroupSecurity + "/PeerAuthentication":
		return &clientsecurity.PeerAuthentication{}
	case GroupSecurity + "/RequestAuthentication":
		return &clientsecurity.RequestAuthentication{}
	case GroupTelemetry + "/Telemetry":
		return &clienttelemetry.Telemetry{}
	case GroupExtensions + "/WasmPlugin":
		return &clientextensions.WasmPlugin{}
	}
	return nil
}

// typeOf is the inverse of blank. It panics on a type that this package does not make: that is a programming error.
func typeOf(o Object) kindName {
	switch o.(type) {
	case *corev1.Namespace:
		return kindName{"", "v1", "Namespace"}
	case *corev1.ServiceAccount:
		return kindName{"", "v1", "ServiceAccount"}
	case *corev1.Pod:
		return kindName{"", "v1", "Pod"}
	case *corev1.Service:
		return kindName{"", "v1", "Service"}
	case *corev1.ConfigMap:
		return kindName{"", "v1", "ConfigMap"}
	case *corev1.Secret:
		return kindName{"", "v1", "Secret"}
	case *corev1.Node:
		return kindName{"", "v1", "Node"}
	case *corev1.Endpoints: //nolint:staticcheck // deprecated in Kubernetes, still in users' files
		return kindName{"", "v1", "Endpoints"}
	case *appsv1.Deployment:
		return kindName{GroupApps, "v1", "Deployment"}
	case *appsv1.ReplicaSet:
		return kindName{GroupApps, "v1", "ReplicaSet"}
	case *appsv1.DaemonSet:
		return kindName{GroupApps, "v1", "DaemonSet"}
	case *appsv1.StatefulSet:
		return kindName{GroupApps, "v1", "StatefulSet"}
	case *discoveryv1.EndpointSlice:
		return kindName{GroupDiscovery, "v1", "EndpointSlice"}
	case *policy.RateLimitPolicy:
		return kindName{GroupPolicy, policy.Version, "RateLimitPolicy"}
	}
	if k := typeOfGateway(o); k.kind != "" {
		return k
	}
	return typeOfIstio(o)
}

func typeOfGateway(o Object) kindName {
	switch o.(type) {
	case *gatewayv1.Gateway:
		return kindName{GroupGateway, "v1", "Gateway"}
	case *gatewayv1.GatewayClass:
		return kindName{GroupGateway, "v1", "GatewayClass"}
	case *gatewayv1.HTTPRoute:
		return kindName{GroupGateway, "v1", "HTTPRoute"}
	case *gatewayv1.GRPCRoute:
		return kindName{GroupGateway, "v1", "GRPCRoute"}
	case *gatewayv1.TCPRoute:
		return kindName{GroupGateway, "v1", "TCPRoute"}
	case *gatewayv1.TLSRoute:
		return kindName{GroupGateway, "v1", "TLSRoute"}
	case *gatewayv1.UDPRoute:
		return kindName{GroupGateway, "v1", "UDPRoute"}
	case *gatewayv1.ReferenceGrant:
		return kindName{GroupGateway, "v1", "ReferenceGrant"}
	case *gatewayv1.BackendTLSPolicy:
		return kindName{GroupGateway, "v1", "BackendTLSPolicy"}
	case *gatewayv1.ListenerSet:
		return kindName{GroupGateway, "v1", "ListenerSet"}
	}
	return kindName{}
}

func typeOfIstio(o Object) kindName {
	switch o.(type) {
	case *clientnetworking.VirtualService:
		return kindName{GroupNetworking, "v1", "VirtualService"}
	case *clientnetworking.DestinationRule:
		return kindName{GroupNetworking, "v1", "DestinationRule"}
	case *clientnetworking.Gateway:
		return kindName{GroupNetworking, "v1", "Gateway"}
	case *clientnetworking.ServiceEntry:
		return kindName{GroupNetworking, "v1", "ServiceEntry"}
	case *clientnetworking.WorkloadEntry:
		return kindName{GroupNetworking, "v1", "WorkloadEntry"}
	case *clientnetworking.WorkloadGroup:
		return kindName{GroupNetworking, "v1", "WorkloadGroup"}
	case *clientnetworking.Sidecar:
		return kindName{GroupNetworking, "v1", "Sidecar"}
	case *clientnetworkingalpha.EnvoyFilter:
		return kindName{GroupNetworking, "v1alpha3", "EnvoyFilter"}
	case *clientnetworkingbeta.ProxyConfig:
		return kindName{GroupNetworking, "v1beta1", "ProxyConfig"}
	case *clientsecurity.AuthorizationPolicy:
		return kindName{GroupSecurity, "v1", "AuthorizationPolicy"}
	case *clientsecurity.PeerAuthentication:
		return kindName{GroupSecurity, "v1", "PeerAuthentication"}
	case *clientsecurity.RequestAuthentication:
		return kindName{GroupSecurity, "v1", "RequestAuthentication"}
	case *clienttelemetry.Telemetry:
		return kindName{GroupTelemetry, "v1", "Telemetry"}
	case *clientextensions.WasmPlugin:
		return kindName{GroupExtensions, "v1alpha1", "WasmPlugin"}
	}
	panic("manifest: a Go type without a kind")
}

// served says whether a file may write the kind in this version. Older versions of one kind have the same fields.
func served(group, version, kind string) bool {
	switch group {
	case "", GroupApps, GroupDiscovery:
		return version == "v1"
	case GroupGateway:
		switch kind {
		case "Gateway", "GatewayClass", "HTTPRoute", "ReferenceGrant":
			return version == "v1" || version == "v1beta1"
		case "GRPCRoute", "TCPRoute", "UDPRoute":
			return version == "v1" || version == "v1alpha2"
		case "TLSRoute", "BackendTLSPolicy":
			return version == "v1" || version == "v1alpha2" || version == "v1alpha3"
		}
		return version == "v1"
	case GroupNetworking:
		switch kind {
		case "EnvoyFilter":
			return version == "v1alpha3"
		case "ProxyConfig":
			return version == "v1beta1"
		}
		return version == "v1" || version == "v1beta1" || version == "v1alpha3"
	case GroupSecurity:
		return version == "v1" || version == "v1beta1"
	case GroupTelemetry:
		return version == "v1" || version == "v1alpha1"
	case GroupExtensions:
		return version == "v1alpha1"
	case GroupPolicy:
		return version == policy.Version
	}
	return false
}
