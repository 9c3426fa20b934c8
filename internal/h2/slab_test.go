package h2

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/marrowmesh/marrow/internal/burst"
)

// sealing is a connection that spoils what it is given, and the byte behind
// it, as a record layer may.
type sealing struct {
	net.Conn
	mu     sync.Mutex
	writes [][]int // sizes of the pieces
}

func (s *sealing) WriteOwned(bufs [][]byte) error {
	var all []byte
	var sizes []int
	for _, b := range bufs {
		all = append(all, b...)
		sizes = append(sizes, len(b))
		for i := range b {
			b[i] = 0xee
		}
		if cap(b) > len(b) {
			b[:len(b)+1][len(b)] = 0xee
		}
	}
	s.mu.Lock()
	s.writes = append(s.writes, sizes)
	s.mu.Unlock()
	_, err := s.Write(all)
	return err
}

func (s *sealing) take() [][]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.writes
	s.writes = nil
	return w
}

// slabOf is a slab with text in it and one byte behind.
func slabOf(text []byte) []byte {
	b := make([]byte, Headroom+len(text)+1)
	copy(b[Headroom:], text)
	return b[:Headroom+len(text)]
}

// collector is a peer that counts and keeps the payload of every stream.
type collector struct {
	mu    sync.Mutex
	got   map[uint32][]byte
	order []uint32 // of DATA frames
	sizes []int
}

func (k *collector) read(fr *http2.Framer) {
	fr.SetMaxReadFrameSize(1 << 24)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		if d, ok := f.(*http2.DataFrame); ok {
			k.mu.Lock()
			k.got[d.StreamID] = append(k.got[d.StreamID], d.Data()...)
			k.order = append(k.order, d.StreamID)
			k.sizes = append(k.sizes, len(d.Data()))
			k.mu.Unlock()
		}
	}
}

// slabPeer starts a client over a sealing connection with a peer that has the
// given settings.
func slabPeer(t *testing.T, settings []http2.Setting, run func(c *Conn, nc *sealing, fr *http2.Framer, k *collector)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		nc := &sealing{Conn: a}
		c := NewClient(nc, Config{PingInterval: -1})
		fr := http2.NewFramer(b, b)
		k := &collector{got: make(map[uint32][]byte)}
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.ReadFull(b, make([]byte, len(http2.ClientPreface)))
			k.read(fr)
		}()
		_ = fr.WriteSettings(settings...)
		synctest.Wait()
		nc.take()
		run(c, nc, fr, k)
		_ = c.Close()
		c.Wait()
		_ = b.Close()
		<-read
	})
}

func open(t *testing.T, c *Conn) *Stream {
	t.Helper()
	s, err := c.Open(t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// TestWriteSlabInPlace: a slab goes out as one frame in one write, from the
// caller's own memory.
func TestWriteSlabInPlace(t *testing.T) {
	big := []http2.Setting{{ID: http2.SettingMaxFrameSize, Val: 1 << 20}, {ID: http2.SettingInitialWindowSize, Val: 4 << 20}}
	slabPeer(t, big, func(c *Conn, nc *sealing, fr *http2.Framer, k *collector) {
		_ = fr.WriteWindowUpdate(0, 1<<24)
		s := open(t, c)
		synctest.Wait()
		nc.take()
		want := noise(burst.MaxAlone) // the largest that a reader shows
		before := c.Stats()
		if n, err := s.WriteSlab(slabOf(want)); n != len(want) || err != nil {
			t.Fatalf("sent %d, %v", n, err)
		}
		synctest.Wait()
		if w := nc.take(); len(w) != 1 || len(w[0]) != 1 || w[0][0] != Headroom+len(want) {
			t.Errorf("writes of %v", w)
		}
		if got := c.Stats(); got.FramesOut-before.FramesOut != 1 || got.Writes-before.Writes != 1 || got.DataOut-before.DataOut != uint64(len(want)) {
			t.Errorf("counted %+v after %+v", got, before)
		}
		if !bytes.Equal(k.got[s.id], want) {
			t.Error("other bytes arrived")
		}
	})
}

// TestWriteSlabSplits: whatever windows and frame sizes the peer has, it gets
// the slab's bytes in order and nothing else.
func TestWriteSlabSplits(t *testing.T) {
	for _, tc := range []struct{ window, frame uint32 }{{10, 1 << 20}, {70_000, 16384}, {1000, 16384}, {65535, 1 << 20}, {1 << 20, 16384}} {
		t.Run(fmt.Sprint(tc), func(t *testing.T) {
			slabPeer(t, []http2.Setting{{ID: http2.SettingMaxFrameSize, Val: tc.frame}, {ID: http2.SettingInitialWindowSize, Val: tc.window}},
				func(c *Conn, _ *sealing, fr *http2.Framer, k *collector) {
					s := open(t, c)
					want := noise(200_000)
					if tc.window < 100 {
						want = want[:500]
					}
					done := make(chan error, 1)
					go func() {
						_, err := s.WriteSlab(slabOf(want))
						if err == nil {
							err = s.CloseWrite()
						}
						done <- err
					}()
					for step := uint32(0); ; step++ {
						synctest.Wait()
						k.mu.Lock()
						n := len(k.got[s.id])
						k.mu.Unlock()
						if n == len(want) {
							break
						}
						_ = fr.WriteWindowUpdate(s.id, tc.window/2+step)
						_ = fr.WriteWindowUpdate(0, tc.window/2+step)
					}
					if err := <-done; err != nil {
						t.Error(err)
					}
					if !bytes.Equal(k.got[s.id], want) {
						t.Error("other bytes arrived")
					}
				})
		})
	}
}

// TestWriteSlabEnds: a slab that waits comes back when the stream or the
// connection ends, or time is up.
func TestWriteSlabEnds(t *testing.T) {
	for name, end := range map[string]func(c *Conn, fr *http2.Framer, s *Stream){
		"reset":       func(_ *Conn, fr *http2.Framer, s *Stream) { _ = fr.WriteRSTStream(s.id, http2.ErrCodeCancel) },
		"close":       func(_ *Conn, _ *http2.Framer, s *Stream) { _ = s.Close() },
		"close write": func(_ *Conn, _ *http2.Framer, s *Stream) { _ = s.CloseWrite() },
		"connection":  func(c *Conn, _ *http2.Framer, _ *Stream) { _ = c.Close() },
		"deadline":    func(_ *Conn, _ *http2.Framer, s *Stream) { _ = s.SetWriteDeadline(time.Now().Add(time.Second)) },
	} {
		t.Run(name, func(t *testing.T) {
			slabPeer(t, nil, func(c *Conn, _ *sealing, fr *http2.Framer, _ *collector) {
				s := open(t, c)
				type res struct {
					n   int
					err error
				}
				done := make(chan res, 2)
				for range 2 { // the second waits for the first
					go func() {
						n, err := s.WriteSlab(slabOf(make([]byte, 100_000)))
						done <- res{n, err}
					}()
				}
				synctest.Wait()
				end(c, fr, s)
				a, b := <-done, <-done
				if a.err == nil || b.err == nil || a.n+b.n != defaultWindow {
					t.Errorf("%+v, %+v", a, b)
				}
				c.mu.Lock()
				defer c.mu.Unlock()
				if n := len(c.out.turns); n != 0 {
					t.Errorf("%d streams wait for their turn", n)
				}
			})
		})
	}
}
