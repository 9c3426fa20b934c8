package upstream

import (
	"errors"
	"slices"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

func out(c *Cluster, now time.Time) (n int) {
	for _, h := range c.Hosts {
		if !h.EjectedUntil(now).IsZero() {
			n++
		}
	}
	return n
}

func TestMaxEjectionPercent(t *testing.T) {
	for _, tc := range []struct {
		percent uint32
		one     bool
		hosts   int
		want    int
	}{{10, false, 5, 0}, {10, true, 5, 1}, {50, false, 4, 2}, {100, false, 3, 3}, {0, true, 3, 1}, {0, false, 3, 0}} {
		s := newAt()
		c := clusterOf(s, func(c *Config) {
			c.Outlier = &Outlier{Consecutive5xx: 1, Interval: time.Second, Base: time.Minute, Max: time.Hour, MaxPercent: tc.percent, AlwaysOne: tc.one}
		}, list("c", tc.hosts))
		for _, h := range c.Hosts {
			c.Report(h, ServerErr)
		}
		if got := out(c, s.now); got != tc.want {
			t.Errorf("%d %% of %d: %d are out, want %d", tc.percent, tc.hosts, got, tc.want)
		}
	}
}

func TestEjectionGrowsAndIsForgotten(t *testing.T) {
	s := newAt()
	c := clusterOf(s, func(c *Config) {
		c.Outlier = &Outlier{Consecutive5xx: 1, Interval: 10 * time.Second, Base: 30 * time.Second, Max: 80 * time.Second, MaxPercent: 100}
	}, list("c", 2))
	h := c.Hosts[0]
	fail := func() time.Duration {
		c.Report(h, ServerErr)
		return h.EjectedUntil(s.now).Sub(s.now)
	}
	for _, want := range []time.Duration{30 * time.Second, 60 * time.Second, 80 * time.Second} {
		if got := fail(); got != want {
			t.Fatalf("out for %v, want %v", got, want)
		}
		s.now = s.now.Add(want)
	}
	s.now = s.now.Add(25 * time.Second) // two intervals in peace: three times are one
	if got := fail(); got != 60*time.Second {
		t.Errorf("out for %v after some peace", got)
	}
	s.now = s.now.Add(time.Hour)
	if got := fail(); got != 30*time.Second {
		t.Errorf("out for %v after long peace", got)
	}
}

func TestCountersOfFailures(t *testing.T) {
	on := func(f func(*Outlier)) *Outlier {
		o := &Outlier{Interval: time.Second, Base: time.Minute, Max: time.Hour, MaxPercent: 100}
		f(o)
		return o
	}
	for name, tc := range map[string]struct {
		o    *Outlier
		in   []Result
		want bool
	}{
		"5xx":                       {on(func(o *Outlier) { o.Consecutive5xx = 3 }), []Result{ServerErr, GatewayErr, ServerErr}, true},
		"5xx not in a row":          {on(func(o *Outlier) { o.Consecutive5xx = 3 }), []Result{ServerErr, ServerErr, Answered, ServerErr}, false},
		"gateway":                   {on(func(o *Outlier) { o.ConsecutiveGateway = 2 }), []Result{GatewayErr, GatewayErr}, true},
		"500 is no gateway's":       {on(func(o *Outlier) { o.ConsecutiveGateway = 2 }), []Result{GatewayErr, ServerErr, GatewayErr}, false},
		"local counts as 5xx":       {on(func(o *Outlier) { o.Consecutive5xx = 2 }), []Result{LocalErr, LocalErr}, true},
		"local counts as gateway":   {on(func(o *Outlier) { o.ConsecutiveGateway = 2 }), []Result{LocalErr, GatewayErr}, true},
		"split: local":              {on(func(o *Outlier) { o.Split, o.ConsecutiveLocal, o.Consecutive5xx = true, 2, 9 }), []Result{LocalErr, LocalErr}, true},
		"split: local is no 5xx":    {on(func(o *Outlier) { o.Split, o.Consecutive5xx = true, 2 }), []Result{LocalErr, LocalErr, LocalErr}, false},
		"split: an answer connects": {on(func(o *Outlier) { o.Split, o.ConsecutiveLocal = true, 2 }), []Result{LocalErr, ServerErr, LocalErr}, false},
		"nothing is on":             {on(func(*Outlier) {}), []Result{ServerErr, ServerErr, ServerErr, ServerErr, ServerErr, ServerErr}, false},
	} {
		s := newAt()
		c := clusterOf(s, func(c *Config) { c.Outlier = tc.o }, list("c", 2))
		for _, r := range tc.in {
			c.Report(c.Hosts[0], r)
		}
		if got := out(c, s.now) == 1; got != tc.want {
			t.Errorf("%s: ejected %v, want %v", name, got, tc.want)
		}
	}
}

func TestComparedRates(t *testing.T) {
	counts := []tally{{100, 100}, {100, 99}, {100, 98}, {100, 100}, {100, 40}, {10, 0}}
	o := &Outlier{Rate: Rate{On: true, Hosts: 5, Requests: 100, Limit: 1.9}}
	if got := outliers(o, counts); !slices.Equal(got, []bool{false, false, false, false, true, false}) {
		t.Errorf("success rate: %v", got)
	}
	o.Rate.Hosts = 6
	if got := outliers(o, counts); slices.Contains(got, true) {
		t.Errorf("too few hosts: %v", got)
	}
	o = &Outlier{Failures: Rate{On: true, Hosts: 1, Requests: 100, Limit: 60}}
	if got := outliers(o, counts); !slices.Equal(got, []bool{false, false, false, false, true, false}) {
		t.Errorf("failure percentage: %v", got)
	}
	o.Failures.Limit = 61
	if got := outliers(o, counts); slices.Contains(got, true) {
		t.Errorf("below the threshold: %v", got)
	}
}

func TestRatesAreComparedOnceInAnInterval(t *testing.T) {
	s := newAt()
	c := clusterOf(s, func(c *Config) {
		c.Outlier = &Outlier{
			Interval: 10 * time.Second, Base: time.Minute, Max: time.Hour, MaxPercent: 50,
			Failures: Rate{On: true, Hosts: 2, Requests: 5, Limit: 50},
		}
	}, list("c", 3))
	for range 6 {
		c.Report(c.Hosts[0], Answered)
		c.Report(c.Hosts[1], Answered)
		c.Report(c.Hosts[2], ServerErr)
	}
	if out(c, s.now) != 0 {
		t.Error("judged before the interval was over")
	}
	s.now = s.now.Add(10 * time.Second)
	c.Report(c.Hosts[0], Answered)
	if c.Hosts[2].EjectedUntil(s.now).IsZero() || out(c, s.now) != 1 {
		t.Error("the failing host is still in rotation")
	}
}

func TestOutlierDefaultsAndRefusals(t *testing.T) {
	o, err := compileOutlier(&clusterv3.OutlierDetection{})
	if err != nil || o.Consecutive5xx != 5 || o.ConsecutiveGateway != 0 || !o.Rate.On || o.Failures.On || o.MaxPercent != 10 || o.Base != 30*time.Second {
		t.Errorf("got %+v, %v", o, err)
	}
	for _, p := range []*clusterv3.OutlierDetection{
		{EnforcingConsecutive_5Xx: wrapperspb.UInt32(50)},
		{SuccessfulActiveHealthCheckUnejectHost: wrapperspb.Bool(true)},
	} {
		if _, err := compileOutlier(p); !errors.Is(err, strict.ErrUnsupported) {
			t.Errorf("%v: got %v", p, err)
		}
	}
}
