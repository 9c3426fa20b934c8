package burst

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sockets returns two ends of a loopback connection.
func sockets(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	return tcppair.New(t)
}

// pairs are the kinds of connection that a Feeder reads.
func pairs(t *testing.T) map[string][2]net.Conn {
	a, b := sockets(t)
	c, d := net.Pipe()
	t.Cleanup(func() { _, _ = c.Close(), d.Close() })
	return map[string][2]net.Conn{"socket": {a, b}, "pipe": {c, d}}
}

func TestEveryByteOnce(t *testing.T) {
	for kind, ends := range pairs(t) {
		t.Run(kind, func(t *testing.T) {
			before := Out()
			rnd := rand.New(rand.NewPCG(1, 2))
			want := make([]byte, 4<<20)
			for i := range want {
				want[i] = byte(rnd.Uint32())
			}
			go func() {
				for p := want; len(p) > 0; {
					n := min(len(p), 1+rnd.IntN(300_000))
					if _, err := ends[0].Write(p[:n]); err != nil {
						return
					}
					p = p[n:]
				}
				_ = ends[0].Close()
			}()
			var got []byte
			take := rand.New(rand.NewPCG(3, 4))
			err := Feed(ends[1], func(s *Slab, n int) (int, error) {
				p := s.B[Head : Head+n]
				done := n
				if take.IntN(3) == 0 {
					done = take.IntN(n + 1)
				}
				if n > 200_000 {
					done = n
				}
				got = append(got, p[:done]...)
				// What was taken, and what is around, is ours to spoil.
				clear(p[:done])
				clear(s.B[:Head])
				clear(s.B[len(s.B)-Tail:])
				return done, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(want, got) || len(want)-len(got) > 300_000 {
				t.Fatalf("got %d of %d bytes, equal so far %v", len(got), len(want), bytes.HasPrefix(want, got))
			}
			if n := Out() - before; n != 0 {
				t.Errorf("%d slabs are out", n)
			}
		})
	}
}

func TestLeftOverSurvivesADeadline(t *testing.T) {
	a, b := sockets(t)
	f := NewFeeder(b)
	defer f.Free()
	if _, err := a.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	keep := func(*Slab, int) (int, error) { return 0, nil }
	_ = b.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if err := f.Feed(keep); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("error %v, want a deadline's", err)
	}
	if got := string(f.Left()); got != "half" {
		t.Fatalf("left over %q", got)
	}
	_ = b.SetReadDeadline(time.Time{})
	if _, err := a.Write([]byte(" whole")); err != nil {
		t.Fatal(err)
	}
	_ = a.CloseWrite()
	var got string
	err := f.Feed(func(s *Slab, n int) (int, error) {
		if n < 10 {
			return 0, nil
		}
		got = string(s.B[Head : Head+n])
		return n, nil
	})
	if err != nil || got != "half whole" {
		t.Fatalf("%q, %v", got, err)
	}
}

// TestEndBehindData writes and ends, or resets, at once: the reader must see
// the bytes and then the end, however they came.
func TestEndBehindData(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn){
		"fin": func(c *net.TCPConn) { _ = c.CloseWrite() },
		"reset": func(c *net.TCPConn) {
			_ = c.SetLinger(0)
			_ = c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 200 {
				a, b := sockets(t)
				_ = b.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err := a.Write([]byte("last words")); err != nil {
					t.Fatal(err)
				}
				end(a)
				got := ""
				err := Feed(b, func(s *Slab, n int) (int, error) {
					got += string(s.B[Head : Head+n])
					return n, nil
				})
				if errors.Is(err, os.ErrDeadlineExceeded) || name == "fin" && (err != nil || got != "last words") {
					t.Fatalf("%q, %v", got, err)
				}
				_ = a.Close()
				_ = b.Close()
			}
		})
	}
}

func TestIdleHoldsNothing(t *testing.T) {
	a, b := sockets(t)
	before := Out()
	seen := make(chan int, 1)
	ended := make(chan error, 1)
	go func() { ended <- Feed(b, func(_ *Slab, n int) (int, error) { seen <- n; return n, nil }) }()
	for range 3 {
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		<-seen
		deadline := time.Now().Add(5 * time.Second)
		for Out() != before && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if n := Out() - before; n != 0 {
			t.Fatalf("%d slabs are out while nothing moves", n)
		}
	}
	_ = a.Close()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestReadsAdapt(t *testing.T) {
	f := &Feeder{size: classes[0] - Head - Tail}
	first := f.size
	for range 20 {
		f.adapt(f.size, f.size)
	}
	if f.size != MaxRead {
		t.Errorf("size %d after many full reads, want %d", f.size, MaxRead)
	}
	for range 50 {
		f.adapt(100, f.size)
	}
	if f.size != first {
		t.Errorf("size %d after many small reads, want %d", f.size, first)
	}
	for i := range 50 { // full and small by turns: no reason to grow
		f.adapt([]int{f.size, 1}[i%2], f.size)
	}
	if f.size != first {
		t.Errorf("size %d after full and small reads by turns, want %d", f.size, first)
	}
}

// TestAloneReadsMore: reads grow beyond MaxRead only after nobody else has moved anything for long, and shrink as soon as somebody does.
func TestAloneReadsMore(t *testing.T) {
	full := func(f *Feeder, turns int, others uint64) {
		for range turns {
			f.ours++ // its own message
			now := f.seen + f.ours + others
			f.adapt(f.size, f.size)
			f.look(now)
		}
	}
	f := &Feeder{size: classes[0] - Head - Tail}
	full(f, alone-1, 0)
	if f.size != MaxRead {
		t.Errorf("size %d before the time, want %d", f.size, MaxRead)
	}
	full(f, 5, 0)
	if f.size != MaxAlone {
		t.Errorf("size %d alone, want %d", f.size, MaxAlone)
	}
	full(f, 1, 1)
	if f.size != MaxRead {
		t.Errorf("size %d with a neighbour, want %d", f.size, MaxRead)
	}
	for range 10 { // somebody who says something now and then
		full(f, alone/2, 0)
		full(f, 1, 1)
	}
	if f.size != MaxRead {
		t.Errorf("size %d beside somebody who talks now and then, want %d", f.size, MaxRead)
	}
}

// TestStalledReadersCostNoMore: large slabs that do not come back leave the others with MaxRead.
func TestStalledReadersCostNoMore(t *testing.T) {
	if room := classes[firstBig-1] - Head - Tail; room < MaxRead || classes[firstBig] < MaxAlone {
		t.Fatalf("firstBig is not the first class beyond MaxRead: the one before has %d", room)
	}
	var held []*Slab
	for range mostBig {
		f := &Feeder{size: MaxAlone}
		f.space()
		if f.slab.Room() != MaxAlone {
			t.Fatalf("slab of %d, want %d", f.slab.Room(), MaxAlone)
		}
		held = append(held, f.slab)
	}
	f := &Feeder{size: MaxAlone}
	f.space()
	if f.slab.Room() != MaxRead || f.size != MaxRead {
		t.Errorf("slab of %d although %d large ones are out", f.slab.Room(), mostBig)
	}
	for _, s := range append(held, f.slab) {
		s.Free()
	}
	if n := big.Load(); n != 0 {
		t.Errorf("%d large slabs are out", n)
	}
}

// TestOwnBeats: what a Feeder moves itself is nobody else's.
func TestOwnBeats(t *testing.T) {
	f := &Feeder{size: MaxRead, slab: Get(MaxRead)}
	f.on = func(_ *Slab, n int) (int, error) { Beat(); return n, nil }
	f.look(beats.Load())
	for range 3 {
		if err := f.show(1000, MaxRead); err != nil {
			t.Fatal(err)
		}
		f.slab = Get(MaxRead)
		f.look(beats.Load())
	}
	if f.calm < 3 {
		t.Errorf("calm for %d turns, want at least 3", f.calm)
	}
	Beat()
	f.look(beats.Load())
	if f.calm != 0 {
		t.Errorf("calm for %d turns beside a neighbour", f.calm)
	}
	f.Free()
}

func TestNothingTakenOfAFullSlab(t *testing.T) {
	a, b := sockets(t)
	go func() { _, _ = a.Write(make([]byte, 1<<20)); _ = a.Close() }()
	most := 0
	err := Feed(b, func(_ *Slab, n int) (int, error) { most = n; return 0, nil })
	if !errors.Is(err, errStuck) || most != MaxRead {
		t.Errorf("%v with %d bytes shown, want %v with %d", err, most, errStuck, MaxRead)
	}
}

func TestWriterDoesNotWait(t *testing.T) {
	a, b := sockets(t)
	w, err := NewWriter(a)
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("0123456789"), 2<<20)
	n, err := w.TryWrite(big)
	if err != nil || n == 0 || n == len(big) {
		t.Fatalf("TryWrite of %d bytes: %d, %v", len(big), n, err)
	}
	if m, err := w.TryWrite(big[n:]); err != nil || m > 1<<20 {
		t.Fatalf("TryWrite on a full socket: %d, %v", m, err)
	} else {
		n += m
	}
	got := make(chan []byte)
	go func() { all, _ := io.ReadAll(b); got <- all }()
	m, err := w.Write(big[n:])
	if err != nil || n+m != len(big) {
		t.Fatalf("Write: %d of %d, %v", n+m, len(big), err)
	}
	_ = a.Close()
	if !bytes.Equal(<-got, big) {
		t.Error("other bytes arrived")
	}
	if _, err := w.TryWrite([]byte("x")); err == nil {
		t.Error("no error on a closed socket")
	}
}

func TestNoAllocations(t *testing.T) {
	a, b := sockets(t)
	w, err := NewWriter(a)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- Feed(b, func(_ *Slab, n int) (int, error) { seen <- struct{}{}; return n, nil })
	}()
	msg := make([]byte, 1000)
	got := testing.AllocsPerRun(1000, func() {
		if _, err := w.TryWrite(msg); err != nil {
			t.Error(err)
		}
		<-seen
	})
	if got >= 0.1 { // a collection may empty the pool once
		t.Errorf("%v allocations per message", got)
	}
	_ = a.Close()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}
