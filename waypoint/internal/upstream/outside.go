package upstream

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Outside is a host outside the mesh.
type Outside struct {
	Host string
	Port uint16
	TLS  bool // verified by the system's roots, for Host
}

// outsidePrefix marks the clusters from which token issuers' keys are fetched.
const outsidePrefix = "jwks|"

func isOutside(p *clusterv3.Cluster) bool { return strings.HasPrefix(p.GetName(), outsidePrefix) }

// compileOutside compiles a cluster of one host name. What the system trusts is trusted here, whichever file the control plane names.
func (c *Config) compileOutside(p *clusterv3.Cluster) error {
	if err := strict.Only(p, "name", "alt_stat_name", "type", "connect_timeout", "load_assignment", "dns_lookup_family", "transport_socket",
		"respect_dns_ttl", "metadata"); err != nil {
		return err
	}
	if t := p.GetType(); t != clusterv3.Cluster_LOGICAL_DNS && t != clusterv3.Cluster_STRICT_DNS {
		return fmt.Errorf("type %v of a cluster %s…: %w", t, outsidePrefix, strict.ErrUnsupported)
	}
	var all []*endpointv3.LbEndpoint
	for _, l := range p.GetLoadAssignment().GetEndpoints() {
		all = append(all, l.GetLbEndpoints()...)
	}
	if len(all) != 1 {
		return fmt.Errorf("load_assignment has %d endpoints, want one host", len(all))
	}
	a := all[0].GetEndpoint().GetAddress().GetSocketAddress()
	if a.GetAddress() == "" || a.GetPortValue() == 0 || a.GetPortValue() > 65535 {
		return fmt.Errorf("address %q port %d is no host and port", a.GetAddress(), a.GetPortValue())
	}
	c.Kind, c.Outside = KindOutside, &Outside{Host: a.GetAddress(), Port: uint16(a.GetPortValue())}
	if p.GetTransportSocket() == nil {
		return nil
	}
	c.Outside.TLS = true
	return checkOutsideTLS(p.GetTransportSocket(), c.Outside.Host)
}

func checkOutsideTLS(s *corev3.TransportSocket, host string) error {
	m := &tlsv3.UpstreamTlsContext{}
	if err := strict.Unpack(s.GetTypedConfig(), m, "common_tls_context", "sni"); err != nil {
		return fmt.Errorf("transport_socket: %w", err)
	}
	common := m.GetCommonTlsContext()
	if err := strict.Only(common, "validation_context", "tls_params", "alpn_protocols"); err != nil {
		return fmt.Errorf("transport_socket: %w", err)
	}
	v := common.GetValidationContext()
	if err := strict.Only(v, "trusted_ca", "match_typed_subject_alt_names"); err != nil {
		return fmt.Errorf("transport_socket: validation_context: %w", err)
	}
	if v.GetTrustedCa().GetFilename() == "" {
		return fmt.Errorf("transport_socket: trusted_ca other than a file: %w", strict.ErrUnsupported)
	}
	for _, san := range v.GetMatchTypedSubjectAltNames() {
		if san.GetMatcher().GetExact() != host {
			return fmt.Errorf("transport_socket: subject alternative name %v is not the host %s: %w", san.GetMatcher(), host, strict.ErrUnsupported)
		}
	}
	_, err := netip.ParseAddr(host)
	if err != nil && m.GetSni() != host {
		return fmt.Errorf("transport_socket: sni %q is not the host %s: %w", m.GetSni(), host, strict.ErrUnsupported)
	}
	return nil
}

// errOutside is a cluster that is no way for requests of this kind.
var errOutside = errors.New("cluster has no endpoints to send requests to")

// Way sends requests of the waypoint's own to a cluster.
type Way struct {
	Store   *Store
	Cluster string
	Rand    func(uint64) uint64
}

// RoundTrip implements http.RoundTripper: one attempt, at an endpoint chosen as for any other request.
func (w Way) RoundTrip(req *http.Request) (*http.Response, error) {
	c := w.Store.Get(w.Cluster)
	if c == nil {
		return nil, fmt.Errorf("cluster %q does not exist: %w", w.Cluster, errOutside)
	}
	c, err := c.Warm(req.Context())
	if err != nil {
		return nil, err
	}
	h, err := c.Pick(Choice{Rand: w.Rand})
	if err != nil {
		return nil, err
	}
	end, err := c.Begin(req.Context(), h, 1)
	if err != nil {
		return nil, err
	}
	out := req.Clone(req.Context())
	out.Host, out.URL.Scheme = req.URL.Host, "http" // the transport's socket goes to the endpoint, in its tunnel
	resp, err := c.Transport(h, Via{Major: 1, Authority: req.URL.Host}).RoundTrip(out)
	if err != nil {
		c.Report(h, LocalErr)
		end()
		return nil, err
	}
	c.Report(h, ResultOf(resp.StatusCode))
	resp.Body = &counted{ReadCloser: resp.Body, end: end}
	return resp, nil
}

// counted ends a request's count when its answer was read.
type counted struct {
	io.ReadCloser
	end func()
}

func (c *counted) Close() error {
	defer c.end()
	return c.ReadCloser.Close()
}
