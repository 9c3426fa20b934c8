//go:build lab

package rbacgoldens

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/marrowmesh/marrow/internal/testkit/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

// differs says why a set has another verdict on purpose, or cannot be compared; empty = it has to be the same.
func differs(name string) string {
	switch {
	case strings.Contains(name, " experimental.envoy.filters"):
		return "what other filters of Envoy note down is no key of ours: a rule with it is refused, and reported"
	case strings.Contains(name, " connection.sni"):
		return "TLS of a request ends at the client's node proxy, a waypoint sees no server name of it; connections are compared"
	}
	return ""
}

// TestVerdictsEqualIstio: our waypoint, with the policies, says what Envoy says with the filters that Istio makes of them.
func TestVerdictsEqualIstio(t *testing.T) {
	dir := testdata(t)
	nstest.Need(t)
	everywhere(t)
	sets, streams := load(t, dir)
	at := t.TempDir()
	raw, err := json.Marshal(sets)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "worlds.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	envoy := startEnvoy(t, sets, streams)
	for _, room := range []string{"./istiod-lite/internal/derive/waypoint", "./waypoint/internal/filters"} {
		if err := seam(t.Context(), at, room); err != nil {
			t.Fatal(err)
		}
	}
	if raw, err = os.ReadFile(filepath.Join(at, "verdicts.json")); err != nil {
		t.Fatal(err)
	}
	var verdicts [][]bool
	if err := json.Unmarshal(raw, &verdicts); err != nil || len(verdicts) != len(sets) {
		t.Fatalf("%d verdicts, %v", len(verdicts), err)
	}
	var allowed, denied, opaque, different, apart int
	for i, set := range sets {
		for k, q := range set.Requests {
			want, err := envoy.asks(i, q)
			if err != nil {
				t.Fatalf("%s: %v: %+v", set.name, err, q)
			}
			if differs(set.name) != "" {
				apart++
				continue
			}
			if q.TCP {
				opaque++
			}
			if want {
				allowed++
			} else {
				denied++
			}
			if got := verdicts[i][k]; got != want {
				if different++; different <= 20 {
					t.Errorf("%s: allowed is %v, Istio's filter says %v: %+v", set.name, got, want, q)
				}
			}
		}
	}
	fmt.Printf("rbacgoldens: %d goldens, %d sets, %d verdicts (%d of connections): %d allowed, %d denied; %d different; %d not compared\n",
		len(goldens()), len(sets), allowed+denied, opaque, allowed, denied, different, apart)
	if total := allowed + denied; total < 1000 || allowed*10 < total || denied*10 < total || opaque < 50 {
		t.Errorf("the verdicts say little")
	}
}

// load reads the goldens, cuts them, and thinks of requests.
func load(t *testing.T, dir string) (sets []*judged, streams map[netip.Addr]*listenerv3.Filter) {
	t.Helper()
	streams = map[netip.Addr]*listenerv3.Filter{}
	next := netip.MustParseAddr("127.1.0.1")
	for _, g := range goldens() {
		list := policies(t, filepath.Join(dir, g.in))
		http, tcp := g.filters(t, dir)
		whole := &judged{name: g.name, Policies: list, filters: http}
		if tcp != nil {
			streams[next] = tcp
			whole.Requests = requests(list, true, next, 60)
			next = next.Next()
			sets = append(sets, whole)
			continue
		}
		whole.Requests = requests(list, false, netip.Addr{}, 60)
		sets = append(sets, whole)
		if len(http) == 1 && !strings.Contains(g.name, "dry-run") {
			for _, one := range cut(t, g, list, http[0]) {
				one.Requests = requests(one.Policies, false, netip.Addr{}, 0)
				sets = append(sets, one)
			}
		}
	}
	for _, s := range sets {
		s.Namespace = "foo"
	}
	return sets, streams
}

// everywhere makes every address one of this machine, so that clients may have any and servers listen at any.
func everywhere(t *testing.T) {
	t.Helper()
	for _, half := range []string{"0.0.0.0/1", "128.0.0.0/1"} {
		if out, err := exec.CommandContext(t.Context(), "ip", "route", "add", "local", half, "dev", "lo").CombinedOutput(); err != nil {
			t.Fatalf("ip route add local %s: %v: %s", half, err, out)
		}
	}
}
