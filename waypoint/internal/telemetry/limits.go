package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/obs"
)

// Verdict is what became of a request at a rate limit.
type Verdict string

// The verdicts.
const (
	LimitOK       Verdict = "ok"
	LimitOver     Verdict = "over_limit" // refused
	LimitObserved Verdict = "observed"   // over the limit, and let through
	LimitError    Verdict = "error"      // nobody could say, and let through
	LimitDenied   Verdict = "denied"     // nobody could say, and refused
)

func limitSeries(r prometheus.Registerer) *prometheus.CounterVec {
	return obs.Counter(r, "waypoint_ratelimit_requests_total", "Requests judged by a rate limit.", "filter", "limit", "verdict")
}

// Limited counts a request that a rate limit judged. Filter and limit are names from the configuration, never from a client.
func (t *Telemetry) Limited(filter, limit string, v Verdict) {
	t.limits.WithLabelValues(filter, limit, string(v)).Inc()
}
