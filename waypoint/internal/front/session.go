package front

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// newSession reads what a CONNECT tells about its client and its destination.
func newSession(peer, local identity.ID, source netip.AddrPort, in *hbone.Incoming) (*phases.Session, error) {
	s := &phases.Session{Peer: peer, Local: local, Source: source, Authority: in.Authority(), Baggage: in.Header("baggage")}
	s.Client = readBaggage(s.Baggage)
	var err error
	s.Destination, s.Port, err = parseAuthority(s.Authority)
	return s, err
}

// parseAuthority reads ip:port, [ip]:port or host:port. The address is invalid for a host.
func parseAuthority(a string) (netip.AddrPort, uint16, error) {
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

// readBaggage takes the source workload's description that a node proxy sends; unknown keys are ignored, a second "=" ends a value.
func readBaggage(b string) upstream.Workload {
	var w upstream.Workload
	for pair := range strings.SplitSeq(b, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(pair), "=")
		v, _, _ = strings.Cut(v, "=")
		if v == "" {
			continue
		}
		switch k {
		case "k8s.cluster.name":
			w.Cluster = v
		case "k8s.namespace.name":
			w.Namespace = v
		case "k8s.deployment.name", "k8s.cronjob.name", "k8s.pod.name", "k8s.job.name":
			w.Name = v
		case "service.name":
			w.CanonicalName = v
		case "service.version":
			w.Revision = v
		}
	}
	return w
}
