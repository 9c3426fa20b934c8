package upstream

import (
	"fmt"
	"math"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Outlier takes endpoints out of rotation by what they answer.
type Outlier struct {
	Consecutive5xx     uint32 // 0 = off
	ConsecutiveGateway uint32 // 0 = off
	ConsecutiveLocal   uint32 // 0 = off; used when Split is set
	Split              bool
	Interval           time.Duration
	Base, Max          time.Duration
	MaxPercent         uint32
	AlwaysOne          bool // may go, whatever MaxPercent says
	Rate               Rate
	Failures           Rate
}

// Rate compares endpoints at the end of each interval.
type Rate struct {
	On       bool
	Hosts    uint32  // there have to be so many
	Requests uint32  // with so many requests each
	Limit    float64 // standard deviations below the mean, or percent of failures
}

// Result is how an attempt ended, as far as the endpoint's health goes.
type Result uint8

// The results.
const (
	Answered   Result = iota // with a status below 500
	ServerErr                // a 5xx other than a gateway's
	GatewayErr               // 502, 503 or 504
	LocalErr                 // no connection, a reset, a timeout
)

// ResultOf classifies an answer.
func ResultOf(status int) Result {
	switch {
	case status >= 502 && status <= 504:
		return GatewayErr
	case status >= 500:
		return ServerErr
	}
	return Answered
}

const (
	in5xx = iota
	inGateway
	inLocal
)

// tally counts results of one interval.
type tally struct{ total, good uint32 }

// sweep is when the counts were last compared.
type sweep struct {
	mu   sync.Mutex
	last time.Time
}

func compileOutlier(p *clusterv3.OutlierDetection) (*Outlier, error) {
	if p == nil {
		return nil, nil
	}
	if err := strict.Only(p, "consecutive_5xx", "consecutive_gateway_failure", "consecutive_local_origin_failure",
		"split_external_local_origin_errors", "interval", "base_ejection_time", "max_ejection_time", "max_ejection_percent",
		"enforcing_consecutive_5xx", "enforcing_consecutive_gateway_failure", "enforcing_consecutive_local_origin_failure",
		"enforcing_success_rate", "enforcing_local_origin_success_rate", "success_rate_minimum_hosts", "success_rate_request_volume",
		"success_rate_stdev_factor", "enforcing_failure_percentage", "enforcing_failure_percentage_local_origin",
		"failure_percentage_threshold", "failure_percentage_minimum_hosts", "failure_percentage_request_volume",
		"always_eject_one_host"); err != nil {
		return nil, err
	}
	value := func(v *wrapperspb.UInt32Value, def uint32) uint32 {
		if v == nil {
			return def
		}
		return v.GetValue()
	}
	var partly error
	enforced := func(field string, v *wrapperspb.UInt32Value, def uint32) bool {
		n := value(v, def)
		if n != 0 && n < 100 {
			partly = fmt.Errorf("%s: %d percent: %w", field, n, strict.ErrUnsupported)
		}
		return n > 0
	}
	count := func(v *wrapperspb.UInt32Value, on bool) uint32 {
		if !on {
			return 0
		}
		return value(v, 5)
	}
	o := &Outlier{
		Consecutive5xx:     count(p.GetConsecutive_5Xx(), enforced("enforcing_consecutive_5xx", p.GetEnforcingConsecutive_5Xx(), 100)),
		ConsecutiveGateway: count(p.GetConsecutiveGatewayFailure(), enforced("enforcing_consecutive_gateway_failure", p.GetEnforcingConsecutiveGatewayFailure(), 0)),
		ConsecutiveLocal:   count(p.GetConsecutiveLocalOriginFailure(), enforced("enforcing_consecutive_local_origin_failure", p.GetEnforcingConsecutiveLocalOriginFailure(), 100)),
		Split:              p.GetSplitExternalLocalOriginErrors(),
		Interval:           10 * time.Second, Base: 30 * time.Second, Max: 300 * time.Second, MaxPercent: value(p.GetMaxEjectionPercent(), 10),
		AlwaysOne: p.GetAlwaysEjectOneHost().GetValue(),
		Rate: Rate{
			On:    enforced("enforcing_success_rate", p.GetEnforcingSuccessRate(), 100),
			Hosts: value(p.GetSuccessRateMinimumHosts(), 5), Requests: value(p.GetSuccessRateRequestVolume(), 100),
			Limit: float64(value(p.GetSuccessRateStdevFactor(), 1900)) / 1000,
		},
		Failures: Rate{
			On:    enforced("enforcing_failure_percentage", p.GetEnforcingFailurePercentage(), 0),
			Hosts: value(p.GetFailurePercentageMinimumHosts(), 5), Requests: value(p.GetFailurePercentageRequestVolume(), 50),
			Limit: float64(value(p.GetFailurePercentageThreshold(), 85)),
		},
	}
	for at, d := range map[*time.Duration]time.Duration{
		&o.Interval: p.GetInterval().AsDuration(), &o.Base: p.GetBaseEjectionTime().AsDuration(), &o.Max: p.GetMaxEjectionTime().AsDuration(),
	} {
		if d > 0 {
			*at = d
		}
	}
	o.Max = max(o.Max, o.Base)
	return o, partly
}

// Report tells how an attempt on h ended and takes h out of rotation if that is one failure too many.
func (c *Cluster) Report(h *Host, r Result) {
	o := c.Config.Outlier
	if o == nil {
		return
	}
	now, st := c.store.now(), h.state
	st.mu.Lock()
	over := st.count(o, r)
	st.mu.Unlock()
	if over {
		c.eject(h, now)
	}
	if o.Rate.On || o.Failures.On {
		c.compare(now)
	}
}

// eject takes h out, unless too many are out already. It stays the longer the more often it went.
func (c *Cluster) eject(h *Host, now time.Time) {
	o := c.Config.Outlier
	if !c.mayEject(o, now) {
		return
	}
	st := h.state
	st.mu.Lock()
	defer st.mu.Unlock()
	if now.Before(st.ejected) {
		return
	}
	if peace := now.Sub(st.ejected) / o.Interval; !st.ejected.IsZero() {
		st.times -= uint32(min(int64(peace), int64(st.times)))
	}
	st.times++
	st.ejected = now.Add(min(o.Base*time.Duration(min(st.times, 1<<20)), o.Max))
	st.fails = [3]uint32{}
	c.stats.changes.Add(1)
}

// count updates the rows of failures and says whether one is full; the caller holds mu.
func (st *hostState) count(o *Outlier, r Result) bool {
	local := r == LocalErr && o.Split
	if !local { // what happens on our side says nothing of the endpoint's answers then
		st.tally.total++
		if r == Answered {
			st.tally.good++
		}
	}
	switch {
	case r == Answered:
		st.fails = [3]uint32{}
		return false
	case local:
		st.fails[inLocal]++
		return o.ConsecutiveLocal > 0 && st.fails[inLocal] >= o.ConsecutiveLocal
	}
	if o.Split {
		st.fails[inLocal] = 0 // there was a connection
	}
	st.fails[in5xx]++
	if r == ServerErr {
		st.fails[inGateway] = 0
	} else {
		st.fails[inGateway]++
	}
	return o.Consecutive5xx > 0 && st.fails[in5xx] >= o.Consecutive5xx ||
		o.ConsecutiveGateway > 0 && st.fails[inGateway] >= o.ConsecutiveGateway
}

// mayEject keeps the share of ejected hosts within the limit.
func (c *Cluster) mayEject(o *Outlier, now time.Time) bool {
	out := 0
	for _, h := range c.Hosts {
		if !h.EjectedUntil(now).IsZero() {
			out++
		}
	}
	return out == 0 && o.AlwaysOne || (out+1)*100 <= int(o.MaxPercent)*len(c.Hosts)
}

// compare looks, once in an interval, which hosts fail more than the others.
func (c *Cluster) compare(now time.Time) {
	o, s := c.Config.Outlier, &c.stats.sweep
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.IsZero() {
		s.last = now
	}
	if now.Sub(s.last) < o.Interval {
		return
	}
	s.last = now
	counts := make([]tally, len(c.Hosts))
	for i, h := range c.Hosts {
		h.state.mu.Lock()
		counts[i], h.state.tally = h.state.tally, tally{}
		h.state.mu.Unlock()
	}
	for i, bad := range outliers(o, counts) {
		if bad {
			c.eject(c.Hosts[i], now)
		}
	}
}

// outliers judges the counts of one interval.
func outliers(o *Outlier, counts []tally) []bool {
	out := make([]bool, len(counts))
	judge := func(r Rate, limit func(rates []float64) float64) {
		var rates []float64
		enough := func(t tally) bool { return t.total > 0 && t.total >= r.Requests }
		for _, t := range counts {
			if enough(t) {
				rates = append(rates, 100*float64(t.good)/float64(t.total))
			}
		}
		if !r.On || len(rates) == 0 || len(rates) < int(r.Hosts) {
			return
		}
		below := limit(rates)
		for i, t := range counts {
			if enough(t) && 100*float64(t.good)/float64(t.total) < below {
				out[i] = true
			}
		}
	}
	judge(o.Rate, func(rates []float64) float64 {
		mean, variance := 0.0, 0.0
		for _, r := range rates {
			mean += r / float64(len(rates))
		}
		for _, r := range rates {
			variance += (r - mean) * (r - mean) / float64(len(rates))
		}
		return mean - o.Rate.Limit*math.Sqrt(variance)
	})
	// A share of failures that reaches the threshold is too much.
	judge(o.Failures, func([]float64) float64 { return math.Nextafter(100-o.Failures.Limit, 101) })
	return out
}
