package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/obs"
)

// policySeries count what policies say that refuse nothing.
type policySeries struct{ audited, tried *prometheus.CounterVec }

func newPolicySeries(r prometheus.Registerer) policySeries {
	return policySeries{
		audited: obs.Counter(r, "marrow_authorization_audited_total", "Requests and connections that an AUDIT policy matched.", "policy"),
		tried:   obs.Counter(r, "marrow_authorization_dry_run_total", "What policies in dry-run would have said of requests and connections.", "policy", "result"),
	}
}

// Audited counts a match of an AUDIT policy.
func (t *Telemetry) Audited(policy string) { t.policies.audited.WithLabelValues(policy).Inc() }

// Tried counts what policies in dry-run would have said; policy is empty when none matched.
func (t *Telemetry) Tried(policy string, allowed bool) {
	result := "denied"
	if allowed {
		result = "allowed"
	}
	if policy == "" {
		policy = "none"
	}
	t.policies.tried.WithLabelValues(policy, result).Inc()
}
