package edge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
)

// Config is what a Server needs.
type Config struct {
	Table  func() *table.Table // the configuration in force
	Phases *phases.Handler
	Local  identity.ID // this gateway's own
	Listen func(ctx context.Context, port uint16) (net.Listener, error)
	// Limit is how many connections may be open at one listener; 0 = DefaultLimit.
	Limit int64
	Log   *obs.Logger
}

// DefaultLimit is below what a process may have open by default in most systems.
const DefaultLimit = 16384

// Server has a socket for every listener of the configuration.
type Server struct {
	cfg     Config
	changed chan struct{}
	open    atomic.Int64
	certs   certificates
	http    servers

	mu      sync.Mutex
	sockets map[string]*socket
}

// socket is one listening socket.
type socket struct {
	port  uint16
	l     net.Listener
	conns atomic.Int64
}

// New makes a server that listens nowhere yet.
func New(cfg Config) *Server {
	if cfg.Limit == 0 {
		cfg.Limit = DefaultLimit
	}
	s := &Server{cfg: cfg, changed: make(chan struct{}, 1), sockets: map[string]*socket{}}
	s.http.handler = cfg.Phases
	return s
}

// Changed says that the configuration may have changed. It does not wait.
func (s *Server) Changed() {
	select {
	case s.changed <- struct{}{}:
	default: // it will be looked at anyway
	}
}

// Open is the number of connections whose chain is known.
func (s *Server) Open() int64 { return s.open.Load() }

// Drain closes kept connections on which nothing is asked; answers say that their connection ends. Who comes back is served.
func (s *Server) Drain() { s.http.drain() }

// Run keeps the sockets as the configuration says until ctx ends, and returns when all that was accepted has ended.
func (s *Server) Run(ctx context.Context) error {
	g := run.NewGroup(context.WithoutCancel(ctx))
	s.http.start(g)
	conns := run.NewGroup(ctx)
	// What failed is tried again: the port may be free by then.
	retry := time.NewTicker(time.Second)
	defer retry.Stop()
	for ctx.Err() == nil {
		failed := s.reconcile(ctx, conns)
		again := retry.C
		if !failed {
			again = nil
		}
		select {
		case <-s.changed:
		case <-again:
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	for _, k := range s.sockets {
		_ = k.l.Close()
	}
	s.mu.Unlock()
	err := conns.Wait()
	s.http.stop()
	g.Stop()
	return errors.Join(err, g.Wait())
}

// reconcile closes the sockets of listeners that are gone and opens those of new ones. A listener whose port did not change
// keeps its socket.
func (s *Server) reconcile(ctx context.Context, conns *run.Group) (failed bool) {
	t := s.cfg.Table()
	s.certs.retain(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.sockets)) {
		if k := s.sockets[name]; t.Edges[name] == nil || t.Edges[name].Port != k.port {
			_ = k.l.Close()
			delete(s.sockets, name)
			s.cfg.Log.Info("listener closed", obs.F("listener", name), obs.F("port", strconv.Itoa(int(k.port))))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Edges)) {
		if s.sockets[name] != nil {
			continue
		}
		port := t.Edges[name].Port
		l, err := s.cfg.Listen(ctx, port)
		if err != nil {
			failed = true
			s.cfg.Log.Error("cannot listen; it is tried again", obs.F("listener", name), obs.F("port", strconv.Itoa(int(port))), obs.Err(err))
			continue
		}
		k := &socket{port: port, l: l}
		if !conns.Go("listener "+name, func(ctx context.Context) error { s.accept(ctx, name, k, conns); return nil }) {
			_ = l.Close()
			return false
		}
		s.sockets[name] = k
		s.cfg.Log.Info("listener opened", obs.F("listener", name), obs.F("addr", l.Addr().String()))
	}
	return failed
}

func (s *Server) accept(ctx context.Context, name string, k *socket, conns *run.Group) {
	stop := context.AfterFunc(ctx, func() { _ = k.l.Close() })
	defer stop()
	for {
		c, err := k.l.Accept()
		switch {
		case err == nil:
			if k.conns.Add(1) > s.cfg.Limit {
				k.conns.Add(-1)
				_ = c.Close()
				continue
			}
			ok := conns.Go("edge connection", func(ctx context.Context) error {
				defer k.conns.Add(-1)
				s.connection(ctx, name, c)
				return nil
			})
			if !ok {
				_ = c.Close()
				return
			}
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default:
			s.cfg.Log.Warn("accept failed", obs.F("listener", name), obs.Err(err))
			select { // out of file descriptors, most likely: give others the time to end
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// Addr is where a listener is reached; nil = it has no socket.
func (s *Server) Addr(listener string) net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.sockets[listener]; k != nil {
		return k.l.Addr()
	}
	return nil
}

var errNoChain = errors.New("no chain serves this connection (NR)")

func refused(err error, format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, err)...)
}
