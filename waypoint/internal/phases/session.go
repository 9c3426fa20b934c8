package phases

import (
	"context"
	"net/netip"
	"sync"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Session is what is known about a connection before its first request: from the tunnel around it, and from its first bytes where a
// policy asks for them. It does not change after that.
type Session struct {
	Peer        identity.ID    // proven by the client's certificate; zero = none
	Local       identity.ID    // this waypoint's own
	Source      netip.AddrPort // the client's socket
	Destination netip.AddrPort // what it dialled; invalid when that was a name
	Port        uint16         // of what it dialled
	Authority   string         // of the CONNECT
	Baggage     string         // of the CONNECT, as it came
	Client      upstream.Workload
	// ServerName is of the server that a TLS client asks for, in lower case and without a final dot; empty = none was seen.
	ServerName string
	Edge       *Edge // of a connection that came in at the mesh's border; nil = through a tunnel

	once        sync.Once // fills what is below: texts that each request asks for
	peer, local string
}

// packets is where the connection's packets come from: the client, or a load balancer that told of it.
func (s *Session) packets() netip.AddrPort {
	if s.Edge != nil && s.Edge.Direct.IsValid() {
		return s.Edge.Direct
	}
	return s.Source
}

// principal is the client's name as policies spell it; empty = none.
func (s *Session) principal() string {
	s.once.Do(s.spell)
	return s.peer
}

// self is this waypoint's name as policies spell it.
func (s *Session) self() string {
	s.once.Do(s.spell)
	return s.local
}

func (s *Session) spell() {
	s.local = s.Local.String()
	if !s.Peer.IsZero() {
		s.peer = s.Peer.String()
	}
}

// chain is what serves the session by the configuration in t; nil = nothing.
func (s *Session) chain(t *table.Table, p table.Protocol) *table.Chain {
	if s.Edge != nil {
		if c := t.EdgeChain(s.Edge.Listener, s.Edge.Chain); c != nil {
			return &c.Chain
		}
		return nil
	}
	c, _ := t.Find(s.conn(p))
	return c
}

func (s *Session) conn(p table.Protocol) table.Conn {
	return table.Conn{Destination: s.Destination, Authority: s.Authority, Protocol: p}
}

type sessionKey struct{}

// WithSession attaches a connection's session to the context of its requests.
func WithSession(ctx context.Context, s *Session) context.Context {
	return context.WithValue(ctx, sessionKey{}, s)
}

func sessionOf(ctx context.Context) *Session {
	s, _ := ctx.Value(sessionKey{}).(*Session)
	return s
}
