package front

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/marrowmesh/marrow/internal/claims"
	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// newSession reads what a CONNECT tells about its client and its destination.
func newSession(peer, local identity.ID, source netip.AddrPort, in *hbone.Incoming) (*phases.Session, error) {
	s := &phases.Session{Peer: peer, Local: local, Source: source, Authority: in.Authority(), Baggage: in.Header(claims.HeaderBaggage)}
	s.Client = claimed(s.Baggage)
	var err error
	s.Destination, s.Port, err = ParseAuthority(s.Authority)
	return s, err
}

// ParseAuthority reads ip:port, [ip]:port or host:port. The address is invalid for a host.
func ParseAuthority(a string) (netip.AddrPort, uint16, error) {
	if ap, err := netip.ParseAddrPort(a); err == nil {
		if ap.Addr().Zone() != "" || ap.Port() == 0 {
			return netip.AddrPort{}, 0, fmt.Errorf("authority %q: an address with a zone or port 0 cannot be served", a)
		}
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), ap.Port(), nil
	}
	host, port, ok := strings.Cut(a, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil || n == 0 || host == "" || strings.ContainsAny(host, "[]/@ \t") {
		return netip.AddrPort{}, 0, fmt.Errorf("authority %q is neither ip:port nor host:port", a)
	}
	return netip.AddrPort{}, uint16(n), nil
}

// claimed is the client's workload by the account of its node's proxy.
func claimed(baggage string) upstream.Workload {
	b := claims.ParseBaggage(baggage)
	return upstream.Workload{Cluster: b.Cluster, Namespace: b.Namespace, Name: b.WorkloadName, CanonicalName: b.Service, Revision: b.Version}
}
