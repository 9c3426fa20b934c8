package quota

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/waypoint/internal/filters"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func draw(n uint64, every time.Duration) filters.Draw {
	return filters.Draw{Bucket: filters.Bucket{Max: n, Fill: n, Every: every}, Rule: 0}
}

func keyedDraw(key string, keep int) filters.Draw {
	d := draw(1, time.Minute)
	d.Key, d.Keep = key, keep
	return d
}

// passed is how many of n requests pass at this moment.
func passed(l *Local, n int, ds ...filters.Draw) (ok int) {
	for range n {
		if l.Take("a", ds).Allowed {
			ok++
		}
	}
	return ok
}

// TestWindows: what passes at once, and what has dripped in after some time, in every window.
func TestWindows(t *testing.T) {
	for _, window := range []time.Duration{time.Second, time.Minute, time.Hour, 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			l := NewLocal(time.Now)
			d := draw(10, window)
			if got := passed(l, 100, d); got != 10 {
				t.Errorf("%v: %d passed at once, want 10", window, got)
			}
			time.Sleep(window / 2)
			if got := passed(l, 100, d); got != 5 {
				t.Errorf("%v: %d passed after half the window, want 5", window, got)
			}
			time.Sleep(7 * window)
			if got := passed(l, 100, d); got != 10 {
				t.Errorf("%v: %d passed after a long time, want 10", window, got)
			}
			if out := l.Take("a", []filters.Draw{d}); out.Allowed || out.Max != 10 || out.Left != 0 || out.Next != window/10 {
				t.Errorf("%v: refusal %+v", window, out)
			}
		})
	}
}

// TestTakersAtOnce: however many ask at one moment, the bucket gives what it has.
func TestTakersAtOnce(t *testing.T) {
	now := time.Now()
	l := NewLocal(func() time.Time { return now })
	var ok atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 200 {
				if l.Take("a", []filters.Draw{draw(500, time.Hour)}).Allowed {
					ok.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if ok.Load() != 500 {
		t.Errorf("%d of 500 passed", ok.Load())
	}
}

// TestOneRefusesForAll: the first missing token refuses, and those after it are not taken.
func TestOneRefusesForAll(t *testing.T) {
	now := time.Now()
	l := NewLocal(func() time.Time { return now })
	slow, fast := draw(1, time.Hour), draw(10, time.Hour)
	fast.Rule = 1
	if got := passed(l, 5, slow, fast); got != 1 {
		t.Errorf("%d passed, want 1", got)
	}
	if out := l.Take("a", []filters.Draw{fast}); !out.Allowed || out.Left != 8 {
		t.Errorf("the second bucket lost tokens to refused requests: %+v", out)
	}
	slow.Shadow = true
	if out := l.Take("a", []filters.Draw{slow, fast}); !out.Allowed || out.At != 0 {
		t.Errorf("a bucket in the shadow refused: %+v", out)
	}
}

func TestKeysAreCountedApart(t *testing.T) {
	now := time.Now()
	l := NewLocal(func() time.Time { return now })
	for _, key := range []string{"a", "b", "c"} {
		if got := passed(l, 3, keyedDraw(key, 10)); got != 1 {
			t.Errorf("%s: %d passed", key, got)
		}
	}
	if out := l.Take("elsewhere", []filters.Draw{keyedDraw("a", 10)}); !out.Allowed {
		t.Error("two places share a bucket")
	}
}

// TestSprayingIsBounded: a client that names a new key with each request fills a fixed room, whatever the keys' length, and does not
// push out one that is in use.
func TestSprayingIsBounded(t *testing.T) {
	now := time.Now()
	l := NewLocal(func() time.Time { return now })
	victim := keyedDraw("victim", 100)
	l.Take("a", []filters.Draw{victim})
	for i := range 50_000 {
		l.Take("a", []filters.Draw{keyedDraw(fmt.Sprint(i, strings.Repeat("x", 100)), 100)})
		if i%50 == 0 && l.Take("a", []filters.Draw{victim}).Allowed {
			t.Fatal("a key in use was forgotten, and may go on")
		}
	}
	k := l.limiters["a"].keyed[0]
	if len(k.by) != 100 || k.order.Len() != 100 {
		t.Errorf("%d keys in %d places, want 100", len(k.by), k.order.Len())
	}
}

// TestBucketsOutliveConfiguration: buckets belong to what the configuration says, not to the message that said it.
func TestBucketsOutliveConfiguration(t *testing.T) {
	now := time.Now()
	l := NewLocal(func() time.Time { return now })
	if got := passed(l, 5, draw(3, time.Hour)); got != 3 {
		t.Fatalf("%d passed", got)
	}
	if got := passed(l, 5, draw(3, time.Hour)); got != 0 {
		t.Errorf("%d more passed after the same was said again", got)
	}
}

// TestUnusedAreForgotten: limiters of configurations that are gone go too, once a new one would be the same.
func TestUnusedAreForgotten(t *testing.T) {
	now := time.Now()
	l := NewLocal(func() time.Time { return now })
	for i := range 3 * sweepFrom {
		l.Take(fmt.Sprint(i), []filters.Draw{draw(1, time.Second)})
		now = now.Add(100 * time.Millisecond)
	}
	if n := len(l.limiters); n > 2*sweepFrom {
		t.Errorf("%d limiters are kept", n)
	}
	busy := draw(1, 1000*time.Hour)
	l.Take("busy", []filters.Draw{busy})
	for i := range 3 * sweepFrom {
		l.Take(fmt.Sprint("later", i), []filters.Draw{draw(1, time.Second)})
		now = now.Add(100 * time.Millisecond)
	}
	if l.Take("busy", []filters.Draw{busy}).Allowed {
		t.Error("an empty bucket was forgotten")
	}
}

func BenchmarkTake(b *testing.B) {
	l := NewLocal(time.Now)
	ds := []filters.Draw{keyedDraw("spiffe://td/ns/shop/sa/client", 1000)}
	b.ReportAllocs()
	for b.Loop() {
		l.Take("a", ds)
	}
}
