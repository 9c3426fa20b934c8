package h2

import (
	"bytes"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// calmed checks that err is the end of a connection whose peer does too much.
func calmed(t *testing.T, err error) {
	t.Helper()
	var ce *ConnError
	if !errors.As(err, &ce) || ce.Code != EnhanceYourCalm {
		t.Errorf("ended by %v, want ENHANCE_YOUR_CALM", err)
	}
}

// flood feeds data again and again until it ends the connection; it returns
// how often.
func (c *Conn) flood(data []byte, most int) (times int, err error) {
	for times < most && err == nil {
		times++
		_, err = c.feed(data)
	}
	return times, err
}

// frame is one frame as bytes.
func frame(write func(fr *http2.Framer) error) []byte {
	var out bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	fr.AllowIllegalWrites = true
	_ = write(fr)
	return out.Bytes()
}

func dataOf(id uint32, n int, end bool) []byte {
	h := dataHeader(id, n, end)
	return append(h[:], make([]byte, n)...)
}

// TestDataAfterResetIsFree: all that can be under way on streams that we
// reset, however many at once, is no mistake and costs the neighbours nothing.
func TestDataAfterResetIsFree(t *testing.T) {
	t.Run("whole window", func(t *testing.T) {
		c, all := stillStreams(t, Config{}, 2)
		defer c.out.queue.drop()
		all[1].Deliver(newSink(t, -1), func(error) {})
		for round := range 500 {
			s := c.newStream(c.set.next)
			s.answered()
			c.set.next += 2
			c.feedData(t, s.id, 100<<10, false)
			_ = s.Close()
			for left := int(baseWindow - 100<<10); left > 0; left -= 4 << 10 {
				c.feedData(t, s.id, 4<<10, left == 4<<10 && round%2 == 0)
			}
			if round%2 == 1 { // the peer's own end crosses ours
				if _, err := c.feed(frame(func(fr *http2.Framer) error { return fr.WriteRSTStream(s.id, http2.ErrCodeCancel) })); err != nil {
					t.Fatal(err)
				}
			}
			c.feedData(t, all[1].id, 1000, false)
			c.conserved(t)
		}
		if c.guard.odd.used != 0 || c.guard.empty.used != 0 || c.guard.waste.used != 0 {
			t.Errorf("an honest peer was charged: %+v", c.guard)
		}
	})
	t.Run("small windows, SETTINGS not seen", func(t *testing.T) {
		c, all := stillStreams(t, Config{StreamWindow: 1 << 14}, 1)
		defer c.out.queue.drop()
		_ = all[0].Close()
		for range 3 {
			c.feedData(t, 1, 20<<10, false)
		}
	})
	t.Run("more than are remembered", func(t *testing.T) {
		c, all := stillStreams(t, Config{}, 200)
		defer c.out.queue.drop()
		for _, s := range all {
			_ = s.Close()
		}
		for sent := 0; sent < 16<<20; sent += 16 << 10 {
			c.feedData(t, all[sent/(16<<10)%len(all)].id, 16<<10, false)
			c.conserved(t)
		}
	})
}

// TestDataAfterResetIsBounded: nobody throws bytes at us for ever.
func TestDataAfterResetIsBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		frame []byte
		ended bool // in order, instead of by our reset
		most  int  // bytes taken
	}{
		"large frames":        {dataOf(1, 16<<10, false), false, baseWindow},
		"one byte":            {dataOf(1, 1, false), false, baseWindow},
		"padding":             {frame(func(fr *http2.Framer) error { return fr.WriteDataPadded(1, false, nil, make([]byte, 255)) }), false, baseWindow},
		"empty":               {dataOf(1, 0, false), false, 0},
		"end again and again": {dataOf(1, 1000, true), false, 2_000_000},
		"empty end":           {dataOf(1, 0, true), false, 0},
		"resets":              {frame(func(fr *http2.Framer) error { return fr.WriteRSTStream(1, http2.ErrCodeCancel) }), false, 4 * 1001},
		"after the end":       {dataOf(1, 1<<20, false), true, 33 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			c, all := stillStreams(t, Config{}, 1)
			defer c.out.queue.drop()
			if tc.ended {
				c.feedData(t, 1, 0, true)
				_ = all[0].CloseWrite()
			}
			_ = all[0].Close()
			times, err := c.flood(tc.frame, 1_000_000)
			calmed(t, err)
			if n := (len(tc.frame) - frameHeader) * (times - 1); n > tc.most {
				t.Errorf("took %d bytes, want at most %d", n, tc.most)
			}
			if times > 262_200 {
				t.Errorf("took %d frames", times)
			}
			t.Logf("ended after %d frames", times)
		})
	}
}

// TestGrantsAreHandedOver: what may still come after a reset is so after a
// handover as well.
func TestGrantsAreHandedOver(t *testing.T) {
	c, all := stillStreams(t, Config{}, 1)
	defer c.out.queue.drop()
	c.feedData(t, 1, 100_000, false)
	_ = all[0].Close()
	st := c.snapshot()
	old := st
	old.Grants = nil
	for want, st := range map[uint32]State{baseWindow - 100_000: st, maxWindow: old} {
		synctest.Test(t, func(t *testing.T) {
			n, _, err := Restore(ended{}, st, Config{PingInterval: -1}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if g := n.set.recently(1); g == nil || g.left != want {
				t.Errorf("restored %+v, want %d", g, want)
			}
			n.Wait()
		})
	}
}

// ended is a connection whose peer is gone.
type ended struct{ silent }

func (ended) Feed(func([]byte) (int, error)) error { return nil }
func (ended) SetDeadline(time.Time) error          { return nil }

// TestGoAwaySpam: two belong to an end in order, the others are counted.
func TestGoAwaySpam(t *testing.T) {
	for name, debug := range map[string]int{"short": 1, "long": 100 << 10} {
		t.Run(name, func(t *testing.T) {
			c, all := stillStreams(t, Config{}, 1)
			defer c.out.queue.drop()
			spam := frame(func(fr *http2.Framer) error { return fr.WriteGoAway(1, http2.ErrCodeNo, make([]byte, debug)) })
			if _, err := c.flood(spam, 2); err != nil || c.guard.odd.used != 0 || all[0].Aborted() {
				t.Errorf("an end in order: %v, charged %v", err, c.guard.odd.used)
			}
			times, err := c.flood(spam, 100_000)
			calmed(t, err)
			if times > 1001 || times*debug > 33<<20 {
				t.Errorf("took %d", times)
			}
		})
	}
}

// TestUnknownFramesAreBounded: in bytes as well, which no window holds back.
func TestUnknownFramesAreBounded(t *testing.T) {
	c, _ := stillStreams(t, Config{}, 1)
	times, err := c.flood(frame(func(fr *http2.Framer) error { return fr.WriteRawFrame(77, 0, 0, make([]byte, 1<<20)) }), 10_000)
	calmed(t, err)
	if times > 33 {
		t.Errorf("took %d MiB", times)
	}
}

// bombs are header blocks that cost much and say nothing.
func bombs() map[string][]byte {
	var block bytes.Buffer
	connect := func() {
		enc := hpack.NewEncoder(&block)
		block.Reset()
		_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT", Sensitive: true})
		_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "a:1", Sensitive: true})
	}
	out := make(map[string][]byte)
	add := func(name string, piece []byte, n int) {
		connect()
		b := bytes.Clone(block.Bytes())
		for range n {
			b = append(b, piece...)
		}
		out[name] = b
	}
	// The first of these, in the table, is what all others mean.
	large := append([]byte{0x40, 1, 'x', 0x7f, 0xc1, 0x1e}, bytes.Repeat([]byte{'v'}, 4032)...)
	add("references to a large field", []byte{0x80 | 62}, 15<<10)
	out["references to a large field"] = append(large, out["references to a large field"]...)
	add("as many references as fit", []byte{0x80 | 16}, 250_000)
	add("new entries", []byte{0x40, 1, 'x', 0}, 60_000)
	add("new entries, Huffman", []byte{0x40, 0x81, 0xf3, 0x80}, 60_000) // "x", with ones behind
	add("entries without index", []byte{0, 1, 'x', 0}, 60_000)
	add("an invalid field first", []byte{0x40, 1, 'X', 0}, 60_000)
	connect()
	out["changes of the table's size"] = append(bytes.Repeat([]byte{0x20, 0x3f, 0xe1, 0x1f}, 60_000), block.Bytes()...)
	return out
}

// TestLateAndRefusedHeadersAreBounded: blocks that are well-formed and for
// nobody.
func TestLateAndRefusedHeadersAreBounded(t *testing.T) {
	block := func() []byte {
		var b bytes.Buffer
		enc := hpack.NewEncoder(&b)
		for _, name := range []string{":method", ":authority"} {
			_ = enc.WriteField(hpack.HeaderField{Name: name, Value: "CONNECT", Sensitive: true})
		}
		_ = enc.WriteField(hpack.HeaderField{Name: "x", Value: string(bytes.Repeat([]byte{1<<7 | 'x'}, 60_000)), Sensitive: true})
		return b.Bytes()
	}()
	for name, start := range map[string]func() (c *Conn, id, step uint32){
		"refused": func() (*Conn, uint32, uint32) {
			c := still(server)
			c.in.phase = atFrames
			c.set.handlers = math.MaxInt
			return c, 1, 2
		},
		"late": func() (*Conn, uint32, uint32) {
			c, all := stillStreams(t, Config{MaxHeaderList: 64 << 10}, 1)
			c.in.dec.SetMaxStringLength(64 << 10)
			_ = all[0].Close()
			return c, 1, 0
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, id, step := start()
			defer c.out.queue.drop()
			blocks := 0
			var err error
			for ; err == nil && blocks < 5000; id += step {
				_, err = c.feed(frame(func(fr *http2.Framer) error {
					return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true})
				}))
				blocks++
			}
			calmed(t, err)
			if blocks > 4<<20/len(block)+1 {
				t.Errorf("took %d blocks of %d bytes", blocks, len(block))
			}
		})
	}
}

// TestWindowUpdates: those for what we sent are free, down to one of each kind
// for each quarter of a KiB, at any rate and after any pause; others are not.
func TestWindowUpdates(t *testing.T) {
	update := func(id, n uint32) []byte {
		return frame(func(fr *http2.Framer) error { return fr.WriteWindowUpdate(id, n) })
	}
	t.Run("honest", func(t *testing.T) {
		for size, step := range map[int]int{1: 1, 100: 100, 16 << 10: 256, 64 << 10: 32 << 10} {
			c, all := stillStreams(t, Config{}, 1)
			s := all[0]
			conn, stream := update(0, uint32(step)), update(1, uint32(step))
			for range 100 { // all that the window has, then all that comes back
				sent := 0
				for ; sent+size <= defaultWindow+1 && sent < 10_000*size; sent += size {
					s.charge(size)
				}
				for ; sent > 0; sent -= step {
					for _, b := range [][]byte{conn, stream} {
						if _, err := c.feed(b); err != nil {
							t.Fatalf("frames of %d bytes, updates of %d: %v", size, step, err)
						}
					}
				}
			}
			if c.guard.updates.used > 0 {
				t.Errorf("frames of %d bytes, updates of %d: charged %v", size, step, c.guard.updates.used)
			}
		}
	})
	t.Run("each stream is enlarged", func(t *testing.T) {
		c := still(server)
		c.in.phase = atFrames
		defer c.out.queue.drop()
		for id := uint32(1); id < 10_000; id += 2 {
			s := c.newStream(id)
			if _, err := c.feed(update(id, 1<<20)); err != nil {
				t.Fatal(err)
			}
			c.forget(s)
		}
	})
	for name, id := range map[string]uint32{"connection": 0, "stream": 1, "closed stream": 3} {
		t.Run(name, func(t *testing.T) {
			c, all := stillStreams(t, Config{}, 2)
			defer c.out.queue.drop()
			_ = all[1].Close()
			all[0].charge(1 << 10)
			times, err := c.flood(update(id, 1), 1_000_000)
			calmed(t, err)
			if times > 2020 {
				t.Errorf("took %d", times)
			}
		})
	}
	t.Run("saved", func(t *testing.T) {
		c, all := stillStreams(t, Config{}, 1)
		for range 1000 {
			all[0].charge(1 << 20)
		}
		times, err := c.flood(update(1, 1), 1_000_000)
		calmed(t, err)
		if times > 2002+updatesSaved {
			t.Errorf("took %d", times)
		}
	})
}
