//go:build !race

package h2

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Not under the race detector: it allocates, takes a hundred times as long, and there is one goroutine.

// TestHeaderBombs: a block is decoded to its end, or the next ones would mean
// something else, but past the limit it costs no memory, and a connection gets
// away with 4 MiB of such blocks.
func TestHeaderBombs(t *testing.T) {
	for name, block := range bombs() {
		t.Run(name, func(t *testing.T) {
			c := still(server)
			c.in.phase = atFrames
			defer c.out.queue.drop()
			emitted := 0
			c.in.dec.SetEmitFunc(func(f hpack.HeaderField) { emitted++; c.in.block.emit(c.in.dec, f) })
			var before, after runtime.MemStats
			var took time.Duration
			bytesIn, blocks, allocated := 0, 0, 0
			var err error
			for err == nil && blocks < 3000 {
				id := uint32(2*blocks + 1)
				bomb := frame(func(fr *http2.Framer) error {
					rest := block
					first := rest[:min(len(rest), 100<<10)]
					rest = rest[len(first):]
					_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndHeaders: len(rest) == 0})
					for len(rest) > 0 {
						frag := rest[:min(len(rest), 100<<10)]
						rest = rest[len(frag):]
						_ = fr.WriteContinuation(id, len(rest) == 0, frag)
					}
					return nil
				})
				runtime.ReadMemStats(&before)
				start := time.Now()
				_, err = c.feed(bomb)
				took += time.Since(start)
				runtime.ReadMemStats(&after)
				blocks++
				bytesIn += len(block)
				allocated += int(after.TotalAlloc - before.TotalAlloc)
			}
			calmed(t, err)
			if bytesIn > 4<<20+2*len(block) {
				t.Errorf("took %d blocks of %d bytes", blocks, len(block))
			}
			if most := blocks * int(c.cfg.MaxHeaderList) / fieldOverhead; emitted > most {
				t.Errorf("%d fields looked at, want at most %d", emitted, most)
			}
			if most := blocks * (4*len(block) + 4*int(c.cfg.MaxHeaderList)); allocated > most || cap(c.in.block.raw) > keptBlock || cap(c.in.block.fields) > keptFields {
				t.Errorf("allocated %d bytes, want at most %d; keeps %d and %d fields", allocated, most, cap(c.in.block.raw), cap(c.in.block.fields))
			}
			t.Logf("ended after %d blocks of %d bytes, in %v: %.0f ns per byte; %d bytes allocated for each",
				blocks, len(block), took.Round(time.Millisecond), float64(took.Nanoseconds())/float64(bytesIn), allocated/blocks)
			c.wg.Wait()
		})
	}
}
