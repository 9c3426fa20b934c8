package run

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWidth plays a process that needs so many cores for so long.
func TestWidth(t *testing.T) {
	type phase struct {
		cores float64
		last  time.Duration
	}
	for name, tt := range map[string]struct {
		most   int
		phases []phase
		want   []int // the settings in their order
	}{
		"at rest":                   {8, []phase{{0, time.Minute}}, []int{1}},
		"half a core":               {8, []phase{{0.5, time.Minute}}, []int{1}},
		"a core and no more":        {8, []phase{{1, 10 * time.Second}}, []int{1, 2}},
		"all it gets":               {8, []phase{{100, 10 * time.Second}}, []int{1, 2, 4, 8}},
		"no more than allowed":      {3, []phase{{100, 10 * time.Second}}, []int{1, 2, 3}},
		"one is all":                {1, []phase{{100, 10 * time.Second}}, []int{1}},
		"nonsense is one":           {-4, []phase{{100, 10 * time.Second}}, []int{1}},
		"a burst":                   {4, []phase{{100, time.Second}, {0.01, 10 * time.Second}}, []int{1, 2, 4, 2, 1}},
		"a short rest":              {4, []phase{{100, time.Second}, {0, time.Second}, {3.5, time.Second}, {0, time.Second}, {3, time.Second}}, []int{1, 2, 4}},
		"half stays half":           {4, []phase{{100, time.Second}, {1.1, time.Minute}}, []int{1, 2, 4, 2}},
		"odd numbers keep the more": {3, []phase{{100, time.Second}, {0, 10 * time.Second}}, []int{1, 2, 3, 2, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []int
				start, used, cores := time.Now(), time.Duration(0), 0.0
				threads := 1
				run := func() time.Duration {
					passed := time.Since(start)
					start = time.Now()
					used += time.Duration(min(cores, float64(threads)) * float64(passed))
					return used
				}
				var phaseCores atomic.Value
				phaseCores.Store(tt.phases[0].cores)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					_ = widen(ctx, tt.most, func() time.Duration { cores = phaseCores.Load().(float64); return run() },
						func(n int) { threads = n; got = append(got, n) })
				}()
				for _, p := range tt.phases {
					phaseCores.Store(p.cores)
					time.Sleep(p.last)
				}
				cancel()
				<-done
				if !slices.Equal(got, tt.want) {
					t.Errorf("%v, want %v", got, tt.want)
				}
			})
		})
	}
}

// TestCPUTime: the account grows with the work.
func TestCPUTime(t *testing.T) {
	before := cpuTime()
	for end := time.Now().Add(10 * time.Second); cpuTime()-before < 20*time.Millisecond; {
		if time.Now().After(end) {
			t.Fatal("no CPU time was counted")
		}
	}
}
