package upstream

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// proxyHeader tells an endpoint whose connection it gets, in version 1 or 2 of the PROXY protocol. Without both addresses of one
// family it says that it cannot tell.
func proxyHeader(version uint8, src, dst netip.AddrPort) []byte {
	s, d := src.Addr().Unmap(), dst.Addr().Unmap()
	known := s.IsValid() && d.IsValid() && s.Is4() == d.Is4()
	if version == 1 {
		switch {
		case !known:
			return []byte("PROXY UNKNOWN\r\n")
		case s.Is4():
			return fmt.Appendf(nil, "PROXY TCP4 %s %s %d %d\r\n", s, d, src.Port(), dst.Port())
		}
		return fmt.Appendf(nil, "PROXY TCP6 %s %s %d %d\r\n", s.WithZone(""), d.WithZone(""), src.Port(), dst.Port())
	}
	const (
		signature = "\r\n\r\n\x00\r\nQUIT\n"
		local     = 0x20
		proxied   = 0x21
		tcp4      = 0x11
		tcp6      = 0x21
	)
	out := []byte(signature)
	if !known {
		return append(out, local, 0, 0, 0)
	}
	family := byte(tcp4)
	if s.Is6() {
		family = tcp6
	}
	a, b := s.AsSlice(), d.AsSlice()
	out = append(out, proxied, family)
	out = binary.BigEndian.AppendUint16(out, uint16(len(a)+len(b)+4))
	out = append(append(out, a...), b...)
	out = binary.BigEndian.AppendUint16(out, src.Port())
	return binary.BigEndian.AppendUint16(out, dst.Port())
}
