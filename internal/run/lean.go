package run

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// leanSlack is how much the heap may have grown without a collection.
const leanSlack = 4 << 20

// Lean gives memory back to the system that a burst has left behind, until
// ctx ends. The runtime alone collects when the heap has doubled or after two
// minutes, and a process that has nothing to do any more does not get there:
// what a thousand connections needed would stay for as long. It looks once per
// interval and does something only if collections have run since, or the heap
// has grown: an idle process is left alone.
func Lean(ctx context.Context, interval time.Duration) error {
	look := time.NewTicker(interval)
	defer look.Stop()
	last := heapNow()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		if now := heapNow(); now.cycles != last.cycles || now.objects > last.objects+leanSlack {
			debug.FreeOSMemory()
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
