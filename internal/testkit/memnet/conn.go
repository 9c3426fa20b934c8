package memnet

import (
	"net"
	"net/netip"
	"time"
)

// Conn is one end of a connection.
type Conn struct {
	local, remote netip.AddrPort
	in, out       *half
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) { return c.in.read(p) }

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) { return c.out.write(p) }

// CloseWrite ends the direction to the peer.
func (c *Conn) CloseWrite() error {
	c.out.fin()
	return nil
}

// Close ends both directions; like TCP it resets the connection if bytes were left unread.
func (c *Conn) Close() error {
	if c.in.stopReading() {
		c.out.breakOff()
	}
	c.out.fin()
	return nil
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// Local is LocalAddr as a value.
func (c *Conn) Local() netip.AddrPort { return c.local }

// Remote is RemoteAddr as a value.
func (c *Conn) Remote() netip.AddrPort { return c.remote }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.setDeadline(0, t)
	c.out.setDeadline(1, t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(0, t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(1, t)
	return nil
}
