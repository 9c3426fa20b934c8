package hbone

import (
	"context"
	"io"
	"testing"
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
