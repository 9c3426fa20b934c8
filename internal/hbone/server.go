package hbone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/marrowmesh/marrow/internal/h2"
)

// Handler answers one request: Accept or Reject, then the tunnel's life. It
// runs in its own goroutine; ctx ends when the peer gives the stream up, when
// the connection ends, and when the server's context does.
type Handler = func(ctx context.Context, in *Incoming)

// Server takes tunnels on any number of connections.
type Server struct {
	cfg Config

	mu       sync.Mutex
	conns    map[*h2.Conn]struct{}
	draining bool
}

// NewServer returns a server whose connections have cfg.
func NewServer(cfg Config) *Server {
	return &Server{cfg: cfg, conns: make(map[*h2.Conn]struct{})}
}

// Serve runs one connection, which it owns, until it ended and every handler
// of it returned. Ends in order, and by ctx, are no error.
func (s *Server) Serve(ctx context.Context, c net.Conn, h Handler) error {
	// Handlers learn that ctx ended before their streams are cut, so that they
	// can tell that end from others.
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	conn := h2.NewServer(c, s.cfg, func(st *h2.Stream, fields []h2.Field) { serveStream(inner, st, fields, h) })
	stop := context.AfterFunc(ctx, func() {
		cancel(context.Cause(ctx))
		_ = conn.Close()
	})
	defer stop()
	s.mu.Lock()
	s.conns[conn] = struct{}{}
	draining := s.draining
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, conn)
	}()
	if draining {
		conn.Drain()
	}
	<-conn.Done()
	cancel(nil)
	if err := conn.Serve(ctx); err != nil {
		return fmt.Errorf("tunnel connection from %v: %w", c.RemoteAddr(), err)
	}
	return nil
}

// Violation reports that a connection ended because its peer broke the protocol,
// or did too much of what costs it nothing.
func Violation(err error) bool {
	e, ok := errors.AsType[*h2.ConnError](err)
	return ok && e.Violation()
}

// Drain tells every peer that we go away: tunnels under way to us are still
// taken, all may finish, then their connections end. Connections that come
// later are drained at once.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for c := range s.conns {
		c.Drain()
	}
}

// Conns is how many connections are served.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func serveStream(ctx context.Context, st *h2.Stream, fields []h2.Field, h Handler) {
	ctx, cancel := context.WithCancel(ctx)
	in := &Incoming{stream: st, cancel: cancel}
	pseudo := 0 // they come first
	for ; pseudo < len(fields) && strings.HasPrefix(fields[pseudo].Name, ":"); pseudo++ {
		switch f := fields[pseudo]; f.Name {
		case ":method":
			in.method = f.Value
		case ":authority":
			in.authority = f.Value
		}
	}
	in.header = fields[pseudo:]
	st.OnAbort(cancel)
	h(ctx, in)
	if !in.detached {
		in.end()
	}
}

// end follows the handler.
func (in *Incoming) end() {
	if !in.answered {
		_ = in.Reject(500, nil)
	}
	_ = in.stream.Close()
	in.cancel()
}

// Detach lets the handler return although the tunnel lives on: release, to be
// called once, is what its return would be otherwise. The handler's context ends;
// that the tunnel was cut is told by the tunnel itself, so that one that is idle
// costs no context.
func (in *Incoming) Detach() (release func()) {
	in.detached = true
	in.stream.OnAbort(nil)
	in.cancel()
	served := in.stream.Detach()
	return func() {
		in.end()
		served()
	}
}

// Incoming is one request that waits for its answer.
type Incoming struct {
	stream    *h2.Stream
	method    string
	authority string
	header    []Header
	answered  bool
	detached  bool
	cancel    context.CancelFunc
}

// ErrNotConnect refuses to accept a request that asks for no tunnel.
var ErrNotConnect = errors.New("not a CONNECT request")

// Method is CONNECT, or something that deserves 400.
func (in *Incoming) Method() string { return in.method }

// Authority is where the client wants to go, not judged yet.
func (in *Incoming) Authority() string { return in.authority }

// Header returns the header's values joined by commas, "" if there is none.
func (in *Incoming) Header(name string) string { return join(in.header, name) }

// Headers is all headers in order.
func (in *Incoming) Headers() []Header { return in.header }

// Accept answers 200: the upstream must be open by now.
func (in *Incoming) Accept(hdr []Header) (*Stream, error) {
	if in.method != "CONNECT" {
		return nil, fmt.Errorf("accept %s request: %w", in.method, ErrNotConnect)
	}
	if err := in.respond(200, hdr, false); err != nil {
		return nil, err
	}
	return in.stream, nil
}

// Reject answers with another status, no body, and closes the stream.
func (in *Incoming) Reject(status int, hdr []Header) error {
	if status < 300 || status > 599 {
		return fmt.Errorf("reject %s with status %d: want 300 to 599", in.authority, status)
	}
	if err := in.respond(status, hdr, true); err != nil {
		return err
	}
	// The client need not finish what nobody reads.
	return in.stream.CloseCode(h2.NoError)
}

func (in *Incoming) respond(status int, hdr []Header, end bool) error {
	if in.answered {
		return fmt.Errorf("answer %s: answered before", in.authority)
	}
	var few [8]Header // on the stack: Respond keeps nothing of it
	fields := append(few[:0], Header{Name: ":status", Value: strconv.Itoa(status)})
	for _, h := range hdr {
		if err := checkHeader(h); err != nil {
			return fmt.Errorf("answer %s: %w", in.authority, err)
		}
		fields = append(fields, h)
	}
	in.answered = true
	if err := in.stream.Respond(fields, end); err != nil {
		return fmt.Errorf("answer %s: %w", in.authority, err)
	}
	return nil
}
