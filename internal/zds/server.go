package zds

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
)

const (
	// acceptEvery bounds new connections to five a second.
	acceptEvery = 200 * time.Millisecond
	queueRoom   = 100
	pathLimit   = 107 // sun_path without its NUL
)

// ErrNoProxy is the answer to an add when no proxy is connected. The pod reaches
// the next proxy by the snapshot.
var ErrNoProxy = errors.New("no ztunnel connection")

// ErrLost is the answer when the connection ended before the ack.
var ErrLost = errors.New("connection to ztunnel lost before it answered")

// Entry is one pod of the snapshot. The server owns FD and closes it: give it a
// duplicate. A negative FD means that the namespace is not at hand; a proxy that
// serves the pod keeps it.
type Entry struct {
	UID  string
	Info Info
	FD   int
}

// ServerConfig is what a Server needs.
type ServerConfig struct {
	// Snapshot lists the enrolled pods. It is called once per connection and must
	// already contain (or lack) what a later Add (or Del) is about: change the
	// list first, then call.
	Snapshot func(ctx context.Context) []Entry
	Log      *obs.Logger
	// OnPeers, if set, is told how many proxies are connected.
	OnPeers func(n int)
}

// Server is the agent's end of the socket. It serves several proxies, as during
// a rolling update.
type Server struct {
	cfg ServerConfig
	l   *net.UnixListener
	// acceptGap and limit are constants but for tests.
	acceptGap, limit time.Duration

	mu    sync.Mutex
	peers []*peer // in order of arrival
	next  int
}

// NewServer makes a server that does not listen yet.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = obs.Discard()
	}
	return &Server{cfg: cfg, acceptGap: acceptEvery, limit: ackLimit}
}

// Listen binds the socket, in place of a stale one. Only the owner of the process
// may connect: who connects is given the namespaces of all pods.
func (s *Server) Listen(path string) error {
	if len(path) > pathLimit {
		return fmt.Errorf("pod protocol socket %s: path of %d bytes, the kernel allows %d", path, len(path), pathLimit)
	}
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("pod protocol socket: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("pod protocol socket %s: exists and is no socket; remove it", path)
	default:
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("pod protocol socket: remove the stale one: %w", err)
		}
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("pod protocol socket: %w", err)
	}
	// At the next agent's start the path is already another socket: not ours to
	// remove.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return fmt.Errorf("pod protocol socket: %w", err)
	}
	s.l = l
	return nil
}

// Serve accepts proxies until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	g := run.NewGroup(ctx)
	stop := context.AfterFunc(g.Context(), func() { _ = s.l.Close() })
	defer stop()
	g.Go("accept ztunnel", func(ctx context.Context) error {
		for {
			c, err := s.l.AcceptUnix()
			if ctx.Err() != nil {
				if err == nil {
					_ = c.Close()
				}
				return nil
			}
			if err != nil {
				return fmt.Errorf("pod protocol socket: %w", err)
			}
			if err := trusted(c); err != nil {
				s.cfg.Log.Warn("connection to the pod protocol socket refused", obs.Err(err))
				_ = c.Close()
			} else {
				p := s.register(c)
				g.Go("ztunnel connection", func(ctx context.Context) error { s.serve(ctx, p); return nil })
			}
			wait(ctx, s.acceptGap)
		}
	})
	return g.Wait()
}

// trusted lets root and our own user in: file modes alone leave a gap between
// bind and chmod.
func trusted(c *net.UnixConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *syscall.Ucred
	var credErr error
	if err := rc.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if uid := int(cred.Uid); uid != 0 && uid != os.Geteuid() {
		return fmt.Errorf("peer runs as user %d, only root and user %d may ask for pods", uid, os.Geteuid())
	}
	return nil
}

func (s *Server) register(c *net.UnixConn) *peer {
	s.mu.Lock()
	s.next++
	p := &peer{id: s.next, limit: s.limit, conn: c, queue: make(chan *call, queueRoom), in: make(chan []byte), gone: make(chan struct{})}
	s.peers = append(s.peers, p)
	n := len(s.peers)
	s.mu.Unlock()
	s.announce(n)
	return p
}

func (s *Server) remove(p *peer) {
	s.mu.Lock()
	s.peers = slices.DeleteFunc(s.peers, func(o *peer) bool { return o == p })
	n := len(s.peers)
	s.mu.Unlock()
	s.announce(n)
}

func (s *Server) announce(n int) {
	if s.cfg.OnPeers != nil {
		s.cfg.OnPeers(n)
	}
}

// Peers is the number of connected proxies.
func (s *Server) Peers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

// Add hands a pod to the newest proxy and waits for its answer: nil, ErrNoProxy,
// ErrLost, a *Refused, or the end of ctx. The caller keeps fd.
func (s *Server) Add(ctx context.Context, uid string, info Info, fd int) error {
	b, err := encodeAdd(uid, info)
	if err != nil {
		return fmt.Errorf("add pod %s %s: %w", uid, info, err)
	}
	s.mu.Lock()
	var p *peer
	if n := len(s.peers); n > 0 {
		p = s.peers[n-1]
	}
	s.mu.Unlock()
	if p == nil {
		return fmt.Errorf("add pod %s %s: %w", uid, info, ErrNoProxy)
	}
	// The call has its own descriptor: the caller's may be closed, and its number
	// be another namespace, when ctx ends before the packet is sent.
	own, err := dupFD(fd)
	if err != nil {
		return fmt.Errorf("add pod %s %s: %w", uid, info, err)
	}
	if err := p.ask(ctx, newCall(b, own)); err != nil {
		return fmt.Errorf("add pod %s %s: %w", uid, info, err)
	}
	return nil
}

// Del tells all proxies that a pod is gone and waits for them. Without a proxy
// there is nothing to tell. A lost connection is no failure either: the next
// snapshot lacks the pod.
func (s *Server) Del(ctx context.Context, uid string) error {
	b, err := encodeDel(uid)
	if err != nil {
		return fmt.Errorf("delete pod %s: %w", uid, err)
	}
	s.mu.Lock()
	peers := slices.Clone(s.peers)
	s.mu.Unlock()
	calls := make([]*call, len(peers))
	for i, p := range peers {
		calls[i] = newCall(b, -1)
		p.enqueue(ctx, calls[i])
	}
	var errs []error
	for i, p := range peers {
		if err := p.await(ctx, calls[i]); err != nil && !errors.Is(err, ErrLost) {
			errs = append(errs, fmt.Errorf("delete pod %s: %w", uid, err))
		}
	}
	return errors.Join(errs...)
}

// serve lives for one connection: hello, snapshot, then calls.
func (s *Server) serve(ctx context.Context, p *peer) {
	log := s.cfg.Log.With(obs.F("connection", p.id))
	g := run.NewGroup(ctx)
	g.Go("read", p.read)
	g.Go("converse", func(ctx context.Context) error { return s.converse(ctx, p, log) })
	stop := context.AfterFunc(g.Context(), func() { _ = p.conn.Close() })
	err := g.Wait()
	stop()
	_ = p.conn.Close()
	s.remove(p)
	close(p.gone)
	log.Info("ztunnel disconnected", obs.Err(err))
}

func (s *Server) converse(ctx context.Context, p *peer, log *obs.Logger) error {
	b, err := p.receive(ctx)
	if err != nil {
		return fmt.Errorf("wait for hello: %w", err)
	}
	if err := decodeHello(b); err != nil {
		return err
	}
	log.Info("ztunnel connected")
	if err := s.snapshot(ctx, p, log); err != nil {
		return fmt.Errorf("send snapshot: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.in:
			return fmt.Errorf("%w: data without a question", ErrPacket)
		case c := <-p.queue:
			if !c.take() {
				continue // its caller has left
			}
			answer, err := p.exchange(ctx, c.data, c.fd)
			c.finish(answer, err)
			if err != nil {
				return err
			}
		}
	}
}

func (s *Server) snapshot(ctx context.Context, p *peer, log *obs.Logger) error {
	entries := s.cfg.Snapshot(ctx)
	defer func() {
		for _, e := range entries {
			if e.FD >= 0 {
				_ = syscall.Close(e.FD)
			}
		}
	}()
	for _, e := range entries {
		var b []byte
		var err error
		if e.FD >= 0 {
			b, err = encodeAdd(e.UID, e.Info)
		} else {
			b, err = encodeKeep(e.UID)
		}
		if err != nil {
			log.Error("a pod cannot be told to ztunnel", obs.F("uid", e.UID), obs.F("pod", e.Info), obs.Err(err))
			continue
		}
		refusal, err := p.exchange(ctx, b, e.FD)
		if err != nil {
			return err
		}
		if refusal != nil {
			// It keeps the pod as pending and tries again by itself.
			log.Warn("ztunnel did not start a pod of the snapshot", obs.F("uid", e.UID), obs.F("pod", e.Info), obs.Err(refusal))
		}
	}
	b, err := encodeSnapshotSent()
	if err != nil {
		return err
	}
	refusal, err := p.exchange(ctx, b, -1)
	return errors.Join(err, refusal)
}
