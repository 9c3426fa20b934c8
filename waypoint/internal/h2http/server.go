package h2http

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/h2"
)

// Server serves requests on connections.
type Server struct {
	Handler http.Handler
	// MaxStreams is how many requests a connection may have at once; 0 = 200.
	MaxStreams uint32
	// MaxHeader is how many bytes a request's header may have, as RFC 9113 section
	// 6.5.2 counts them; 0 = 64 KiB. More is answered 431.
	MaxHeader uint32
	// HeaderTimeout is how long a header block may take from its first byte to its
	// last; 0 = 10 s.
	HeaderTimeout time.Duration
	// IdleTimeout is how long a connection without requests is kept; 0 = for ever. A
	// peer that does not answer pings is given up in any case.
	IdleTimeout time.Duration
	// Memory is how many bytes of request bodies that nobody has read yet a
	// connection may hold, twice; 0 = 1 MiB. All connections together hold
	// 128 MiB, and their windows beyond that.
	Memory uint32

	totals h2.Totals
	mu     sync.Mutex
	conns  map[*h2.Conn]struct{}
}

// frameSize is below every window, so that a client that thinks little of windows
// gets its first frame through.
const frameSize = 32 << 10

// ErrClientGone is the cause of a request's end whose client gave it up, or is gone.
var ErrClientGone = errors.New("the client has given the request up")

// conn is one connection.
type conn struct {
	srv  *Server
	ctx  context.Context //nolint:containedctx // parent of all requests' contexts
	from string
	busy atomic.Int64 // requests under way
	last atomic.Int64 // when the last one ended, by Unix' nanoseconds
}

func (s *Server) config() h2.Config {
	memory := s.Memory
	if memory == 0 {
		memory = 1 << 20
	}
	return h2.Config{
		StreamWindow: min(memory, 1<<20), ConnWindow: memory, Queue: int64(memory), FrameSize: frameSize,
		MaxStreams: s.MaxStreams, MaxHeaderList: s.MaxHeader,
		Requests: &h2.Requests{HeaderTimeout: s.HeaderTimeout}, Totals: &s.totals,
	}
}

// Serve serves c, whose client is at from, until one of both has had enough, and
// closes it. All handlers have returned then. The end of ctx ends the connection;
// that, and ends in order, are no error.
func (s *Server) Serve(ctx context.Context, c net.Conn, from string) error {
	// Handlers learn that ctx ended before their streams are cut.
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	sc := &conn{srv: s, ctx: inner, from: from}
	sc.last.Store(time.Now().UnixNano())
	h := h2.NewServer(c, s.config(), sc.serve)
	stop := context.AfterFunc(ctx, func() {
		cancel(context.Cause(ctx))
		_ = h.Close()
	})
	defer stop()
	if s.IdleTimeout > 0 {
		t := newIdleTimer(sc, h, s.IdleTimeout)
		defer t.stop()
	}
	s.add(h)
	defer s.remove(h)
	return h.Serve(ctx)
}

func (s *Server) add(h *h2.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = map[*h2.Conn]struct{}{}
	}
	s.conns[h] = struct{}{}
}

func (s *Server) remove(h *h2.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, h)
}

// Drain tells every client that its connection goes away: requests under way to
// us are still served, then the connections end. Who comes back is served, as long as no
// answer has the header Connection: close.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range s.conns {
		h.Drain()
	}
}

// idleTimer ends a connection on which nothing is asked. It is not touched by
// requests: it looks when its time has come.
type idleTimer struct {
	mu    sync.Mutex
	t     *time.Timer
	ended bool
}

func newIdleTimer(sc *conn, h *h2.Conn, limit time.Duration) *idleTimer {
	it := &idleTimer{}
	it.mu.Lock()
	defer it.mu.Unlock()
	it.t = time.AfterFunc(limit, func() {
		wait := limit
		if sc.busy.Load() == 0 {
			if wait = limit - time.Since(time.Unix(0, sc.last.Load())); wait <= 0 {
				h.Drain()
				return
			}
		}
		it.mu.Lock()
		defer it.mu.Unlock()
		if !it.ended {
			it.t.Reset(wait)
		}
	})
	return it
}

func (it *idleTimer) stop() {
	it.mu.Lock()
	defer it.mu.Unlock()
	it.ended = true
	it.t.Stop()
}

// serve is the life of one request.
func (sc *conn) serve(st *h2.Stream, fields []h2.Field) {
	sc.busy.Add(1)
	defer func() {
		sc.last.Store(time.Now().UnixNano())
		sc.busy.Add(-1)
	}()
	ctx, cancel := context.WithCancelCause(sc.ctx)
	defer cancel(nil)
	x := &exchange{st: st}
	req, err := x.request(ctx, fields)
	if err != nil {
		_ = st.Answer([]h2.Field{{Name: ":status", Value: "400"}}, nil, true)
		_ = st.CloseCode(h2.NoError)
		return
	}
	req.RemoteAddr = sc.from
	st.OnAbort(func() { cancel(ErrClientGone) })
	defer func() {
		// A handler that gives up has said why already. The client must not take
		// what it got for the whole.
		if p := recover(); p != nil {
			_ = st.CloseCode(h2.InternalError)
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
		}
	}()
	sc.srv.Handler.ServeHTTP(&x.res, req)
	x.body.closed.Store(true)
	x.res.finish()
}

// exchange is what a request needs, in one piece.
type exchange struct {
	st   *h2.Stream
	res  response
	body body
}
