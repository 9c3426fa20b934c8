package run

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestPercent(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		least, live uint64
		want        int
	}{{24 * mb, 6 * mb, 400}, {24 * mb, 24 * mb, 100}, {24 * mb, 500 * mb, 100}, {24 * mb, 0, 1600}, {0, mb, 100}} {
		if got := percent(c.least, c.live); got != c.want {
			t.Errorf("%d of %d: %d, want %d", c.least, c.live, got, c.want)
		}
	}
}

func collections() uint64 {
	s := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

func gogc() uint64 {
	s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

var kept []byte // so that the compiler does not leave the allocation out

// TestCollect: garbage of a small program is collected less often, and as ever afterwards.
func TestCollect(t *testing.T) {
	churn := func() uint64 {
		runtime.GC()
		before := collections()
		for range 1024 {
			kept = make([]byte, 64<<10)
		}
		return collections() - before
	}
	usual := churn()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	runtime.GC()
	go func() { done <- Collect(ctx, 256<<20) }()
	for gogc() <= usualPercent { // until it has looked
		runtime.Gosched()
	}
	if seldom := churn(); 4*seldom > usual {
		t.Errorf("%d collections, %d without", seldom, usual)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if p := gogc(); p != usualPercent {
		t.Errorf("GOGC is %d afterwards", p)
	}
}

// TestOperatorsGOGC: what was set stands.
func TestOperatorsGOGC(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(77))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Collect(ctx, 1<<30); err != nil {
		t.Error(err)
	}
	if p := gogc(); p != 77 {
		t.Errorf("GOGC is %d", p)
	}
}
