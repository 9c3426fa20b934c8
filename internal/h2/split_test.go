package h2

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// silent is a connection that nobody reads from or listens to.
type silent struct{ net.Conn }

func (silent) SetReadDeadline(time.Time) error  { return nil }
func (silent) SetWriteDeadline(time.Time) error { return nil }
func (silent) Write(p []byte) (int, error)      { return len(p), nil }
func (silent) Close() error                     { return nil }

// still makes a connection without goroutines that keeps what it would send.
func still(r role) *Conn {
	c := newConn(silent{}, Config{PingInterval: -1, MaxStreams: 1000}, r)
	c.out.flushing = true
	c.handle = func(*Stream, []Field) {}
	for _, b := range []*budget{&c.guard.resets, &c.guard.settings, &c.guard.pings, &c.guard.empty, &c.guard.odd, &c.guard.refused, &c.guard.crumbs, &c.guard.updates, &c.guard.waste, &c.guard.headers} {
		b.rate = 0 // so that time plays no part
	}
	return c
}

// result is what input did to a connection, as text.
func result(input []byte, r role, sizes func() int) string {
	c := still(r)
	sinks := make(map[uint32]*testSink)
	ends := make(map[uint32]*outcome)
	if r == client {
		c.set.next = 1
		for range 4 {
			s := c.newStream(c.set.next)
			c.set.next += 2
			sinks[s.id], ends[s.id] = &testSink{room: -1}, &outcome{}
			s.Deliver(sinks[s.id], ends[s.id].done)
		}
	}
	streams := maps.Clone(c.set.open)
	var err error
	for len(input) > 0 && err == nil {
		n := min(max(1, sizes()), len(input))
		piece := slices.Clone(input[:n])
		_, err = c.feed(piece)
		for i := range piece {
			piece[i] = 0xdd // the slab is somebody else's by now
		}
		input = input[n:]
	}
	maps.Copy(streams, c.set.open)
	if err != nil {
		c.mu.Lock()
		c.failRead(err)
		c.mu.Unlock()
	}
	c.wg.Wait()
	return c.describe(err, streams, sinks, ends)
}

func (c *Conn) describe(err error, streams map[uint32]*Stream, sinks map[uint32]*testSink, ends map[uint32]*outcome) string {
	var b strings.Builder
	fmt.Fprintf(&b, "err %v\nended %v\nframes %d data %d\n", err, c.err, c.stats.FramesIn, c.stats.DataIn)
	if err == nil {
		fmt.Fprintf(&b, "between %v hold %x\n", c.in.between(), c.in.hold)
	}
	var sent bytes.Buffer
	for _, p := range c.out.queue.parts[c.out.queue.first:] {
		sent.Write(p.bytes())
	}
	fr := http2.NewFramer(nil, &sent)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			break
		}
		if f.Header().Type != http2.FrameWindowUpdate {
			fmt.Fprintf(&b, "sent %d %s\n", f.Header().StreamID, describe(f))
		}
	}
	c.out.queue.drop()
	for id := uint32(1); id < 200; id += 2 {
		s := streams[id]
		if s == nil {
			continue
		}
		waiting := make([]byte, s.in.size)
		s.in.read(waiting)
		fmt.Fprintf(&b, "stream %d: %q ended %v cut %v may send %d\n", id, waiting, s.remoteEnd, s.cause, s.send)
		if s.recv.left < 0 || s.recv.left+s.recv.unsaid > s.recv.size {
			fmt.Fprintf(&b, "window %+v\n", s.recv)
		}
	}
	for id := uint32(1); id < 8; id += 2 {
		if sinks[id] != nil {
			fmt.Fprintf(&b, "sink %d: %q done %d %v\n", id, sinks[id].text(), ends[id].times, ends[id].err)
		}
	}
	return b.String()
}

// difference is the first line that is not the same.
func difference(got, want string) string {
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("%.500s\nwhole: %.500s", a[i], b[i])
		}
	}
	return fmt.Sprintf("%d lines, whole: %d", len(a), len(b))
}

// compare gives input whole, byte by byte and in random pieces.
func compare(t *testing.T, input []byte, r role, seed uint64) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	want := result(input, r, func() int { return 1 << 20 })
	for name, sizes := range map[string]func() int{
		"byte by byte": func() int { return 1 },
		"random":       func() int { return 1 + rnd.IntN(1+rnd.IntN(40)) },
	} {
		if got := result(input, r, sizes); got != want {
			t.Errorf("%s: %s", name, difference(got, want))
		}
	}
}

// FuzzFrames: however what arrives is cut, it means the same.
func FuzzFrames(f *testing.F) {
	var whole [][]byte
	seeds(seedTo(func(b []byte) { whole = append(whole, b) }))
	for i, b := range append(whole, tunnelTraffic()) {
		f.Add(b, uint64(i))
	}
	f.Fuzz(func(t *testing.T, input []byte, seed uint64) {
		if len(input) > 20_000 {
			return
		}
		compare(t, input, client, seed)
		compare(t, append([]byte(http2.ClientPreface), input...), server, seed)
	})
}

// tunnelTraffic is responses and DATA on several streams, in many sizes.
func tunnelTraffic() []byte {
	return frames(func(fr *http2.Framer, h func(...string) []byte) {
		for id := uint32(1); id < 8; id += 2 {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: h(":status", "200", "baggage", "a=b")})
		}
		for i := range 60 {
			id := uint32(1 + 2*(i%4))
			_ = fr.WriteData(id, false, bytes.Repeat([]byte{byte('a' + i%26)}, i*7%50))
		}
		_ = fr.WriteData(1, true, nil)
		_ = fr.WriteData(3, true, []byte("end"))
		_ = fr.WriteDataPadded(5, false, []byte("pad"), make([]byte, 20))
		_ = fr.WriteRSTStream(5, 8)
		_ = fr.WriteData(7, false, make([]byte, 3000))
		_ = fr.WriteData(7, false, []byte("x"))
		_ = fr.WriteRawFrame(99, 0, 7, []byte("unknown"))
		_ = fr.WriteData(7, false, []byte("y"))
		_ = fr.WriteGoAway(7, 0, []byte("bye"))
	})
}

// TestEveryCut is FuzzFrames' beginning: two cuts at every place.
func TestEveryCut(t *testing.T) {
	input := tunnelTraffic()
	want := result(input, client, func() int { return 1 << 20 })
	if !strings.Contains(want, "done 1 <nil>") || strings.Contains(want, "err h") {
		t.Fatalf("the traffic is not what it should be:\n%s", want)
	}
	for cut := 1; cut < len(input); cut += 1 + cut/500 {
		first := true
		got := result(input, client, func() int {
			if first {
				first = false
				return cut
			}
			return 1 << 20
		})
		if got != want {
			t.Fatalf("cut at %d: %s", cut, difference(got, want))
		}
	}
}
