package kube

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Protocol is what a port declares about the bytes behind it.
type Protocol int

// Unsupported ports declare nothing that is understood; their first bytes have to show what they speak.
const (
	Unsupported Protocol = iota
	TCP
	UDP
	HTTP
	HTTP2
	GRPC
	GRPCWeb
	HTTPS
	TLS
	Mongo
	MySQL
	Redis
	HBONE
)

// ParseProtocol reads a protocol name in any case.
func ParseProtocol(s string) Protocol {
	switch strings.ToLower(s) {
	case "tcp":
		return TCP
	case "udp":
		return UDP
	case "http":
		return HTTP
	case "http2":
		return HTTP2
	case "grpc":
		return GRPC
	case "grpc-web":
		return GRPCWeb
	case "https":
		return HTTPS
	case "tls":
		return TLS
	case "mongo":
		return Mongo
	case "mysql":
		return MySQL
	case "redis":
		return Redis
	case "hbone":
		return HBONE
	}
	return Unsupported
}

// ServicePortProtocol reads the protocol of a Kubernetes Service port: the transport UDP, then appProtocol, and only
// without one the name up to its first dash. A few well-known numbers are TCP when nothing else is said.
func ServicePortProtocol(p corev1.ServicePort) Protocol {
	if p.Protocol == corev1.ProtocolUDP {
		return UDP
	}
	name := p.Name
	if p.AppProtocol != nil {
		name = *p.AppProtocol
		switch name {
		case "kubernetes.io/h2c":
			return HTTP2
		case "kubernetes.io/ws":
			return HTTP
		case "kubernetes.io/wss":
			return HTTPS
		}
	}
	if len(name) >= len("grpc-web") && strings.EqualFold(name[:len("grpc-web")], "grpc-web") {
		return GRPCWeb
	}
	head, _, _ := strings.Cut(name, "-")
	if got := ParseProtocol(head); got != Unsupported {
		return got
	}
	switch p.Port {
	case 25, 53, 3306, 27017: // SMTP, DNS, MySQL and Mongo: the server speaks first or sniffing would hurt
		return TCP
	}
	return Unsupported
}
