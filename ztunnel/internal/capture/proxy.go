package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
)

// Options say how the sockets of all pods are made.
type Options struct {
	Mark       uint32 // SO_MARK of every socket; without it replies are captured again
	ReusePort  bool   // lets an old and a new process listen side by side during an update
	IPv6       bool   // false: listeners take IPv4 only
	KeepSource bool   // connections to applications carry the client's address
	KeepAlive  net.KeepAliveConfig
}

// Config is what all proxies of a process share.
type Config struct {
	Options

	Handlers Handlers
	Log      *obs.Logger
}

// Proxy is the three listeners of one pod and the connections they accepted.
type Proxy struct {
	cfg *Config
	pod *Pod
	ns  *netsys.Netns
	g   *run.Group
	ls  []*netsys.Listener
	// release lets go of the drain.
	release context.CancelFunc

	mu sync.Mutex
	// own are addresses of the pod's namespace, those that were asked for.
	own map[netip.Addr]struct{}
}

type port struct {
	number   uint16
	name     string
	redirect bool // the destination is the one before redirection
	keep     bool // keepalive on accepted sockets
	handler  Handler
}

// ports lists the listeners, that of tunnels first.
func (c *Config) ports() []port {
	return []port{
		{PortHBONE, "hbone", false, false, c.Handlers.HBONE},
		{PortPlain, "plaintext", true, true, c.Handlers.Plain},
		{PortOutbound, "outbound", true, true, c.Handlers.Outbound},
	}
}

// Open binds all listeners of a pod in its namespace, or none. It fills in
// pod.Dial. The proxy ends by pod.Drain; ns must stay open until Wait returns.
func Open(cfg *Config, ns *netsys.Netns, pod *Pod) (*Proxy, error) {
	return open(cfg, ns, pod, cfg.ports())
}

// OpenHBONE is Open for a pod without redirection that only takes tunnels:
// ztunnel's own.
func OpenHBONE(cfg *Config, ns *netsys.Netns, pod *Pod) (*Proxy, error) {
	return open(cfg, ns, pod, cfg.ports()[:1])
}

func open(cfg *Config, ns *netsys.Netns, pod *Pod, ports []port) (*Proxy, error) {
	host := netip.IPv6Unspecified()
	if !cfg.IPv6 {
		host = netip.IPv4Unspecified()
	}
	// One context for all connections: each ends by itself or all are cut.
	ctx, release := pod.Drain.Context(context.Background())
	p := &Proxy{cfg: cfg, pod: pod, ns: ns, own: map[netip.Addr]struct{}{}, g: run.NewGroup(ctx), release: release}
	pod.Dial = dialer(ns, cfg.Options)
	for _, port := range ports {
		o := netsys.ListenOptions{Mark: cfg.Mark, ReusePort: cfg.ReusePort, Transparent: true}
		if port.keep {
			o.KeepAlive = cfg.KeepAlive
		}
		l, err := ns.Listen(netip.AddrPortFrom(host, port.number), o)
		if err != nil {
			p.closeListeners()
			release()
			return nil, fmt.Errorf("%s listener of pod %s/%s: %w", port.name, pod.Namespace, pod.Name, err)
		}
		p.ls = append(p.ls, l)
	}
	// Bound first, accepting second: a failure above has accepted nothing.
	for i, port := range ports {
		p.g.Go("accept "+port.name, func(ctx context.Context) error { return p.accept(ctx, p.ls[i], &port) })
	}
	p.g.Go("drain", func(ctx context.Context) error {
		select {
		case <-pod.Drain.Started():
		case <-ctx.Done():
		}
		p.closeListeners()
		return nil
	})
	return p, nil
}

func (p *Proxy) closeListeners() {
	for _, l := range p.ls {
		_ = l.Close()
	}
}

// Pod is whose proxy this is.
func (p *Proxy) Pod() *Pod { return p.pod }

// Owns says whether ip is an address of the pod's namespace, so that a connection to it ends nowhere else.
func (p *Proxy) Owns(ip netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.own[ip]; known {
		return true
	}
	var all []net.Addr
	err := p.ns.Do(func() (err error) {
		all, err = net.InterfaceAddrs()
		return err
	})
	if err != nil {
		return false
	}
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr() == ip {
			p.own[ip] = struct{}{}
			return true
		}
	}
	return false
}

// Wait returns when the drain is over and the last connection has ended, or,
// with an error, when a listener broke.
func (p *Proxy) Wait() error {
	defer p.release()
	return p.g.Wait()
}

const (
	acceptPauseFirst = 5 * time.Millisecond
	acceptPauseMax   = time.Second
)

func (p *Proxy) accept(ctx context.Context, l *netsys.Listener, port *port) error {
	pause := acceptPauseFirst
	for {
		c, err := l.AcceptConn()
		switch {
		case err == nil:
			pause = acceptPauseFirst
			p.g.Go("connection", func(ctx context.Context) error { p.serve(ctx, c, port); return nil })
		case p.pod.Drain.Draining() || ctx.Err() != nil:
			return nil //nolint:nilerr // the listener was closed on purpose
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("port %d: %w", port.number, err)
		default:
			// Out of descriptors or memory: it passes, and the pod must not lose
			// its proxy by it.
			p.cfg.Log.Warn("cannot accept", obs.F("pod", p.pod.Namespace+"/"+p.pod.Name), obs.F("port", port.number), obs.Err(err))
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-ctx.Done():
			case <-p.pod.Drain.Started():
			}
			t.Stop()
			pause = min(2*pause, acceptPauseMax)
		}
	}
}

// serve runs the driver of one connection, which closes it. Its frame stays while the driver waits.
func (p *Proxy) serve(ctx context.Context, c *netsys.Conn, port *port) {
	a := p.prepare(c, port)
	if a == nil {
		_ = c.Close()
		return
	}
	port.handler(ctx, p.pod, a)
}

// prepare learns what the driver must know; nil means that it told why not.
func (p *Proxy) prepare(c *netsys.Conn, port *port) *Accepted {
	a, err := describe(c, port)
	if err != nil {
		p.cfg.Log.Warn("connection failed", obs.F("pod", p.pod.Namespace+"/"+p.pod.Name), obs.F("port", port.number), obs.Err(err))
		return nil
	}
	a.group = p.g
	return a
}

func describe(c *netsys.Conn, port *port) (*Accepted, error) {
	peer, err := netsys.Unmap(c.RemoteAddr())
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	local, err := netsys.Unmap(c.LocalAddr())
	if err != nil {
		return nil, fmt.Errorf("local: %w", err)
	}
	a := &Accepted{Conn: c, Peer: peer, Local: local, Original: local}
	if port.redirect {
		if a.Original, err = netsys.OriginalDst(c); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// dialer keeps a source address where that is possible: not to the client itself
// (the kernel would take the packets for its own), not across families.
func dialer(ns *netsys.Netns, o Options) DialFunc {
	return func(ctx context.Context, dst netip.AddrPort, source netip.Addr) (Conn, error) {
		source = source.Unmap()
		if !o.KeepSource || source == dst.Addr().Unmap() || source.Is4() != dst.Addr().Unmap().Is4() {
			source = netip.Addr{}
		}
		c, err := ns.Dial(ctx, dst, netsys.DialOptions{Mark: o.Mark, Source: source, KeepAlive: o.KeepAlive})
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}
