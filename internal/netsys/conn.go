package netsys

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a TCP connection made here. It is what net.TCPConn is, with fewer
// system calls in its life: net asks the kernel for addresses and sets
// options that are known, or inherited from the listener, already.
type Conn struct {
	f             *os.File
	local, remote netip.AddrPort // as the kernel has them; local may be invalid: ask
}

var _ interface {
	net.Conn
	syscall.Conn
} = (*Conn)(nil)

// newConn takes fd, a non-blocking socket, over.
func newConn(fd int, remote netip.AddrPort) *Conn {
	return &Conn{f: os.NewFile(uintptr(fd), "connection"), remote: remote}
}

// Bare says that what is read and written by the descriptor is what the
// connection carries.
func (c *Conn) Bare() {}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) { return c.f.Read(p) }

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) { return c.f.Write(p) }

// Close implements net.Conn.
func (c *Conn) Close() error { return c.f.Close() }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.f.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.f.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }

// SyscallConn implements syscall.Conn.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.f.SyscallConn() }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr {
	if !c.local.IsValid() {
		_ = c.control(func(fd int) error {
			c.local = nameOf(unix.Getsockname(fd))
			return nil
		})
	}
	return net.TCPAddrFromAddrPort(c.local)
}

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// CloseWrite ends our direction: FIN.
func (c *Conn) CloseWrite() error {
	return c.control(func(fd int) error { return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_WR)) })
}

// SetLinger is that of net.TCPConn: with 0, Close resets the connection.
func (c *Conn) SetLinger(sec int) error {
	l := unix.Linger{Linger: int32(max(sec, 0))}
	if sec >= 0 {
		l.Onoff = 1
	}
	return c.control(func(fd int) error {
		return os.NewSyscallError("setsockopt SO_LINGER", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l))
	})
}

func (c *Conn) control(fn func(fd int) error) error {
	rc, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = rc.Control(func(fd uintptr) { failure = fn(int(fd)) })
	if err != nil && errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return errors.Join(err, failure)
}

func nameOf(sa unix.Sockaddr, err error) netip.AddrPort {
	if err != nil {
		return netip.AddrPort{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Listener accepts TCP connections of one namespace.
type Listener struct {
	f    *os.File
	addr netip.AddrPort
}

var _ net.Listener = (*Listener)(nil)

// AcceptConn waits for the next connection. Its options are the listener's.
func (l *Listener) AcceptConn() (*Conn, error) {
	rc, err := l.f.SyscallConn()
	if err != nil {
		return nil, l.wrap(err)
	}
	var (
		fd      int
		from    unix.Sockaddr
		failure error
	)
	err = rc.Read(func(lfd uintptr) bool {
		for {
			fd, from, failure = unix.Accept4(int(lfd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			switch failure {
			case unix.EINTR, unix.ECONNABORTED: // the next one may be whole
			case unix.EAGAIN:
				return false
			default:
				return true
			}
		}
	})
	if err = errors.Join(err, os.NewSyscallError("accept4", failure)); err != nil {
		return nil, l.wrap(err)
	}
	return newConn(fd, nameOf(from, nil)), nil
}

func (l *Listener) wrap(err error) error {
	if errors.Is(err, os.ErrClosed) {
		err = net.ErrClosed
	}
	return fmt.Errorf("accept on %v: %w", l.addr, err)
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptConn()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Close implements net.Listener.
func (l *Listener) Close() error { return l.f.Close() }

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
