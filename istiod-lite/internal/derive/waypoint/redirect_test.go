package waypoint

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networkingapi "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// TestRedirectPorts: a redirect names a port only where it is not the default of the scheme that it leads to, be it the
// redirect's own or the one by which the request came.
func TestRedirectPorts(t *testing.T) {
	plain, secure := Port{Number: 80}, Port{Number: 443, Encrypted: true}
	high, highTLS := Port{Number: 8080}, Port{Number: 8443, Encrypted: true}
	port := func(n int32) *gatewayv1.PortNumber { return new(n) }
	for _, c := range []struct {
		at     Port
		scheme string
		port   *gatewayv1.PortNumber
		want   uint32
	}{
		{plain, "https", port(443), 0},
		{plain, "https", port(8443), 8443},
		{plain, "https", port(80), 80},
		{plain, "https", nil, 0},
		{high, "https", nil, 0},
		{plain, "", port(80), 0},
		{plain, "", port(443), 443},
		{secure, "", port(443), 0},
		{secure, "", port(80), 80},
		{plain, "", nil, 0},
		{secure, "", nil, 0},
		{high, "", nil, 8080},
		{highTLS, "", nil, 8443},
		{highTLS, "http", port(80), 0},
	} {
		f := &gatewayv1.HTTPRequestRedirectFilter{Port: c.port}
		if c.scheme != "" {
			f.Scheme = &c.scheme
		}
		r := &routev3.Route{Match: everything()}
		if gatewayRedirect(f, c.at, r); r.GetRedirect().GetPortRedirect() != c.want {
			t.Errorf("HTTPRoute at %+v, to %q %v: port %d, want %d", c.at, c.scheme, c.port, r.GetRedirect().GetPortRedirect(), c.want)
		}
		if c.port == nil {
			continue
		}
		in := &networkingapi.HTTPRedirect{Scheme: c.scheme, RedirectPort: &networkingapi.HTTPRedirect_Port{Port: uint32(*c.port)}}
		if err := istioRedirect(in, c.at, r); err != nil || r.GetRedirect().GetPortRedirect() != c.want {
			t.Errorf("VirtualService at %+v, to %q %d: port %d, want %d, %v", c.at, c.scheme, *c.port, r.GetRedirect().GetPortRedirect(), c.want, err)
		}
	}
	derived := func(d networkingapi.HTTPRedirect_RedirectPortSelection, at Port) uint32 {
		r := &routev3.Route{Match: everything()}
		if err := istioRedirect(&networkingapi.HTTPRedirect{RedirectPort: &networkingapi.HTTPRedirect_DerivePort{DerivePort: d}}, at, r); err != nil {
			t.Error(err)
		}
		return r.GetRedirect().GetPortRedirect()
	}
	if a, b, c := derived(networkingapi.HTTPRedirect_FROM_REQUEST_PORT, high), derived(networkingapi.HTTPRedirect_FROM_PROTOCOL_DEFAULT, high),
		derived(networkingapi.HTTPRedirect_FROM_REQUEST_PORT, secure); a != 8080 || b != 0 || c != 0 {
		t.Errorf("derivePort: %d, %d, %d", a, b, c)
	}
}
