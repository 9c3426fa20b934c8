package load

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/marrowmesh/marrow/perf/latency"
)

// Kind is a kind of load.
type Kind string

// The kinds.
const (
	BulkUp    Kind = "bulk-up"   // client sends as fast as it can
	BulkDown  Kind = "bulk-down" // server sends as fast as it can
	Closed    Kind = "closed"    // each connection asks when the last answer is there
	Open      Kind = "open"      // requests at a fixed rate, whatever the answers do
	Connect   Kind = "connect"   // connect, one byte each way, close
	Cold      Kind = "cold"      // one connection to each target in turn, then a pause
	Idle      Kind = "idle"      // connections that do nothing
	Slow      Kind = "slow"      // readers that hardly read, half of them at each end
	Handshake Kind = "handshake" // TLS handshakes with a client certificate

	Requests     Kind = "requests"      // each connection asks by HTTP when the last answer is there
	RequestsOpen Kind = "requests-open" // requests at a fixed rate, each on a connection that is free
)

// Spec is one client's load.
type Spec struct {
	Kind    Kind     `json:"kind"`
	Targets []string `json:"targets"` // host:port; only Cold uses more than the first
	// Conns are the connections at a time.
	Conns int `json:"conns"`
	// Size of a message of Closed and Open, in bytes.
	Size int `json:"size,omitempty"`
	// Rate per second over all connections: requests of Open and RequestsOpen, bytes of BulkUp
	// and BulkDown (0 = as fast as it goes).
	Rate float64 `json:"rate,omitempty"`
	// Gap is Cold's pause after each turn.
	Gap time.Duration `json:"gap,omitempty"`
	// TLS is Handshake's client certificate.
	TLS *TLS `json:"tls,omitempty"`
	// Protocol and Path of requests.
	Protocol Protocol `json:"protocol,omitempty"`
	Path     string   `json:"path,omitempty"`
}

// TLS is what a client needs for HBONE's handshake, as PEM.
type TLS struct {
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
}

// Check refuses a load that makes no sense.
func (s Spec) Check() error {
	var errs []error
	kinds := []Kind{BulkUp, BulkDown, Closed, Open, Connect, Cold, Idle, Slow, Handshake, Requests, RequestsOpen}
	if !slices.Contains(kinds, s.Kind) {
		errs = append(errs, fmt.Errorf("load kind %q: must be one of %v", s.Kind, kinds))
	}
	if len(s.Targets) == 0 {
		errs = append(errs, errors.New("load targets: none given"))
	}
	if s.Conns < 1 {
		errs = append(errs, fmt.Errorf("load connections %d: must be 1 or more", s.Conns))
	}
	if (s.Kind == Closed || s.Kind == Open) && (s.Size < 1 || s.Size > maxMessage) {
		errs = append(errs, fmt.Errorf("load size %d: must be 1 to %d bytes", s.Size, maxMessage))
	}
	if asks := s.Kind == Requests || s.Kind == RequestsOpen; asks && !slices.Contains([]Protocol{HTTP1, HTTP2, GRPC}, s.Protocol) {
		errs = append(errs, fmt.Errorf("load protocol %q: must be %s, %s or %s", s.Protocol, HTTP1, HTTP2, GRPC))
	}
	const longest = 120 // as a header field that needs no second byte for its length
	if len(s.Path) > longest || s.Path != "" && s.Path[0] != '/' {
		errs = append(errs, fmt.Errorf("load path %q: must begin with / and have at most %d bytes", s.Path, longest))
	}
	if (s.Kind == Open || s.Kind == RequestsOpen) && s.Rate <= 0 {
		errs = append(errs, fmt.Errorf("load rate %v: an open loop needs one", s.Rate))
	}
	if s.Kind == Handshake && s.TLS == nil {
		errs = append(errs, errors.New("load tls: handshakes need a client certificate"))
	}
	return errors.Join(errs...)
}

const (
	// unit is how much a bulk stream writes at once.
	unit = 128 << 10
	// maxMessage bounds a round trip's message.
	maxMessage = 1 << 20
)

// Report is what one phase was.
type Report struct {
	Seconds float64 `json:"seconds"` // until the last byte was there
	Bytes   uint64  `json:"bytes"`   // that arrived
	Ops     uint64  `json:"ops"`     // round trips, connections, handshakes
	Errors  uint64  `json:"errors"`
	Error   string  `json:"error,omitempty"` // the first of them
	// Latency of each operation; of Open from its intended time.
	Latency *latency.Histogram `json:"latency,omitempty"`
	// Late is how far the generator itself was behind its schedule (Open).
	Late *latency.Histogram `json:"late,omitempty"`
	// Opens counts TCP connections that were opened in the client's network
	// namespace by anybody: minus the client's own, those are the tunnels.
	Opens uint64 `json:"opens"`
	// Retransmits counts TCP segments sent again in that namespace.
	Retransmits uint64 `json:"retransmits"`
}

// Command is a line that the client reads.
type Command struct {
	// Seconds of load in the next phase.
	Seconds float64 `json:"seconds"`
}

// Event is a line that the client writes: once when it is connected (no
// report), and after every phase.
type Event struct {
	Report *Report `json:"report,omitempty"`
	Error  string  `json:"error,omitempty"` // ends the client
}
