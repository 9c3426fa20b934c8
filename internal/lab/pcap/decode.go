package pcap

import (
	"encoding/binary"
	"net/netip"
)

// Protocol numbers of the IP header.
const (
	ProtoTCP = 6
	ProtoUDP = 17
)

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd

	flagSYN = 0x02
)

// Flow is one direction of a conversation. Other traffic than TCP and UDP has
// no ports; what is not IP is the zero Flow.
type Flow struct {
	Proto    uint8
	Src, Dst netip.AddrPort
}

// segment is what one packet says about its flow.
type segment struct {
	flow    Flow
	seq     uint32 // TCP
	syn     bool
	payload []byte
}

// decode finds flow and payload. It never fails: what it does not understand
// is payload of the layer it got to, so that nothing escapes a search.
func decode(frame []byte) segment {
	if len(frame) < 14 {
		return segment{payload: frame}
	}
	body := frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		return decodeIPv4(body)
	case etherIPv6:
		return decodeIPv6(body)
	default:
		return segment{payload: body}
	}
}

func decodeIPv4(b []byte) segment {
	if len(b) < 20 || b[0]>>4 != 4 {
		return segment{payload: b}
	}
	header := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	// Segmentation offload may leave zero; shorter frames are padded.
	if total == 0 || total > len(b) {
		total = len(b)
	}
	if header < 20 || header > total {
		return segment{payload: b}
	}
	src, _ := netip.AddrFromSlice(b[12:16])
	dst, _ := netip.AddrFromSlice(b[16:20])
	const fragmentOffset = 0x1fff
	later := binary.BigEndian.Uint16(b[6:])&fragmentOffset != 0
	return decodeTransport(b[9], src, dst, later, b[header:total])
}

func decodeIPv6(b []byte) segment {
	if len(b) < 40 || b[0]>>4 != 6 {
		return segment{payload: b}
	}
	src, _ := netip.AddrFromSlice(b[8:24])
	dst, _ := netip.AddrFromSlice(b[24:40])
	end := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if end == 40 || end > len(b) {
		end = len(b)
	}
	proto, rest, later := b[6], b[40:end], false
	for {
		size := 0
		switch proto {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(rest) >= 2 {
				size = (int(rest[1]) + 1) * 8
			}
		case 44: // fragment
			if len(rest) >= 8 {
				size = 8
				later = later || binary.BigEndian.Uint16(rest[2:])>>3 != 0
			}
		default:
			return decodeTransport(proto, src, dst, later, rest)
		}
		if size == 0 || size > len(rest) {
			return decodeTransport(proto, src, dst, true, rest)
		}
		proto, rest = rest[0], rest[size:]
	}
}

// decodeTransport reads TCP and UDP headers; later marks a fragment that does
// not hold one.
func decodeTransport(proto uint8, src, dst netip.Addr, later bool, b []byte) segment {
	s := segment{flow: Flow{Proto: proto, Src: netip.AddrPortFrom(src, 0), Dst: netip.AddrPortFrom(dst, 0)}, payload: b}
	switch {
	case later:
		// Told apart from the flow's own segments by the missing ports.
	case proto == ProtoTCP && len(b) >= 20:
		offset := int(b[12]>>4) * 4
		if offset < 20 || offset > len(b) {
			return s
		}
		s.seq, s.syn, s.payload = binary.BigEndian.Uint32(b[4:]), b[13]&flagSYN != 0, b[offset:]
		s.flow = s.flow.withPorts(b)
	case proto == ProtoUDP && len(b) >= 8:
		s.payload = b[8:]
		s.flow = s.flow.withPorts(b)
	}
	return s
}

func (f Flow) withPorts(header []byte) Flow {
	f.Src = netip.AddrPortFrom(f.Src.Addr(), binary.BigEndian.Uint16(header))
	f.Dst = netip.AddrPortFrom(f.Dst.Addr(), binary.BigEndian.Uint16(header[2:]))
	return f
}
