package phases

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/telemetry"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// facts are what is known of an exchange at its end, for log and metrics. They answer format commands.
type facts struct {
	x           *exchange
	start       time.Time
	chain       string
	route       string
	clusterName string
	cluster     *upstream.Cluster
	weighted    *table.Weighted
	host        *upstream.Host
	upgrade     string
	flags       []string
	detail      string
	transport   string // why no connection came about
	status      int    // that the client got; 0 = none
	grpc        string
	response    http.Header
	received    atomic.Int64
	sentBytes   int64
	attempts    int
	service     time.Duration // until the upstream's headers
	peering
}

// peering is what is known of the exchange with the upstream.
type peering struct {
	asked, told   messages // of a gRPC call
	upstreamLocal net.Addr // nil = none yet
	upstreamPeer  identity.ID
	broken        bool // the answer ended in the middle
}

func (f *facts) flag(s string) {
	if s != "" {
		f.flags = append(f.flags, s)
	}
}

func (f *facts) flagText() string {
	if len(f.flags) == 0 {
		return "-"
	}
	return strings.Join(f.flags, ",")
}

// record always runs, once per request.
func (x *exchange) record() {
	f := &x.facts
	// A request that is not whole cannot be followed by another on an HTTP/1 connection; the server sees to that by itself.
	if x.session != nil && x.h.cfg.Telemetry != nil {
		x.h.cfg.Telemetry.Request(f.entry())
		if x.chain != nil {
			x.log()
			x.endTrace()
		}
	}
	if f.broken {
		panic(http.ErrAbortHandler) // the only way to tell the client that its answer is not whole
	}
}

func (x *exchange) log() {
	for i := range x.chain.Logs {
		l := &x.chain.Logs[i]
		if x.facts.status < l.MinStatus || l.When != nil && !l.When.Holds(x.attributes) {
			continue
		}
		x.h.cfg.Telemetry.Line(l.Format.Render(&x.facts, "-"))
	}
}

func (f *facts) entry() *telemetry.Request {
	x := f.x
	e := &telemetry.Request{
		Source: telemetry.Peer{Workload: x.session.Client, Principal: x.session.principal()},
		Flags:  f.flagText(), Code: f.status, Protocol: "http", Mutual: !x.session.Peer.IsZero(),
		Duration: time.Since(f.start), Received: f.received.Load() + headerSize(x.r.Header), Sent: f.sentBytes + headerSize(f.response),
	}
	if x.q.GRPC {
		e.Protocol, e.GRPC = "grpc", f.grpc
		e.Asked, e.Told = f.asked.n.Load(), f.told.n.Load()
	}
	e.Destination = destination(f.host, f.upstreamPeer)
	e.Service = service(f.cluster, f.chain)
	e.Reporter, e.Source = x.h.reporting(x.session, e.Source, e.Destination)
	if x.chain != nil && x.chain.Metrics != nil {
		e.Wanted = x.chain.Metrics.Of(x.attributes)
	}
	return e
}

// reporting says as what something is told, and who its source is. Who came in at the border is nobody in the mesh: there
// this proxy is the source, by its own identity where the endpoint has one.
func (h *Handler) reporting(s *Session, source, destination telemetry.Peer) (telemetry.Reporter, telemetry.Peer) {
	if s.Edge == nil {
		return telemetry.Waypoint, source
	}
	self := telemetry.Peer{Workload: h.cfg.Self}
	if destination.Principal != "" {
		self.Principal = s.self()
	}
	return telemetry.Gateway, self
}

func headerSize(h http.Header) (n int64) {
	for k, vs := range h {
		for _, v := range vs {
			n += int64(len(k) + len(v))
		}
	}
	return n
}

// destination describes the endpoint that was chosen last.
func destination(h *upstream.Host, peer identity.ID) telemetry.Peer {
	if h == nil {
		return telemetry.Peer{}
	}
	p := telemetry.Peer{Workload: h.Workload, Principal: h.Principal}
	if h.Identity.IsZero() && !peer.IsZero() {
		p.Principal = peer.String()
	}
	return p
}

// service is the cluster's; without one, the chain's name tells the host.
func service(c *upstream.Cluster, chain string) upstream.Service {
	if c != nil && c.Config.Service.Host != "" {
		return c.Config.Service
	}
	parts := strings.SplitN(chain, "|", 4)
	if len(parts) < 4 {
		return upstream.Service{}
	}
	s := upstream.Service{Host: parts[3]}
	if labels := strings.Split(s.Host, "."); len(labels) > 2 && labels[2] == "svc" {
		s.Name, s.Namespace = labels[0], labels[1]
	}
	return s
}

// Operator implements table.Facts.
func (f *facts) Operator(name, arg string) string {
	x := f.x
	switch name {
	case "START_TIME":
		return f.start.UTC().Format("2006-01-02T15:04:05.000Z")
	case "REQ":
		return f.requestHeader(arg)
	case "REQ_WITHOUT_QUERY":
		v, _, _ := strings.Cut(f.requestHeader(arg), "?")
		return v
	case "RESP":
		return f.response.Get(arg)
	case "PROTOCOL":
		return x.r.Proto
	case "RESPONSE_CODE":
		return strconv.Itoa(f.status)
	case "RESPONSE_FLAGS", "RESPONSE_FLAGS_LONG":
		return f.flagText()
	case "RESPONSE_CODE_DETAILS":
		return strings.ReplaceAll(f.detail, " ", "_")
	case "UPSTREAM_TRANSPORT_FAILURE_REASON":
		return f.transport
	case "BYTES_RECEIVED":
		return strconv.FormatInt(f.received.Load(), 10)
	case "BYTES_SENT":
		return strconv.FormatInt(f.sentBytes, 10)
	case "DURATION":
		return strconv.FormatInt(time.Since(f.start).Milliseconds(), 10)
	case "GRPC_STATUS":
		return f.grpc
	case "ROUTE_NAME":
		return f.route
	case "HOSTNAME":
		return x.h.cfg.Host
	}
	if r := x.q.Remote; r.IsValid() && r != x.session.Source.Addr().Unmap() {
		switch name { // as Envoy writes an address that a header told: without a port of its own
		case "DOWNSTREAM_REMOTE_ADDRESS":
			return netip.AddrPortFrom(r, 0).String()
		case "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
			return r.String()
		}
	}
	if v := f.upstreamOperator(name); v != "" {
		return v
	}
	return sessionOperator(x.session, name, arg)
}

func (f *facts) requestHeader(name string) string {
	x := f.x
	switch strings.ToLower(name) {
	case ":method":
		return x.r.Method
	case ":authority", "host":
		return x.r.Host
	case ":path":
		if x.q.Path == "" {
			return x.r.RequestURI
		}
		return x.q.FullPath()
	case ":scheme":
		return x.q.Scheme
	case "x-envoy-original-path":
		return "" // the log shows the path as the client sent it, which is x.q's
	}
	v, _ := x.q.Get(http.CanonicalHeaderKey(name))
	return v
}

func (f *facts) upstreamOperator(name string) string {
	switch name {
	case "UPSTREAM_HOST":
		if f.host != nil {
			return f.host.Host()
		}
	case "UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW":
		return f.clusterName
	case "UPSTREAM_LOCAL_ADDRESS":
		return addrText(f.upstreamLocal)
	case "UPSTREAM_REQUEST_ATTEMPT_COUNT":
		if f.attempts > 0 {
			return strconv.Itoa(f.attempts)
		}
	}
	return ""
}

// sessionOperator answers what depends on the tunnel alone.
func sessionOperator(s *Session, name, arg string) string {
	if s == nil {
		return ""
	}
	switch name {
	case "DOWNSTREAM_LOCAL_ADDRESS":
		if s.Edge != nil {
			return s.Destination.String()
		}
		return s.Authority
	case "REQUESTED_SERVER_NAME":
		return s.ServerName
	case "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":
		return ipText(s.Destination)
	case "DOWNSTREAM_LOCAL_PORT":
		return strconv.Itoa(int(s.Port))
	case "DOWNSTREAM_REMOTE_ADDRESS":
		return s.Source.String()
	case "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
		return ipText(s.Source)
	case "DOWNSTREAM_DIRECT_REMOTE_ADDRESS":
		return s.packets().String()
	case "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT":
		return ipText(s.packets())
	case "DOWNSTREAM_REMOTE_PORT":
		return strconv.Itoa(int(s.Source.Port()))
	case "DOWNSTREAM_PEER_URI_SAN":
		return s.principal()
	case "DOWNSTREAM_LOCAL_URI_SAN":
		return s.self()
	case "FILTER_STATE":
		key, _, _ := strings.Cut(arg, ":")
		q := match.Request{Principal: s.principal(), Local: s.self(), Connect: s.Authority}
		v, _ := q.State(key)
		return v
	}
	return ""
}

func ipText(ap netip.AddrPort) string {
	if !ap.IsValid() {
		return ""
	}
	return ap.Addr().String()
}

func addrText(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}
