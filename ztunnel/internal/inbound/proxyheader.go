package inbound

import (
	"encoding/binary"

	"github.com/marrowmesh/marrow/ztunnel/internal/steer"
)

// The parts of a PROXY protocol header, version 2.
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21 // version 2, command PROXY
	proxyUnspec    = 0x00
	proxyTCP4      = 0x11
	proxyTCP6      = 0x21
	// proxyPeerID is the mesh's own field: the peer's SPIFFE ID as text.
	proxyPeerID = 0xD0
)

// proxyHeader tells the application who the client is and what it meant.
func proxyHeader(p *steer.ProxyHeader) []byte {
	var body []byte
	family := byte(proxyUnspec)
	src, dst := p.Src.Addr(), p.Dst.Addr()
	if src.Is4() == dst.Is4() {
		family = proxyTCP6
		if src.Is4() {
			family = proxyTCP4
		}
		body = append(body, src.AsSlice()...)
		body = append(body, dst.AsSlice()...)
		body = binary.BigEndian.AppendUint16(body, p.Src.Port())
		body = binary.BigEndian.AppendUint16(body, p.Dst.Port())
	}
	if id := p.Peer.String(); id != "" {
		body = append(body, proxyPeerID)
		body = binary.BigEndian.AppendUint16(body, uint16(len(id)))
		body = append(body, id...)
	}
	out := append([]byte(proxySignature), proxyCommand, family)
	out = binary.BigEndian.AppendUint16(out, uint16(len(body)))
	return append(out, body...)
}
