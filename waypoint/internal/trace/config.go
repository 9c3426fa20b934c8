package trace

import (
	"net/http"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// Config is how the requests of one chain are traced.
type Config struct {
	Provider    *Provider
	Extract     Form // that a client's context may have
	Inject      Form // that the upstream gets; 0 = headers are left as they are
	Client      match.Fraction
	Random      match.Fraction
	Overall     match.Fraction
	ByRequestID bool // the request id draws, and may carry the decision
	PackReason  bool // write the decision into the request id
	Shared      bool // Zipkin: the server's span is the client's
	Short       bool // new trace ids have 64 bits
	Child       bool // a span of its own for each attempt at the upstream
	MaxPath     int  // of http.url
}

// Protocol is how spans are sent.
type Protocol uint8

// The protocols.
const (
	OTLPgRPC Protocol = iota
	OTLPHTTP
	ZipkinJSON
)

// Provider is where spans go. Key is equal for equal providers.
type Provider struct {
	Key      string
	Protocol Protocol
	Cluster  string
	Host     string // of the request to the collector
	Path     string
	Header   http.Header // added to each request
	Timeout  time.Duration
	Service  string            // service.name; of Zipkin the local endpoint's
	Resource map[string]string // more attributes of the resource
}

// Kind is which side of a call a span tells of.
type Kind uint8

// The kinds.
const (
	Server Kind = iota
	Client
)

// Span is one finished span.
type Span struct {
	Provider *Provider
	Context
	Shared     bool // the span id is the client's
	Kind       Kind
	Name       string
	Start, End time.Time
	Error      bool
	Local      string // ip:port
	Tags       []Tag
}

// Tag is one attribute of a span.
type Tag struct{ Key, Value string }
