package netsys

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ListenOptions says how a listening socket is made.
type ListenOptions struct {
	Mark        uint32 // SO_MARK, inherited by accepted sockets; 0 = none
	ReusePort   bool   // SO_REUSEPORT
	Transparent bool   // IP_TRANSPARENT, best effort: ask TransparentWorks when it matters
	Backlog     int    // 0 = 128
	V6Only      bool   // for an IPv6 address: do not take IPv4 as well

	KeepAlive net.KeepAliveConfig // of accepted sockets; without Enable there is none
}

// DialOptions says how a connection is made.
type DialOptions struct {
	Mark      uint32              // SO_MARK; 0 = none
	Source    netip.Addr          // connect from this foreign address (transparent); invalid = the kernel's choice
	KeepAlive net.KeepAliveConfig // without Enable there is none; zero times are the kernel's
	Timeout   time.Duration       // 0 = DefaultConnectTimeout
}

// DefaultConnectTimeout bounds a connect when DialOptions does not.
const DefaultConnectTimeout = 10 * time.Second

// Listen opens a TCP listener inside the namespace. An IPv6 address takes
// IPv4 clients as well unless V6Only; see Unmap for their addresses. Accepted
// sockets have TCP_NODELAY.
func (n *Netns) Listen(addr netip.AddrPort, o ListenOptions) (*Listener, error) {
	var fd int
	err := n.Do(func() (err error) {
		fd, err = listenSocket(addr, o)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %v in %v: %w", addr, n, err)
	}
	return &Listener{f: os.NewFile(uintptr(fd), "listener"), addr: nameOf(unix.Getsockname(fd))}, nil
}

func listenSocket(addr netip.AddrPort, o ListenOptions) (fd int, err error) {
	fd, err = tcpSocket(addr.Addr())
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if err := setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"); err != nil {
		return -1, err
	}
	if o.ReusePort {
		if err := setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT"); err != nil {
			return -1, err
		}
	}
	if addr.Addr().Is6() {
		only := 0
		if o.V6Only {
			only = 1
		}
		if err := setInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only, "IPV6_V6ONLY"); err != nil {
			return -1, err
		}
	}
	if err := setMark(fd, o.Mark); err != nil {
		return -1, err
	}
	if o.Transparent {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
	}
	if err := setStream(fd, o.KeepAlive); err != nil { // accepted sockets inherit this
		return -1, err
	}
	if err := unix.Bind(fd, sockaddr(addr)); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	backlog := o.Backlog
	if backlog == 0 {
		backlog = 128
	}
	return fd, os.NewSyscallError("listen", unix.Listen(fd, backlog))
}

// Dial connects to dst from inside the namespace, at most o.Timeout or as
// long as ctx lives. TCP_NODELAY is set.
func (n *Netns) Dial(ctx context.Context, dst netip.AddrPort, o DialOptions) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	o.Source = o.Source.Unmap()
	if o.Source.IsValid() && o.Source.Is4() != dst.Addr().Is4() {
		return nil, fmt.Errorf("connect to %v from %v: the source is of the other address family", dst, o.Source)
	}
	fd, err := n.socket(dst.Addr())
	if err == nil {
		err = prepare(fd, o)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", dst, err)
	}
	c, err := connect(ctx, fd, dst, o)
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", dst, err)
	}
	return c, nil
}

// prepare sets the options of a socket that shall be connected. It is closed if
// an error is returned.
func prepare(fd int, o DialOptions) (err error) {
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if err := setMark(fd, o.Mark); err != nil {
		return err
	}
	if err := setStream(fd, o.KeepAlive); err != nil {
		return err
	}
	if !o.Source.IsValid() {
		return nil
	}
	if err := setTransparent(fd, o.Source.Is6()); err != nil {
		return err
	}
	// Without this the port is fixed by bind, and ports run out although the
	// destinations differ.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(o.Source, 0))); err != nil {
		return fmt.Errorf("bind to foreign source %v: %w", o.Source, os.NewSyscallError("bind", err))
	}
	return nil
}

// connect takes fd over; it is closed if an error is returned.
func connect(ctx context.Context, fd int, dst netip.AddrPort, o DialOptions) (*Conn, error) {
	to := sockaddr(dst)
	err := unix.Connect(fd, to)
	if errors.Is(err, unix.EINPROGRESS) {
		// The answer of somebody on the same node waited for the first call to
		// end: the second one knows it, which saves waiting.
		err = unix.Connect(fd, to)
	}
	switch {
	case err == nil, errors.Is(err, unix.EISCONN):
		return newConn(fd, dst), nil
	case !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EALREADY) && !errors.Is(err, unix.EINTR):
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	c := newConn(fd, dst)
	if err := finishConnect(ctx, c.f, o.Timeout); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// finishConnect waits for the answer.
func finishConnect(ctx context.Context, f *os.File, limit time.Duration) error {
	if limit == 0 {
		limit = DefaultConnectTimeout
	}
	deadline := time.Now().Add(limit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := f.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("wait for connection: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	err := waitConnected(f)
	switch {
	case !stop() && ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer within %v: %w", limit, os.ErrDeadlineExceeded)
	case err != nil:
		return err
	}
	return f.SetWriteDeadline(time.Time{})
}

func waitConnected(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = rc.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			result = os.NewSyscallError("getsockopt", err)
			return true
		case code != 0:
			result = os.NewSyscallError("connect", unix.Errno(code))
			return true
		}
		// The poller reports a fresh socket as writable once; only a peer
		// name proves that the handshake is over.
		if _, err := unix.Getpeername(int(fd)); err != nil {
			return false
		}
		return true
	})
	return errors.Join(err, result)
}

// TransparentWorks reports whether sockets of this namespace may carry
// foreign source addresses (CAP_NET_ADMIN or CAP_NET_RAW).
func (n *Netns) TransparentWorks() error {
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer func() { _ = unix.Close(fd) }()
		return setTransparent(fd, false)
	})
}

// MarkWorks reports whether sockets may be marked (CAP_NET_ADMIN).
func (n *Netns) MarkWorks(mark uint32) error {
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer func() { _ = unix.Close(fd) }()
		return setMark(fd, mark)
	})
}

// ListenPacket opens a UDP socket inside the namespace (the DNS proxy's).
func (n *Netns) ListenPacket(addr netip.AddrPort, o ListenOptions) (*net.UDPConn, error) {
	var fd int
	err := n.Do(func() (err error) {
		fd, err = packetSocket(addr, o)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on udp %v in %v: %w", addr, n, err)
	}
	f := os.NewFile(uintptr(fd), "packets")
	defer func() { _ = f.Close() }()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("listen on udp %v in %v: %w", addr, n, err)
	}
	return c.(*net.UDPConn), nil
}

func packetSocket(addr netip.AddrPort, o ListenOptions) (fd int, err error) {
	fd, err = unix.Socket(family(addr.Addr()), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if o.ReusePort {
		if err := setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT"); err != nil {
			return -1, err
		}
	}
	if err := setMark(fd, o.Mark); err != nil {
		return -1, err
	}
	return fd, os.NewSyscallError("bind", unix.Bind(fd, sockaddr(addr)))
}

func tcpSocket(a netip.Addr) (int, error) {
	fd, err := unix.Socket(family(a), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return fd, os.NewSyscallError("socket", err)
}

func family(a netip.Addr) int {
	if a.Is4() || a.Is4In6() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	a := ap.Addr().Unmap()
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: a.As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(ap.Port()), Addr: a.As16()}
	if z := a.Zone(); z != "" {
		if ifi, err := net.InterfaceByName(z); err == nil {
			sa.ZoneId = uint32(ifi.Index)
		}
	}
	return sa
}

func setMark(fd int, mark uint32) error {
	if mark == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return fmt.Errorf("mark socket with %#x (needs CAP_NET_ADMIN): %w", mark, err)
	}
	return nil
}

// setTransparent allows foreign addresses, for which there is no need of
// IP_FREEBIND beside it.
func setTransparent(fd int, v6 bool) error {
	if v6 {
		return setInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1, "IPV6_TRANSPARENT")
	}
	return setInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1, "IP_TRANSPARENT")
}

// setStream sets what every connection of ours has.
func setStream(fd int, k net.KeepAliveConfig) error {
	err := setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, "TCP_NODELAY")
	if err != nil || !k.Enable {
		return err
	}
	seconds := func(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
	for _, o := range []struct {
		opt, value int
		name       string
	}{
		{unix.TCP_KEEPIDLE, seconds(k.Idle), "TCP_KEEPIDLE"},
		{unix.TCP_KEEPINTVL, seconds(k.Interval), "TCP_KEEPINTVL"},
		{unix.TCP_KEEPCNT, k.Count, "TCP_KEEPCNT"},
	} {
		if o.value <= 0 {
			continue
		}
		if err := setInt(fd, unix.IPPROTO_TCP, o.opt, o.value, o.name); err != nil {
			return err
		}
	}
	return setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, "SO_KEEPALIVE")
}

func setInt(fd, level, opt, value int, name string) error {
	if err := unix.SetsockoptInt(fd, level, opt, value); err != nil {
		return fmt.Errorf("set %s=%d: %w", name, value, err)
	}
	return nil
}
