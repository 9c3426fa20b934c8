package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const webLimit = `
apiVersion: policy.marrow.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  service: {name: nowhere, port: 8081}
  rules: [{scope: global, limit: {requests: 1, per: 1s}}]
`

// TestRateLimitConditions: the policy's status says that it is accepted, and what it refers to in vain.
func TestRateLimitConditions(t *testing.T) {
	p := start(t)
	p.apply(t, web+"---"+webLimit)
	eventually(t, "the status has both conditions", func() bool {
		paths, _ := filepath.Glob(filepath.Join(p.store.Dir(), "*", "RateLimitPolicy", "shop", "web.yaml"))
		if len(paths) != 1 {
			return false
		}
		b, _ := os.ReadFile(paths[0])
		text := strings.Join(strings.Fields(string(b)), " ") // lines are folded
		return strings.Contains(text, "type: Accepted") && strings.Contains(text, "type: ResolvedRefs") &&
			strings.Contains(text, "Service shop/nowhere does not exist; until then requests pass uncounted")
	})
}
