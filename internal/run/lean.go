package run

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// leanSlack is how much the heap may have grown without a collection.
const leanSlack = 4 << 20

// leanStart is when what only the start needed is given back.
const leanStart = time.Second

// Lean gives memory back to the system that the start and bursts have left
// behind, until ctx ends. The runtime alone collects when the heap has doubled
// or after two minutes, and a process that has nothing to do any more does not
// get there: what a thousand connections needed would stay for as long. It looks
// once per interval and does something only if collections have run since, or
// the heap has grown: an idle process is left alone (docs/adr/0011).
func Lean(ctx context.Context, interval time.Duration) error {
	return lean(ctx, interval, unmapProgram)
}

func lean(ctx context.Context, interval time.Duration, unmap func()) error {
	look := time.NewTimer(min(leanStart, interval))
	defer look.Stop()
	for last := (heap{}); ; look.Reset(interval) {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		if now := heapNow(); now.cycles != last.cycles || now.objects > last.objects+leanSlack {
			runtime.GC() // what pools hold survives one collection
			debug.FreeOSMemory()
			unmap()
			last = heapNow()
		}
	}
}

// heap is how much there is and how often it was collected.
type heap struct{ objects, cycles uint64 }

func heapNow() heap {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(s)
	return heap{objects: s[0].Value.Uint64(), cycles: s[1].Value.Uint64()}
}
