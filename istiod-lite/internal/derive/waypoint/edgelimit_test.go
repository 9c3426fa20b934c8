package waypoint

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/policy"
)

// TestEdgeLimits: a gateway at the border counts for policies of its own and of the routes that are bound to it, not for those
// of Services; nobody there has an identity, so that all share what one would have.
func TestEdgeLimits(t *testing.T) {
	limit := func(name, kind, target string, key policy.KeyType) *policy.RateLimitPolicy {
		group := gatewayv1.GroupName
		if kind == "Service" {
			group = ""
		}
		return &policy.RateLimitPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec: policy.RateLimitPolicySpec{
				TargetRefs: []policy.TargetRef{{Group: group, Kind: kind, Name: target}},
				Rules:      []policy.RateLimitRule{{Key: &policy.RateLimitKey{Type: key}, Limit: policy.RateLimit{Requests: 2, Per: policy.PerHour}}},
			},
		}
	}
	in := edgeInput(t)
	in.RateLimits = []*policy.RateLimitPolicy{
		limit("front", "Gateway", "front", policy.KeyIdentity), limit("shop", "HTTPRoute", "shop", policy.KeySourceIP),
		limit("lost", "HTTPRoute", "nowhere", policy.KeyNone), limit("web", "Service", "web", policy.KeyNone), limit("other", "Gateway", "other", policy.KeyNone),
	}
	r, _ := Derive(in)
	text := asYAML(t, r.Routes["https.443.a"])
	for want, n := range map[string]int{
		"shop/front/0": 2 * 3, // descriptor and action, in three virtual hosts
		"shop/shop/0":  2 * 3, "key: remote_address": 3, "descriptorKey: identity": 0, "shop/lost/0": 0, "shop/web/0": 0, "shop/other/0": 0,
		routeSpace + ":": 2, // marks on the routes of the HTTPRoute
	} {
		if got := strings.Count(text, want); got != n {
			t.Errorf("%q stands there %d times, want %d:\n%s", want, got, n, text)
		}
	}
	if m := asYAML(t, r.Listeners["0.0.0.0_8443"]); !strings.Contains(m, limitFilter+".local") {
		t.Errorf("no filter counts:\n%s", m)
	}
}
