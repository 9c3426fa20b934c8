package netsys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST: the destination
// before an nftables redirect, asked at the level of the packet's family.
const soOriginalDst = 80

// ErrNoAddress says that a connection has no TCP address.
var ErrNoAddress = errors.New("no TCP address")

// OriginalDst is where the client of a redirected connection meant to go:
// asked at the IPv4 level (an IPv4 client on a dual-stack socket answers
// there), then at the IPv6 level, else the local address.
func OriginalDst(c interface {
	syscall.Conn
	LocalAddr() net.Addr
},
) (netip.AddrPort, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	var dst netip.AddrPort
	err = rc.Control(func(fd uintptr) {
		dst = originalDst4(int(fd))
		if !dst.IsValid() {
			dst = originalDst6(int(fd))
		}
	})
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	if dst.IsValid() {
		return dst, nil
	}
	return Unmap(c.LocalAddr())
}

func originalDst4(fd int) netip.AddrPort {
	// A v6 multicast request is as long as what the kernel answers: 16 bytes
	// of sockaddr_in and some to spare.
	raw, err := unix.GetsockoptIPv6Mreq(fd, unix.IPPROTO_IP, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}
	}
	b := raw.Multiaddr // family(2) port(2) address(4)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))
}

func originalDst6(fd int) netip.AddrPort {
	raw, err := unix.GetsockoptIPv6MTUInfo(fd, unix.IPPROTO_IPV6, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}
	}
	port := binary.NativeEndian.AppendUint16(nil, raw.Addr.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(raw.Addr.Addr).Unmap(), binary.BigEndian.Uint16(port))
}

// Unmap turns the address of a connection into plain form: an IPv4 client of
// a dual-stack listener is IPv4.
func Unmap(a net.Addr) (netip.AddrPort, error) {
	t, ok := a.(*net.TCPAddr)
	if !ok || t == nil {
		return netip.AddrPort{}, fmt.Errorf("address %v: %w", a, ErrNoAddress)
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}
