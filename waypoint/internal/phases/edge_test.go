package phases

import (
	"net/netip"
	"testing"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/telemetry"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// TestTrustedClient: as many of X-Forwarded-For's last addresses are believed as there are trusted proxies, and who came
// around them is who is connected.
func TestTrustedClient(t *testing.T) {
	peer := netip.MustParseAddr("10.0.0.9")
	for _, c := range []struct {
		lists []string
		hops  int
		want  string
	}{
		{[]string{"1.2.3.4"}, 0, "10.0.0.9"},
		{nil, 1, "10.0.0.9"},
		{[]string{"1.2.3.4"}, 1, "1.2.3.4"},
		{[]string{"6.6.6.6, 1.2.3.4"}, 1, "1.2.3.4"},
		{[]string{"6.6.6.6", "1.2.3.4"}, 1, "1.2.3.4"},
		{[]string{"6.6.6.6,1.2.3.4 , 5.5.5.5"}, 2, "1.2.3.4"},
		{[]string{"1.2.3.4,unknown"}, 2, "1.2.3.4"},
		{[]string{"1.2.3.4,unknown"}, 1, "10.0.0.9"},
		{[]string{"1.2.3.4"}, 2, "10.0.0.9"},
		{[]string{"1.2.3.4:80"}, 1, "10.0.0.9"},
		{[]string{"1.2.3.4,"}, 1, "10.0.0.9"},
		{[]string{"::ffff:1.2.3.4"}, 1, "1.2.3.4"},
		{[]string{"2001:db8::1"}, 1, "2001:db8::1"},
	} {
		if got := trustedClient(c.lists, peer, c.hops); got.String() != c.want {
			t.Errorf("%q behind %d proxies: %v, want %s", c.lists, c.hops, got, c.want)
		}
	}
}

// TestGatewayIsTheSource: a gateway tells of itself as the source, by its identity only where the endpoint had one too.
func TestGatewayIsTheSource(t *testing.T) {
	own, err := identity.Parse("spiffe://td/ns/shop/sa/front")
	if err != nil {
		t.Fatal(err)
	}
	h := &Handler{cfg: Config{Self: upstream.Workload{Name: "front-istio", Namespace: "shop"}}}
	client := telemetry.Peer{Workload: upstream.Workload{Name: "load"}, Principal: "spiffe://td/ns/shop/sa/load"}
	meshed := telemetry.Peer{Principal: "spiffe://td/ns/shop/sa/web"}
	if by, src := h.reporting(&Session{Local: own}, client, meshed); by != telemetry.Waypoint || src != client {
		t.Errorf("a waypoint: %v %+v", by, src)
	}
	border := &Session{Local: own, Edge: &Edge{}}
	by, src := h.reporting(border, telemetry.Peer{}, meshed)
	if by != telemetry.Gateway || src.Workload.Name != "front-istio" || src.Principal != own.String() {
		t.Errorf("a gateway: %v %+v", by, src)
	}
	if _, src = h.reporting(border, telemetry.Peer{}, telemetry.Peer{}); src.Principal != "" {
		t.Errorf("outside of the mesh: %+v", src)
	}
}
