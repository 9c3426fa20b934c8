//go:build seam

package waypoint

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// TestSeam derives what integration/authzl7 and integration/rbacgoldens ask for: for each set of policies the filters of one service's chains.
func TestSeam(t *testing.T) {
	dir := os.Getenv("MARROW_SEAM")
	if dir == "" {
		t.Fatal("MARROW_SEAM is not set: integration/authzl7 runs this")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "worlds.json"))
	if err != nil {
		t.Fatal(err)
	}
	var worlds []struct {
		Namespace string                            `json:"namespace"` // of the service; empty = shop
		Policies  []*securityv1.AuthorizationPolicy `json:"policies"`
	}
	if err := json.Unmarshal(raw, &worlds); err != nil {
		t.Fatal(err)
	}
	type derived struct {
		HTTP [][]byte `json:"http"` // overrides of the RBAC filters, in their order
		TCP  [][]byte `json:"tcp"`  // network filters
	}
	var out []derived
	for _, w := range worlds {
		service := "web." + cmp.Or(w.Namespace, "shop")
		in := parseWorld(t, []byte("service "+service+" 10.96.0.1 80/http,9090/tcp"), nil)
		in.Policies = w.Policies
		r, _ := Derive(in)
		var d derived
		add := func(to *[][]byte, m proto.Message) {
			b, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			*to = append(*to, b)
		}
		for _, name := range filterNames() {
			add(&d.HTTP, r.Routes["inbound-vip|80|http|"+service+".svc.cluster.local"].GetVirtualHosts()[0].GetTypedPerFilterConfig()[name])
		}
		for _, c := range r.Listeners[MainInternal].GetFilterChains() {
			if c.GetName() != "inbound-vip|9090|tcp|"+service+".svc.cluster.local" {
				continue
			}
			for _, f := range c.GetFilters()[:len(c.GetFilters())-1] {
				add(&d.TCP, f)
			}
		}
		out = append(out, d)
	}
	if raw, err = json.Marshal(out); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "derived.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
}
