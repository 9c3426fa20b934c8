package table

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/jwt"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// Table is one version of the configuration, as front and phases use it. The zero value serves nothing.
type Table struct {
	Terminate *Terminate        // who may connect; nil = nobody
	Internal  *Internal         // chains and how they are chosen; nil = none
	Routes    map[string]*Rules // by name; a chain names its own
	Edges     map[string]*Edge  // listeners at the mesh's border, by name
	Secrets   map[string]*Secret
}

// Terminate is what the outer listener asks of a client.
type Terminate struct {
	Port         uint16
	TrustDomains []string // a client's identity has to be in one of them
	MaxStreams   uint32   // 0 = default
}

// Internal is the compiled inner listener.
type Internal struct {
	Chains map[string]*Chain
	// Choose finds the chain's name. Invariant: every name it can give is in Chains (TestEveryActionHasAChain).
	Choose        node
	DetectTimeout time.Duration // how long to look at the first bytes; 0 = default
}

// Chain serves the connections of one destination. Exactly one of HTTP and TCP is set.
type Chain struct {
	Name string
	HTTP *HTTPChain
	TCP  *TCPChain
}

// HTTPChain is a compiled HTTP connection manager.
type HTTPChain struct {
	RouteName     string // name in Table.Routes
	Inline        *Rules // used instead when set
	Filters       []filters.Named
	Normalization match.Normalization
	ServerName    string // value of the response's Server header
	ServerMode    ServerMode
	WebSocket     bool // upgrades to websocket are allowed
	RequestID     bool // make X-Request-Id when the client sent none
	Logs          []Log
	Metrics       *Metrics // nil = the standard series
	Tracing       *Tracing // nil = requests become no spans
	// Edge says that strangers come in here: their address is the socket's, but for TrustedHops of X-Forwarded-For.
	Edge        bool
	TrustedHops uint32
	ClientCert  *ClientCert // nil = X-Forwarded-Client-Cert is removed and not made
}

// ClientCert is what an application is told of the client's certificate.
type ClientCert struct{ Subject, URI, DNS bool }

// ServerMode is what happens to the response's Server header.
type ServerMode uint8

// Modes of server_header_transformation.
const (
	ServerOverwrite ServerMode = iota
	ServerIfAbsent
	ServerPass
)

// TCPChain is a compiled TCP proxy.
type TCPChain struct {
	Filters  []filters.Network
	Clusters []Weighted
	Total    uint64
	Idle     time.Duration // 0 = none
	MaxAge   time.Duration // 0 = none
	Attempts int           // to connect
	Logs     []Log
	Metrics  *Metrics // nil = the standard series
	// Named says that a policy asks which server a TLS client wants: its first bytes have to be seen before anybody judges.
	Named bool
}

// Pick chooses the cluster of an opaque connection.
func (c *TCPChain) Pick(rnd match.Rand) string { return pickWeighted(c.Clusters, c.Total, rnd).Cluster }

// Conn is what the choice of a chain depends on.
type Conn struct {
	Destination netip.AddrPort // invalid when the authority was a host name
	Authority   string         // of the CONNECT
	Protocol    Protocol
}

// Protocol is what the first bytes of a connection look like.
type Protocol uint8

// Protocols that can be told apart.
const (
	Unseen Protocol = iota // nobody has looked yet
	HTTP1
	HTTP2
	Opaque
)

// alpn is the name that Envoy's inspector gives to a protocol.
func (p Protocol) alpn() []string {
	switch p {
	case HTTP1:
		return []string{"http/1.1", "http/1.0"}
	case HTTP2:
		return []string{"h2c"}
	case Unseen, Opaque:
	}
	return nil
}

// Find returns the chain for c. look is true when the answer depends on bytes that nobody has looked at; ask again with a Protocol.
// Neither a chain nor look means that the destination is not served here.
func (t *Table) Find(c Conn) (chain *Chain, look bool) {
	if t.Internal == nil || t.Internal.Choose == nil {
		return nil, false
	}
	name, out := t.Internal.Choose.find(c)
	switch out {
	case found:
		return t.Internal.Chains[name], false
	case lookFirst:
		return nil, true
	case notHere:
	}
	return nil, false
}

// RulesOf returns the routes of an HTTP chain; nil while they are unknown.
func (t *Table) RulesOf(c *HTTPChain) *Rules {
	if c.Inline != nil {
		return c.Inline
	}
	return t.Routes[c.RouteName]
}

// KeySources are the places from which the keys of tokens' issuers have to be fetched, in no order and each as often as it is named.
func (t *Table) KeySources() []jwt.Source {
	var out []jwt.Source
	var chains []*Chain
	if t.Internal != nil {
		chains = slices.AppendSeq(chains, maps.Values(t.Internal.Chains))
	}
	for _, e := range t.Edges {
		for _, c := range e.Chains {
			chains = append(chains, &c.Chain)
		}
	}
	for _, c := range chains {
		if c.HTTP == nil {
			continue
		}
		for _, f := range c.HTTP.Filters {
			if j, ok := f.Filter.(*filters.JWT); ok {
				out = append(out, j.Sources()...)
			}
		}
	}
	return out
}
