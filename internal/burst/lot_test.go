package burst

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// lodging is a Feeder that may park, and what became of it.
type lodging struct {
	f     *Feeder
	conn  *net.TCPConn // ours
	peer  *net.TCPConn
	got   atomic.Int64
	ended chan error
}

func newLodging(t *testing.T, l *Lot) *lodging {
	t.Helper()
	a, b := sockets(t)
	g := &lodging{f: NewFeeder(b), conn: b, peer: a, ended: make(chan error, 1)}
	g.f.Park(l, g.feed)
	return g
}

func (g *lodging) feed() {
	err := g.f.Feed(func(_ *Slab, n int) (int, error) { g.got.Add(int64(n)); return n, nil })
	if errors.Is(err, ErrParked) {
		return
	}
	g.f.Free()
	g.ended <- err
}

func (g *lodging) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-g.ended:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the connection does not end")
		return nil
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never " + what)
		}
	}
}

// testLot is a Lot whose goroutines the test waits for.
func testLot(t *testing.T, quiet time.Duration) *Lot {
	t.Helper()
	var woken sync.WaitGroup
	l := NewLot(func(fn func()) { woken.Go(fn) })
	l.quiet = quiet
	t.Cleanup(func() { l.Close(); woken.Wait() })
	return l
}

// TestQuietParks: those to whom nothing comes have no goroutine; a byte, and an end, find them.
func TestQuietParks(t *testing.T) {
	l := testLot(t, 5*time.Millisecond)
	var own sync.WaitGroup
	all := make([]*lodging, 20)
	for i := range all {
		all[i] = newLodging(t, l)
		own.Go(all[i].feed)
	}
	for round := range int64(3) {
		eventually(t, "parked", func() bool { return l.Parked() == len(all) })
		own.Wait() // their goroutines are gone
		l.mu.Lock()
		if l.count != 0 || l.awake != nil {
			t.Errorf("%d are looked at although all are parked", l.count)
		}
		l.mu.Unlock()
		for _, g := range all {
			if _, err := g.peer.Write([]byte("word")); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "woken", func() bool {
			for _, g := range all {
				if g.got.Load() != 4*(round+1) {
					return false
				}
			}
			return true
		})
	}
	eventually(t, "parked", func() bool { return l.Parked() == len(all) })
	for i, g := range all {
		if i%2 == 0 {
			_ = g.peer.SetLinger(0)
		}
		_ = g.peer.Close()
	}
	for i, g := range all {
		if err := g.end(t); (err != nil) != (i%2 == 0) {
			t.Errorf("connection %d, reset %v: %v", i, i%2 == 0, err)
		}
	}
	if n := l.Parked(); n != 0 {
		t.Errorf("%d are parked after their end", n)
	}
}

// TestBusyDoesNotPark: whoever hears something between two looks keeps its goroutine.
func TestBusyDoesNotPark(t *testing.T) {
	l := testLot(t, 200*time.Millisecond)
	g := newLodging(t, l)
	var own sync.WaitGroup
	own.Go(g.feed)
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := g.peer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if l.Parked() != 0 {
			t.Fatal("a busy connection is parked")
		}
	}
	_ = g.peer.Close()
	if err := g.end(t); err != nil {
		t.Error(err)
	}
}

// TestReleaseWakes: the poller forgets a closed descriptor, the Lot must not.
func TestReleaseWakes(t *testing.T) {
	l := testLot(t, time.Millisecond)
	g := newLodging(t, l)
	go g.feed()
	eventually(t, "parked", func() bool { return l.Parked() == 1 })
	_ = g.conn.Close()
	g.f.Release()
	if err := g.end(t); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want that it is closed", err)
	}
	// One that is released between its wait's end and its parking must not park.
	g = newLodging(t, l)
	g.f.Release()
	if err := l.park(g.f); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want that it is closed", err)
	}
	if n := l.Parked(); n != 0 {
		t.Errorf("%d are parked", n)
	}
}

// TestDeadlineOfOthers: a deadline that is not the Lot's is the caller's to see.
func TestDeadlineOfOthers(t *testing.T) {
	l := testLot(t, time.Hour)
	g := newLodging(t, l)
	go g.feed()
	_ = g.conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if err := g.end(t); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want a deadline's", err)
	}
}

// TestLotCloses: those inside go on with goroutines of their own, and nobody parks any more.
func TestLotCloses(t *testing.T) {
	l := testLot(t, time.Millisecond)
	g := newLodging(t, l)
	go g.feed()
	eventually(t, "parked", func() bool { return l.Parked() == 1 })
	l.Close()
	if n := l.Parked(); n != 0 {
		t.Errorf("%d are parked in a closed lot", n)
	}
	if _, err := g.peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "read", func() bool { return g.got.Load() == 1 })
	_ = g.peer.Close()
	if err := g.end(t); err != nil {
		t.Error(err)
	}
}

// TestParkingLosesNothing: words and pauses at the pace of the looks, ends of all kinds; every byte arrives, every connection ends.
func TestParkingLosesNothing(t *testing.T) {
	l := testLot(t, 500*time.Microsecond)
	var peers sync.WaitGroup
	for i := range 50 {
		rnd := rand.New(rand.NewPCG(7, uint64(i)))
		g := newLodging(t, l)
		go g.feed()
		peers.Go(func() {
			sent := int64(0)
			for range 40 {
				n := 1 + rnd.IntN(5000)
				if _, err := g.peer.Write(make([]byte, n)); err != nil {
					t.Error(err)
				}
				sent += int64(n)
				time.Sleep(time.Duration(rnd.IntN(1500)) * time.Microsecond)
			}
			if i%3 == 0 { // our side ends it
				for end := time.Now().Add(10 * time.Second); g.got.Load() != sent && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
				_ = g.conn.SetDeadline(time.Unix(1, 0))
				_ = g.conn.Close()
				g.f.Release()
			} else {
				_ = g.peer.Close()
			}
			select {
			case err := <-g.ended:
				if i%3 != 0 && err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			case <-time.After(10 * time.Second):
				t.Errorf("connection %d does not end", i)
			}
			if n := g.got.Load(); n != sent {
				t.Errorf("connection %d: %d of %d bytes arrived", i, n, sent)
			}
		})
	}
	peers.Wait()
	if n := l.Parked(); n != 0 {
		t.Errorf("%d are parked at the end", n)
	}
}

// TestClosedFile: a socket of package os that is closed ends like one of package net.
func TestClosedFile(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	rc, err := r.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	if err := known(rc.Read(func(uintptr) bool { return true })); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want that it is closed", err)
	}
	if err := known(nil); err != nil {
		t.Error(err)
	}
}

// TestBrokenOffRound: a look that had too many to end goes on with those it has not seen, and judges nobody twice.
func TestBrokenOffRound(t *testing.T) {
	l := NewLot(nil)
	const silent = lotKicks + 100
	all := make([]*Feeder, silent)
	for i := range all {
		conn, other := net.Pipe()
		t.Cleanup(func() { _, _ = conn.Close(), other.Close() })
		all[i] = &Feeder{nc: conn, lot: &lodger{in: l}}
		l.enter(all[i])
		all[i].lot.seen = 0 // nothing since the last look
	}
	look := func() (kicked int) {
		l.look()
		l.mu.Lock()
		l.timer.Stop()
		l.mu.Unlock()
		for _, f := range all {
			if f.lot.kicked.Swap(false) {
				kicked++
			}
		}
		return kicked
	}
	if n := look(); n != lotKicks {
		t.Errorf("the first look ended %d waits, want %d", n, lotKicks)
	}
	if n := look(); n != silent-lotKicks {
		t.Errorf("the second look ended %d waits, want the %d that were left", n, silent-lotKicks)
	}
	if n := look(); n != lotKicks {
		t.Errorf("a new round ended %d waits, want %d", n, lotKicks)
	}
}
