package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/clienthello"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// named serves an opaque connection that a policy judges by the server's name which its client asks for. The client has been let in
// already: it would not say the name before.
func (s *Server) named(ctx context.Context, t *table.Table, chain *table.Chain, session *phases.Session, conn upstream.Conn) {
	s.open.Add(1)
	defer s.open.Add(-1)
	limit := s.cfg.Detect
	if limit == 0 {
		limit = t.Internal.DetectTimeout
	}
	name, c, err := serverName(conn, limit)
	if err != nil {
		s.cfg.Log.Warn("connection refused", obs.F("src.addr", session.Source.String()), obs.F("src.identity", session.Peer.String()),
			obs.F("authority", session.Authority), obs.Err(err))
		_ = conn.Close()
		return
	}
	session.ServerName = name
	s.cfg.Phases.Opaque(ctx, chain, session, func() (upstream.Conn, error) { return c, nil }, func(int, error) { _ = conn.Close() })
}

// serverName reads as much as tells which server a TLS client asks for; empty for a client that speaks something else or ended without
// a word. Whoever stays silent, or breaks off in the middle and goes on later, could ask for any: that is an error, not a client
// without a name.
func serverName(c upstream.Conn, limit time.Duration) (string, upstream.Conn, error) {
	if limit == 0 {
		limit = defaultDetect
	}
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return "", nil, err
	}
	const step = 2048
	var seen []byte
	buf := make([]byte, step)
	for {
		hello, err := clienthello.Parse(seen)
		switch {
		case err == nil, errors.Is(err, clienthello.ErrNotTLS):
			return hello.ServerName, &replayed{Conn: c, first: seen}, c.SetReadDeadline(time.Time{})
		case !errors.Is(err, clienthello.ErrShort):
			return "", nil, fmt.Errorf("a policy asks for the server's name (connection.sni): %w", err)
		}
		n, err := c.Read(buf)
		seen = append(seen, buf[:n]...)
		switch {
		case n > 0, err == nil:
		case errors.Is(err, io.EOF) && len(seen) == 0:
			return "", &replayed{Conn: c}, c.SetReadDeadline(time.Time{})
		default:
			return "", nil, fmt.Errorf("a policy asks for the server's name (connection.sni), and the client did not say what it wants: %w", err)
		}
	}
}
