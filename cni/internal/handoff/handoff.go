package handoff

import (
	"context"
	"sync/atomic"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/zds"
)

// Pods lists what a proxy must serve.
type Pods interface {
	Snapshot(ctx context.Context) []zds.Entry
	Poke()
}

// Server is the agent's end of the pod protocol.
type Server struct {
	zds  *zds.Server
	pods atomic.Pointer[Pods]
}

// New makes a server; Bind gives it the pods before it serves.
func New(log *obs.Logger, onPeers func(n int)) *Server {
	s := &Server{}
	s.zds = zds.NewServer(zds.ServerConfig{
		Log: log,
		Snapshot: func(ctx context.Context) []zds.Entry {
			if p := s.pods.Load(); p != nil {
				return (*p).Snapshot(ctx)
			}
			return nil
		},
		OnPeers: func(n int) {
			onPeers(n)
			if p := s.pods.Load(); p != nil && n > 0 {
				(*p).Poke()
			}
		},
	})
	return s
}

// Bind says whose pods these are.
func (s *Server) Bind(p Pods) { s.pods.Store(&p) }

// Listen binds the socket.
func (s *Server) Listen(path string) error { return s.zds.Listen(path) }

// Serve answers proxies until ctx ends.
func (s *Server) Serve(ctx context.Context) error { return s.zds.Serve(ctx) }

// Add hands a pod to the newest proxy.
func (s *Server) Add(ctx context.Context, uid string, info zds.Info, fd int) error {
	return s.zds.Add(ctx, uid, info, fd)
}

// Del tells all proxies that a pod is gone.
func (s *Server) Del(ctx context.Context, uid string) error { return s.zds.Del(ctx, uid) }
