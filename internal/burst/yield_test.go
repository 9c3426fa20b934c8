package burst

import (
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
)

// TestYieldAsksThePoller: on one thread, one goroutine is always busy and another waits for a socket.
func TestYieldAsksThePoller(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	a, b := tcppair.New(t)
	var woken atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1)
		for {
			if _, err := b.Read(buf); err != nil {
				return
			}
			woken.Add(1)
		}
	}()
	runtime.Gosched() // it waits now
	for i := range int32(50) {
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		turns := 0
		for woken.Load() <= i && turns < 1000 {
			Yield()
			turns++
		}
		if turns > 3 {
			t.Fatalf("message %d was read after %d turns", i, turns)
		}
	}
	_ = b.Close()
	<-done
}

// TestFeederYields: a Feeder with megabytes before it does not keep a neighbour waiting for the last of them.
func TestFeederYields(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	src, sink := tcppair.New(t)
	a, b := tcppair.New(t)
	_ = src.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	full := 0 // what the kernel holds, and passes on as it is read
	for err := error(nil); err == nil; {
		var n int
		n, err = src.Write(make([]byte, 1<<20))
		full += n
	}
	if full < 16*YieldAfter {
		t.Fatalf("the kernel holds %d bytes only", full)
	}
	_ = src.CloseWrite()
	waited := make(chan int, 1)
	var shown atomic.Int64
	go func() {
		_, _ = b.Read(make([]byte, 1))
		waited <- int(shown.Load())
	}()
	runtime.Gosched() // it waits now
	if _, err := a.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = Feed(sink, func(_ *Slab, n int) (int, error) {
		shown.Add(int64(n))
		return n, nil
	})
	if w := <-waited; w > 8*YieldAfter {
		t.Errorf("the neighbour ran after %d of %d bytes", w, shown.Load())
	}
}

// TestYieldersGo: no descriptor stays when nobody yields any more.
func TestYieldersGo(t *testing.T) {
	Yield()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, e := range all {
			if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.Contains(to, "eventfd") {
				n++
			}
		}
		// The runtime's own poller has one.
		if n <= 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d eventfds are open", n)
		}
	}
}

func BenchmarkYield(b *testing.B) {
	for b.Loop() {
		Yield()
	}
}
