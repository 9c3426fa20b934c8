package hbone

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// sink takes everything.
type sink struct{}

func (sink) TryWrite(p []byte) (int, error) { return len(p), nil }
func (sink) Write(p []byte) (int, error)    { return len(p), nil }

// TestIdleStreamIsSmall: what an idle tunnel costs at both ends together, one
// goroutine of its own included: the server's handler, which is where the
// application's socket is read.
func TestIdleStreamIsSmall(t *testing.T) {
	const conns, each, most = 20, 100, 12 << 10
	var clients []*Client
	headers := []Header{
		{Name: "baggage", Value: "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=a,service.name=a,service.version=v1"},
		{Name: "forwarded", Value: `for="10.0.0.1:43210"`},
		{Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"},
	}
	for range conns {
		cl, _ := tunnel(t, func(ctx context.Context, in *Incoming) {
			s, err := in.Accept(headers[:1])
			if err != nil {
				return
			}
			s.Deliver(sink{}, func(error) {})
			<-ctx.Done()
		})
		clients = append(clients, cl)
	}
	runtime.GC()
	memory := func() (heap, stack, goroutines int64) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc), int64(m.StackInuse), int64(runtime.NumGoroutine())
	}
	heap, stack, goroutines := memory()
	var open []*Stream
	for range each {
		for _, cl := range clients {
			s, _, err := cl.Connect(t.Context(), "10.0.0.2:8080", headers)
			if err != nil {
				t.Fatal(err)
			}
			s.Deliver(sink{}, func(error) {})
			open = append(open, s)
		}
	}
	time.Sleep(50 * time.Millisecond)
	heap2, stack2, goroutines2 := memory()
	heap, stack = (heap2-heap)/(conns*each), (stack2-stack)/(conns*each)
	per := float64(goroutines2-goroutines) / (conns * each)
	t.Logf("an idle stream costs %d bytes of heap, %d of stack and %.2f goroutines at both ends together", heap, stack, per)
	if heap+stack > most || per > 1.01 {
		t.Errorf("an idle stream costs %d bytes, at most %d, and %.2f goroutines, at most 1", heap+stack, most, per)
	}
	runtime.KeepAlive(open)
}
