package jwks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Outside is how a host outside the mesh is reached.
type Outside struct {
	Host    string
	Port    uint16
	TLS     bool
	Timeout time.Duration // to connect

	Roots *x509.CertPool         // nil = the system's
	Allow func(netip.Addr) error // nil = Forbidden
}

// RoundTrip implements http.RoundTripper: a connection of its own for each request, to the configured host whatever the URL says.
func (o Outside) RoundTrip(req *http.Request) (*http.Response, error) {
	d := &net.Dialer{Timeout: o.Timeout, Control: o.control}
	addr := net.JoinHostPort(o.Host, strconv.Itoa(int(o.Port)))
	t := &http.Transport{
		DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.Host, RootCAs: o.Roots},
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) },
	}
	if (req.URL.Scheme == "https") != o.TLS {
		return nil, fmt.Errorf("key source %s: its cluster speaks TLS: %v", req.URL, o.TLS)
	}
	return t.RoundTrip(req)
}

// control judges the address that a name led to, after it was resolved and before anything is sent there.
func (o Outside) control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	if o.Allow != nil {
		return o.Allow(ap.Addr())
	}
	return Forbidden(ap.Addr())
}

// Forbidden refuses addresses at which something answers that is none of an issuer's business: this machine itself, its links, and
// where clouds tell machines their secrets.
func Forbidden(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	if v4, ok := embedded(a); ok {
		if err := Forbidden(v4); err != nil {
			return err
		}
	}
	clouds := []netip.Addr{
		netip.AddrFrom4([4]byte{169, 254, 169, 254}), netip.AddrFrom4([4]byte{100, 100, 100, 200}), netip.AddrFrom4([4]byte{168, 63, 129, 16}),
		netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd20:ce::254"),
	}
	switch {
	case !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.Is4() && a.As4()[0] == 0,
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255}), slices.Contains(clouds, a):
		return fmt.Errorf("keys are not fetched from %s: the address is this machine's own, a link's or a metadata service's", a)
	}
	return nil
}

// embedded is the IPv4 address that an IPv6 address of a translator (NAT64, 6to4, compatible) leads to.
func embedded(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case netip.MustParsePrefix("::/96").Contains(a) && !a.IsUnspecified() && !a.IsLoopback():
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case netip.MustParsePrefix("2002::/16").Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}
