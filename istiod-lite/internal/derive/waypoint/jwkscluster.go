package waypoint

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// jwksCluster names the cluster from which keys are fetched, and has it made: a service's own, or one of the host outside the mesh.
func (d *derivation) jwksCluster(uri, namespace string) (name string, outside bool, err error) {
	u, err := url.Parse(uri)
	const limit = 2048
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil:
		return "", false, fmt.Errorf("%q is no http or https URL", uri)
	case len(uri) > limit:
		return "", false, fmt.Errorf("the URL has %d bytes, at most %d are taken", len(uri), limit)
	}
	host, port := u.Hostname(), uint32(80)
	if u.Scheme == "https" {
		port = 443
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", false, fmt.Errorf("%q is no port", p)
		}
		port = uint32(n)
	}
	// TLS to a host by its name is nothing that a service's cluster does.
	if s, p, ok := d.jwksService(host, namespace, port); ok && u.Scheme == "http" {
		return d.cluster(s, p, "", true), false, nil
	}
	if err := checkOutside(host); err != nil {
		return "", false, err
	}
	name = "jwks|" + u.Scheme + "|" + decimal(port) + "|" + host
	d.outside[name] = outsideCluster(name, host, port, u.Scheme == "https")
	return name, true, nil
}

// jwksService finds a service by any of the names that a pod of the namespace could use.
func (d *derivation) jwksService(host, namespace string, port uint32) (*Service, Port, bool) {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	suffix := ".svc." + d.in.Mesh.ClusterDomain
	for _, full := range []string{host, host + "." + d.in.Mesh.ClusterDomain, host + suffix, host + "." + namespace + suffix} {
		if s, p, ok := d.resolve(full, port, port); ok {
			return s, p, true
		}
	}
	return nil, Port{}, false
}

// checkOutside refuses what is no issuer: the proxy itself, its links, and where clouds tell machines their secrets. Names are judged by
// the proxy when it has resolved them.
func checkOutside(host string) error {
	lower := strings.TrimSuffix(strings.ToLower(host), ".")
	if lower == "localhost" || strings.HasSuffix(lower, ".localhost") || lower == "metadata" || lower == "metadata.google.internal" {
		return fmt.Errorf("keys are not fetched from %q: it is the proxy's own machine or a metadata service", host)
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		// Resolvers read a name that ends with a number as an address, in spellings that nobody checks.
		if last := lower[strings.LastIndexByte(lower, '.')+1:]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
			return fmt.Errorf("%q is neither a name nor an address", host)
		}
		return nil // it is a name
	}
	a = a.Unmap()
	clouds := []string{"100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"}
	if slices.Contains(clouds, a.String()) || a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return errors.New("keys are not fetched from " + host + ": the address is the proxy's own, a link's or a metadata service's")
	}
	return nil
}

func outsideCluster(name, host string, port uint32, tls bool) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          name + ";",
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_LOGICAL_DNS},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(host, port)}},
			}}}},
		},
	}
	if !tls {
		return c
	}
	ctx := &tlsv3.UpstreamTlsContext{Sni: host}
	san := &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: exact(host)}
	if _, err := netip.ParseAddr(host); err == nil {
		ctx.Sni, san.SanType = "", tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	ctx.CommonTlsContext = &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa:                 &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: systemRoots}},
			MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san},
		}},
	}
	c.TransportSocket = tlsSocket(ctx)
	return c
}
