package hbone

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/marrowmesh/marrow/internal/h2"
)

func BenchmarkBulk(b *testing.B) {
	cl, _ := tunnel(b, func(_ context.Context, in *Incoming) {
		if s, err := in.Accept(nil); err == nil {
			_, _ = s.WriteTo(io.Discard)
		}
	})
	s, _, err := cl.Connect(b.Context(), "x:1", nil)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 128<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = s.Close()
}

// back is a sink that sends what arrives back on its own stream.
type back struct {
	s   *Stream
	buf []byte
}

func (k back) TryWrite(p []byte) (int, error) { return k.Write(p) }
func (k back) Write(p []byte) (int, error) {
	return k.s.WriteSlab(append(k.buf[:h2.Headroom], p...))
}

// tally is a sink that tells how much has come.
type tally struct {
	n    atomic.Int64
	want int64
	full chan struct{}
}

func (k *tally) TryWrite(p []byte) (int, error) { return k.Write(p) }
func (k *tally) Write(p []byte) (int, error) {
	if k.n.Add(int64(len(p)))%k.want == 0 {
		k.full <- struct{}{}
	}
	return len(p), nil
}

func BenchmarkSlabBulk(b *testing.B) {
	cl, _ := tunnel(b, func(ctx context.Context, in *Incoming) {
		if s, err := in.Accept(nil); err == nil {
			s.Deliver(sink{}, func(error) {})
			<-ctx.Done()
		}
	})
	s, _, err := cl.Connect(b.Context(), "x:1", nil)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, h2.Headroom+128<<10, h2.Headroom+128<<10+1)
	b.SetBytes(128 << 10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.WriteSlab(buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = s.Close()
}

func BenchmarkSlabRoundTrip(b *testing.B) {
	cl, _ := tunnel(b, func(ctx context.Context, in *Incoming) {
		if s, err := in.Accept(nil); err == nil {
			s.Deliver(back{s, make([]byte, 1<<10)}, func(error) {})
			<-ctx.Done()
		}
	})
	s, _, err := cl.Connect(b.Context(), "x:1", nil)
	if err != nil {
		b.Fatal(err)
	}
	got := &tally{want: 100, full: make(chan struct{}, 1)}
	s.Deliver(got, func(error) {})
	buf := make([]byte, h2.Headroom+100, h2.Headroom+101)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = s.WriteSlab(buf)
		<-got.full
	}
	_ = s.Close()
}

func BenchmarkRoundTrip(b *testing.B) {
	cl, _ := tunnel(b, echo)
	s, _, err := cl.Connect(b.Context(), "x:1", nil)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = s.Write(buf)
		if _, err := io.ReadFull(s, buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = s.Close()
}

func BenchmarkOpen(b *testing.B) {
	cl, _ := tunnel(b, echo)
	b.ReportAllocs()
	for b.Loop() {
		s, _, err := cl.Connect(b.Context(), "x:1", nil)
		if err != nil {
			b.Fatal(err)
		}
		_ = s.CloseWrite()
		_, _ = io.Copy(io.Discard, s)
	}
}

// BenchmarkOpenHeaders opens tunnels with the headers that ztunnel sends.
func BenchmarkOpenHeaders(b *testing.B) {
	cl, _ := tunnel(b, echo)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s, _, err := cl.Connect(b.Context(), "10.0.0.2:8080", []Header{
			{Name: "baggage", Value: "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=a,service.name=a,service.version=v1"},
			{Name: "forwarded", Value: fmt.Sprintf(`for="10.0.0.1:%d"`, 10_000+i%50_000)},
			{Name: "traceparent", Value: fmt.Sprintf("00-0af7651916cd43dd8448eb21%08x-b7ad6b7169203331-00", i)},
		})
		if err != nil {
			b.Fatal(err)
		}
		_ = s.CloseWrite()
		_, _ = io.Copy(io.Discard, s)
	}
}
