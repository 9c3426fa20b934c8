package run

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	usualPercent = 100
	mostPercent  = 1600
	collectLook  = time.Second
)

// Collect lets at least so many bytes be allocated between two garbage
// collections, until ctx ends. The runtime collects when the heap has doubled:
// a program whose state is small and which allocates for every request marks the
// same few megabytes dozens of times a second. Where the heap is larger than
// least nothing changes. An operator's own GOGC stands.
func Collect(ctx context.Context, least uint64) error {
	if old := debug.SetGCPercent(usualPercent); old != usualPercent {
		debug.SetGCPercent(old)
		<-ctx.Done()
		return nil
	}
	defer debug.SetGCPercent(usualPercent)
	look := time.NewTicker(collectLook)
	defer look.Stop()
	for now := usualPercent; ; {
		want := percent(least, liveHeap())
		if 4*max(want-now, now-want) > now { // setting it stops the world for a moment
			now = want
			debug.SetGCPercent(now)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
	}
}

// percent is GOGC such that least bytes of garbage may come upon live ones.
func percent(least, live uint64) int {
	const small = 1 << 20 // what is live before the first collection is not known
	return int(min(max(least*100/max(live, small), usualPercent), mostPercent))
}

// liveHeap is what the last collection found in use.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
