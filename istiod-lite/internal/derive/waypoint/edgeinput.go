package waypoint

import (
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Edge is what a gateway at the mesh's border serves, as derive/ingress decided it: which servers stand on which port,
// and which routes are bound to which of their hosts.
type Edge struct {
	Ports    []EdgePort
	Topology Topology
	// Secrets are those that the servers name and that this gateway may see.
	Secrets []EdgeSecret
	// Permitted says whether a route of the kind and namespace may send to a Service of another namespace; nil lets all.
	Permitted func(kind, namespace, toNamespace, service string) bool
}

// Topology is what stands in front of the gateway.
type Topology struct {
	TrustedHops   uint32 // proxies whose X-Forwarded-For counts
	ProxyProtocol bool   // connections begin with a PROXY header
	ForwardCert   ForwardCert
}

// ForwardCert says what becomes of X-Forwarded-Client-Cert.
type ForwardCert int

const (
	// SanitizeSet removes what came and, where the client showed a certificate, says which.
	SanitizeSet ForwardCert = iota
	// Sanitize removes it.
	Sanitize
)

// EdgePort is one port of the gateway.
type EdgePort struct {
	Number uint32 // as routes and policies name it
	Target uint32 // of the pod
	// Servers have distinct hosts. A port without TLS has one.
	Servers []EdgeServer
}

// EdgeServer is what answers for some server names on a port.
type EdgeServer struct {
	// Name is unique among the gateway's servers; chains and routes are named after it.
	Name string
	// SNI are the names that a TLS client asks for; "*" is any, "*.x" any below x.
	SNI  []string
	TLS  *EdgeTLS  // nil is plaintext, or TLS that is passed through unread
	HTTP *EdgeHTTP // exactly one of HTTP and TCP is set
	TCP  *EdgeTCP
}

// EdgeHTTP routes requests by their host.
type EdgeHTTP struct {
	Hosts []EdgeHost
	// Owner are the names by which VirtualServices may call this server's gateway, "namespace/name".
	Owner []string
}

// EdgeHost is what is bound to one host; a route may be bound to several.
type EdgeHost struct {
	Domain          string // "*", "*.x" or exact
	HTTPRoutes      []*gatewayv1.HTTPRoute
	GRPCRoutes      []*gatewayv1.GRPCRoute
	VirtualServices []*networkingv1.VirtualService
	Redirect        bool // everything is sent to https
}

// EdgeTCP passes bytes on.
type EdgeTCP struct {
	// Passthrough says that the bytes are TLS, of which only the server name is read.
	Passthrough bool
	Backends    []EdgeBackend
}

// EdgeBackend is a share of a server's connections.
type EdgeBackend struct {
	Host   string // of the service; empty is one that does not exist
	Subset string
	Port   uint32
	Weight uint32
}

// EdgeTLS is how a server proves itself and what it asks of clients.
type EdgeTLS struct {
	Certificates []string // names of secrets, one or two of different kinds
	Min, Max     TLSVersion
	Ciphers      []string
	Curves       []string
	Client       *EdgeClient // nil asks clients for nothing
	HTTP         bool        // offers h2 and http/1.1
}

// TLSVersion is a version of TLS; zero leaves it to the proxy.
type TLSVersion int

// Versions of TLS. Older ones are known to be unsound; a proxy may refuse them.
const (
	TLSAuto TLSVersion = iota
	TLS10
	TLS11
	TLS12
	TLS13
)

// EdgeClient is what a client's certificate has to be.
type EdgeClient struct {
	Roots    string // name of a secret
	Names    []string
	SPKI     []string
	Hashes   []string
	Optional bool // a client without certificate is served too
	Insecure bool // a certificate that cannot be verified does no harm
}

// EdgeSecret is a certificate with its key, or the roots of clients' certificates.
type EdgeSecret struct {
	Name       string
	Chain, Key []byte
	Roots, CRL []byte
}
