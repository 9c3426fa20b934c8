package record

import (
	"bytes"
	"testing"

	"github.com/marrowmesh/marrow/internal/burst"
)

// BenchmarkSeal is what sealing costs without the system: 256 KiB as a frame.
func BenchmarkSeal(b *testing.B) {
	c, nc := onCanned(b)
	p := [][]byte{roomy(random(256<<10 - 80))}
	b.SetBytes(int64(len(p[0])))
	for b.Loop() {
		nc.w.Reset()
		if err := c.WriteOwned(p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen is what opening costs without the system.
func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{64, 1024, 16384} {
		b.Run(map[int]string{64: "64", 1024: "1K", 16384: "16K"}[size], func(b *testing.B) {
			st, other := states(suites[0])
			nc := &counted{canned: canned{}}
			c := newConn(b, nc, st)
			for range 256 << 10 / (size + overhead) {
				if _, err := c.Write(make([]byte, size)); err != nil {
					b.Fatal(err)
				}
			}
			r := newConn(b, &canned{r: bytes.NewReader(nil)}, other)
			b.SetBytes(int64(nc.w.Len()))
			take := func(p []byte) (int, error) { return len(p), nil }
			for b.Loop() {
				r.in.seq = 0
				if _, err := r.pass(nc.w.Bytes(), take); err != nil {
					b.Fatal(err)
				}
			}
			if burst.Out() != 0 {
				b.Errorf("%d slabs are out", burst.Out())
			}
		})
	}
}
