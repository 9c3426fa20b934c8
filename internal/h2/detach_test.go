package h2

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestDetached: a stream whose handler returned counts until its release, for the limit of handlers and for Wait.
func TestDetached(t *testing.T) {
	release := make(chan func(), 1)
	detach := func(s *Stream, _ []Field) {
		_ = s.Respond([]Field{{":status", "200"}}, false)
		release <- s.Detach()
	}
	lockstep(t, Config{PingInterval: -1}, server, detach, func(c *Conn, w *wire) {
		w.connect(1)
		synctest.Wait()
		end := <-release
		c.mu.Lock()
		n := c.set.handlers
		c.mu.Unlock()
		if n != 1 {
			t.Errorf("%d handlers are counted, want 1", n)
		}
		began := time.Now()
		time.AfterFunc(3*time.Second, end)
		_ = c.Close()
		_ = w.nc.Close()
		c.Wait()
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("Wait returned after %v, the stream was released after 3 s", d)
		}
		if n := c.set.handlers; n != 0 {
			t.Errorf("%d handlers are counted at the end", n)
		}
	})
}

// TestTotals: frames and copies of all connections of a Config add up. Nothing else writes at the time (a writer that finds another at
// work leaves its bytes with it, as a copy).
func TestTotals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var totals Totals
		x, y := net.Pipe()
		a, b := NewClient(x, Config{Totals: &totals, PingInterval: -1}), NewServer(y, Config{PingInterval: -1}, okHandler)
		defer func() {
			_ = a.Close()
			a.Wait()
			b.Wait()
		}()
		s := tunnelTo(t, a, "a:1")
		synctest.Wait()
		before := totals.Frames.Load()
		if _, err := s.WriteSlab(slabOf(noise(1000))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := totals.Frames.Load() - before; n != 1 {
			t.Errorf("%d frames counted, want 1", n)
		}
		if n := totals.Copied.Load(); n != 0 {
			t.Errorf("%d bytes counted as copied of a slab that was sent where it was", n)
		}
		if _, err := s.Write(noise(1000)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := totals.Copied.Load(); n != 1000 {
			t.Errorf("%d bytes counted as copied, want 1000", n)
		}
		if b.Stats().DataIn == 0 && b.Err() != nil {
			t.Error(b.Err())
		}
	})
}
