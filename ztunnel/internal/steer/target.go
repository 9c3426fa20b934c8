package steer

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Target is the destination that a CONNECT asks for: an address, or a host name.
type Target struct {
	// Addr is invalid for a host name.
	Addr netip.Addr
	// Host is empty for an address.
	Host string
	Port uint16
}

// ParseTarget reads an :authority. Host and port are both required.
func ParseTarget(authority string) (Target, error) {
	host, portText, err := net.SplitHostPort(authority)
	if err != nil {
		return Target{}, fmt.Errorf("authority %q: want ip:port, [ipv6]:port or hostname:port: %w", authority, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 || portText[0] == '+' {
		return Target{}, fmt.Errorf("authority %q: port %q is not a number from 1 to 65535", authority, portText)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" {
			return Target{}, fmt.Errorf("authority %q: an address with a zone cannot be a destination", authority)
		}
		return Target{Addr: ip, Port: uint16(port)}, nil
	}
	if !validHost(host) {
		return Target{}, fmt.Errorf("authority %q: %q is neither an address nor a host name", authority, host)
	}
	return Target{Host: strings.ToLower(host), Port: uint16(port)}, nil
}

// validHost accepts the characters of service host names; it is no check of DNS's length rules beyond the total.
func validHost(host string) bool {
	if host == "" || len(host) > 255 {
		return false
	}
	for i := range len(host) {
		c := host[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '*':
		default:
			return false
		}
	}
	return true
}

func (t Target) String() string {
	if t.Host != "" {
		return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
	}
	return netip.AddrPortFrom(t.Addr, t.Port).String()
}
