package phases

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/telemetry"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// attributes are Envoy's of a finished request, for conditions.
func (x *exchange) attributes(root string) map[string]any {
	f := &x.facts
	switch root {
	case "request":
		m := map[string]any{
			"path": x.q.FullPath(), "url_path": x.q.Path, "query": x.q.Query, "host": x.q.Authority, "scheme": x.q.Scheme, "method": x.r.Method,
			"headers": lowered(x.r.Header), "referer": x.r.Header.Get("Referer"), "useragent": x.r.Header.Get("User-Agent"), "id": x.r.Header.Get("X-Request-Id"),
			"protocol": x.r.Proto, "time": f.start, "duration": time.Since(f.start), "size": f.received.Load(), "total_size": f.received.Load() + headerSize(x.r.Header),
		}
		return m
	case "response":
		m := map[string]any{
			"code": int64(f.status), "code_details": f.detail, "headers": lowered(f.response), "size": f.sentBytes, "total_size": f.sentBytes + headerSize(f.response),
			"flags": flagBits(f.flags),
		}
		if n, err := strconv.ParseInt(f.grpc, 10, 32); err == nil {
			m["grpc_status"] = n
		}
		return m
	case "upstream":
		m := upstreamAttributes(f.host, addrText(f.upstreamLocal))
		m["request_attempt_count"] = int64(f.attempts)
		if f.transport != "" {
			m["transport_failure_reason"] = f.transport
		}
		return m
	case "upstream_peer":
		return peerAttributes(destination(f.host, f.upstreamPeer))
	case "xds":
		return map[string]any{"cluster_name": f.clusterName, "route_name": f.route, "filter_chain_name": f.chain}
	}
	return x.session.attributes(root)
}

// attributes are those of an opaque connection.
func (f *flow) attributes(root string) map[string]any {
	switch root {
	case "upstream":
		return upstreamAttributes(f.host, addrText(f.upstreamLocal))
	case "upstream_peer":
		return peerAttributes(destination(f.host, f.upstreamPeer))
	case "xds":
		return map[string]any{"cluster_name": f.name, "filter_chain_name": f.chain.Name}
	case "response":
		return map[string]any{"flags": flagBits(f.flags), "code_details": f.detail}
	}
	return f.session.attributes(root)
}

func (s *Session) attributes(root string) map[string]any {
	switch root {
	case "source":
		return addressAttributes(s.Source)
	case "destination":
		return addressAttributes(s.Destination)
	case "connection":
		return map[string]any{
			"requested_server_name": s.ServerName,
			"mtls":                  !s.Peer.IsZero(), "uri_san_peer_certificate": s.principal(), "uri_san_local_certificate": s.self(), "tls_version": "TLSv1.3",
		}
	case "downstream_peer":
		return peerAttributes(telemetry.Peer{Workload: s.Client, Principal: s.principal()})
	case "filter_state":
		return map[string]any{match.StatePeerPrincipal: s.principal(), match.StateLocalPrincipal: s.self(), match.StateAuthority: s.Authority}
	}
	return nil
}

// peerAttributes are Istio's of one end.
func peerAttributes(p telemetry.Peer) map[string]any {
	w := p.Workload
	m := map[string]any{}
	for k, v := range map[string]string{
		"name": w.UID, "namespace": w.Namespace, "workload": w.Name, "service": w.CanonicalName, "revision": w.Revision,
		"app": w.App, "version": w.Version, "cluster": w.Cluster, "identity": p.Principal,
	} {
		if v != "" {
			m[k] = v
		}
	}
	return m
}

func addressAttributes(a netip.AddrPort) map[string]any {
	if !a.IsValid() {
		return nil
	}
	return map[string]any{"address": a.String(), "port": int64(a.Port())}
}

func upstreamAttributes(h *upstream.Host, local string) map[string]any {
	m := map[string]any{}
	if h != nil {
		m["address"], m["port"] = h.Addr.String(), int64(h.Addr.Port())
	}
	if local != "" {
		m["local_address"] = local
	}
	return m
}

func lowered(h http.Header) map[string]string {
	out := make(map[string]string, len(h))
	for k, v := range h {
		out[strings.ToLower(k)] = strings.Join(v, ",")
	}
	return out
}

// flagBits are response flags as the number that Envoy keeps them in.
func flagBits(flags []string) int64 {
	order := []string{
		"LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC", "URX", "SI", "IH", "DPE", "UMSDR",
		"RFCF", "NFCF", "DT", "UPE", "NC", "OM",
	}
	var bits int64
	for _, f := range flags {
		for i, o := range order {
			if o == f {
				bits |= 1 << i
			}
		}
	}
	return bits
}
