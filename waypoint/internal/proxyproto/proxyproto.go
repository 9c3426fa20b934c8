package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Limit is how many bytes a header may have. TLVs are skipped; nobody sends more of them.
const Limit = 4096

// ErrShort asks for more bytes.
var ErrShort = errors.New("the PROXY header is not whole yet")

// Header is what a load balancer said.
type Header struct {
	// Local says that the load balancer speaks for itself: the socket's addresses count.
	Local               bool
	Source, Destination netip.AddrPort
	Size                int // of the header
}

const (
	signature2 = "\r\n\r\n\x00\r\nQUIT\n"
	prefix1    = "PROXY "
	longest1   = 107
	fixed2     = 16
)

// Parse reads a header from the bytes that came so far.
func Parse(b []byte) (Header, error) {
	if len(b) == 0 {
		return Header{}, ErrShort
	}
	switch b[0] {
	case prefix1[0]:
		return version1(b)
	case signature2[0]:
		return version2(b)
	}
	return Header{}, fmt.Errorf("the connection begins with %#x and not with a PROXY header", b[0])
}

func version1(b []byte) (Header, error) {
	n := min(len(b), len(prefix1))
	if string(b[:n]) != prefix1[:n] {
		return Header{}, fmt.Errorf("the connection begins with %q and not with a PROXY header", b[:n])
	}
	line, _, whole := bytes.Cut(b[:min(len(b), longest1)], []byte("\r\n"))
	if !whole {
		if len(b) >= longest1 {
			return Header{}, fmt.Errorf("the PROXY header has no end within %d bytes", longest1)
		}
		return Header{}, ErrShort
	}
	h := Header{Size: len(line) + 2}
	f := strings.Split(string(line), " ")
	if len(f) >= 2 && f[1] == "UNKNOWN" {
		h.Local = true
		return h, nil
	}
	if len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6" {
		return Header{}, fmt.Errorf("PROXY header %q: want PROXY, TCP4 or TCP6, two addresses and two ports", line)
	}
	var err error
	if h.Source, err = address(f[2], f[4], f[1] == "TCP4"); err != nil {
		return Header{}, fmt.Errorf("PROXY header: source: %w", err)
	}
	if h.Destination, err = address(f[3], f[5], f[1] == "TCP4"); err != nil {
		return Header{}, fmt.Errorf("PROXY header: destination: %w", err)
	}
	return h, nil
}

func address(ip, port string, four bool) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(ip)
	if err != nil || a.Is4() != four || a.Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("address %q does not fit", ip)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || port != strconv.FormatUint(n, 10) {
		return netip.AddrPort{}, fmt.Errorf("port %q does not fit", port)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

func version2(b []byte) (Header, error) {
	n := min(len(b), len(signature2))
	if string(b[:n]) != signature2[:n] {
		return Header{}, errors.New("the connection does not begin with a PROXY header")
	}
	if len(b) < fixed2 {
		if len(b) > 12 && b[12]>>4 != 2 {
			return Header{}, fmt.Errorf("PROXY header of version %d", b[12]>>4)
		}
		return Header{}, ErrShort
	}
	command, family := b[12], b[13]
	size := fixed2 + int(binary.BigEndian.Uint16(b[14:]))
	switch {
	case command>>4 != 2:
		return Header{}, fmt.Errorf("PROXY header of version %d", command>>4)
	case command&15 > 1:
		return Header{}, fmt.Errorf("PROXY header with command %d", command&15)
	case size > Limit:
		return Header{}, fmt.Errorf("PROXY header of %d bytes, more than %d", size, Limit)
	case len(b) < size:
		return Header{}, ErrShort
	}
	h := Header{Size: size, Local: command&15 == 0}
	if h.Local {
		return h, nil
	}
	body := b[fixed2:size]
	length := map[byte]int{0x11: 4, 0x21: 16}[family]
	switch {
	case family == 0 || family&15 == 0:
		h.Local = true // says that it does not know
		return h, nil
	case length == 0:
		return Header{}, fmt.Errorf("PROXY header with address family %#x; want TCP over IPv4 or IPv6", family)
	case len(body) < 2*length+4:
		return Header{}, fmt.Errorf("PROXY header of family %#x with %d bytes of addresses", family, len(body))
	}
	source, _ := netip.AddrFromSlice(body[:length])
	destination, _ := netip.AddrFromSlice(body[length : 2*length])
	h.Source = netip.AddrPortFrom(source.Unmap(), binary.BigEndian.Uint16(body[2*length:]))
	h.Destination = netip.AddrPortFrom(destination.Unmap(), binary.BigEndian.Uint16(body[2*length+2:]))
	return h, nil
}
