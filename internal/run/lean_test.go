package run

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"
)

// held is what a burst takes from the system while it lasts.
func held() uint64 {
	burst := make([][]byte, 64)
	for i := range burst {
		burst[i] = make([]byte, 1<<20)
		burst[i][i] = 1
	}
	defer runtime.KeepAlive(burst)
	return holding()
}

func holding() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapSys - m.HeapReleased
}

func TestLeanGivesBack(t *testing.T) {
	most := held()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Lean(ctx, 20*time.Millisecond) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if holding()+32<<20 < most {
			return
		}
		more := make([]byte, 2*leanSlack) // what connections after the burst need
		runtime.KeepAlive(more)
		if time.Now().After(end) {
			t.Fatalf("%d MiB are held, %d MiB during the burst", holding()>>20, most>>20)
		}
	}
}

func TestLeanLeavesAnIdleProcessAlone(t *testing.T) {
	runtime.GC()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	first := heapNow().cycles
	if err := Lean(ctx, 5*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if n := heapNow().cycles - first; n > 3 { // the runtime may have its own reasons
		t.Errorf("%d collections in an idle process", n)
	}
}

// TestLeanEmptiesPools: what a pool holds is given back too, by a process that does nothing any more.
func TestLeanEmptiesPools(t *testing.T) {
	var pool sync.Pool
	pool.Put(new([64 << 20]byte))
	most := holding()
	ctx, cancel := context.WithCancel(t.Context())
	unmapped := make(chan struct{}, 100)
	ended := make(chan error, 1)
	go func() { ended <- lean(ctx, 20*time.Millisecond, func() { unmapped <- struct{}{} }) }()
	select {
	case <-unmapped: // at the start, after the collections
	case <-time.After(10 * time.Second):
		t.Error("the program's pages were not given back")
	}
	if now := holding(); now+48<<20 > most {
		t.Errorf("%d MiB are held, %d MiB with a pool's", now>>20, most>>20)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	runtime.KeepAlive(&pool)
}
