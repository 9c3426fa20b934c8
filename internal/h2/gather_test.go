package h2

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
)

// TestGather: what several streams have to say at one moment leaves in few writes, unchanged.
func TestGather(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that it is one moment
	const streams = 20
	slabPeer(t, []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: streams}}, func(c *Conn, nc *sealing, fr *http2.Framer, k *collector) {
		var all []*Stream
		for range streams {
			all = append(all, open(t, c))
		}
		synctest.Wait()
		nc.take()
		before := c.Stats()
		var writers sync.WaitGroup
		for i, s := range all {
			writers.Go(func() {
				text := fmt.Appendf(nil, "stream %d", i)
				if i%2 == 0 {
					_, _ = s.Write(text)
					return
				}
				_, _ = s.WriteSlab(slabOf(text))
			})
		}
		writers.Wait()
		synctest.Wait()
		after := c.Stats()
		if frames, writes := after.FramesOut-before.FramesOut, after.Writes-before.Writes; frames != streams || writes > streams/4 {
			t.Errorf("%d frames in %d writes", frames, writes)
		}
		for i, s := range all {
			if want := fmt.Appendf(nil, "stream %d", i); !bytes.Equal(k.got[s.id], want) {
				t.Errorf("%q arrived, want %q", k.got[s.id], want)
			}
		}
	})
}
