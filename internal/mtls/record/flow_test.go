package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/internal/burst"
)

// TestAnyInterleaving: whatever is written arrives, in order, however it was
// cut into writes, pieces and reads, and whatever the reader leaves over.
func TestAnyInterleaving(t *testing.T) {
	before := burst.Out()
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.SampledFrom(suites).Draw(t, "suite")
		x, y := net.Pipe()
		sa, sb := states(id)
		a, err := New(x, sa)
		if err != nil {
			t.Fatal(err)
		}
		b, err := New(y, sb)
		if err != nil {
			t.Fatal(err)
		}
		a.out.limit = rapid.Uint64Range(1, 40).Draw(t, "records per key")
		b.in.post.updates = boundless()
		size := rapid.SampledFrom([]int{0, 1, 9, 40, 4095, 4096, 5000, 16383, 16384, 16385, 40000, 400000})
		pieces := rapid.SliceOfN(rapid.SliceOfN(size, 0, 6), 0, 6).Draw(t, "writes")
		owned := rapid.SliceOfN(rapid.Bool(), len(pieces), len(pieces)).Draw(t, "owned")
		var want []byte
		for _, w := range pieces {
			for _, n := range w {
				want = append(want, random(n)...)
			}
		}
		done := make(chan error, 1)
		go func() { done <- writeAll(a, want, pieces, owned) }()
		got, err := readAny(t, b)
		if err != nil {
			_ = y.Close() // or the writer waits for ever
		}
		if werr := <-done; err != nil || werr != nil {
			t.Fatal(err, werr)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes arrived, %d were sent, or others", len(got), len(want))
		}
		_, _ = x.Close(), y.Close()
		_, _ = a.Close(), b.Close()
	})
	if out := burst.Out(); out > before {
		t.Errorf("%d slabs are out", out-before)
	}
}

// boundless lets a peer update its keys as often as it likes: no time passes for it, which would cut the number down.
func boundless() bucket { return bucket{left: 1 << 30, at: time.Now().Add(time.Hour)} }

func writeAll(c *Conn, all []byte, pieces [][]int, owned []bool) error {
	for i, w := range pieces {
		var bufs [][]byte
		for k, n := range w {
			p := all[:n:n]
			if k%2 == 0 {
				p = roomy(p)
			}
			bufs, all = append(bufs, p), all[n:]
		}
		if owned[i] {
			if err := c.WriteOwned(bufs); err != nil {
				return err
			}
			continue
		}
		for _, p := range bufs {
			if n, err := c.Write(p); err != nil || n != len(p) {
				return fmt.Errorf("%d of %d, %w", n, len(p), err)
			}
		}
	}
	return c.CloseWrite()
}

var errPause = errors.New("pause")

// readAny reads to the end, by Read, and by Feed that takes as it likes.
func readAny(t *rapid.T, c *Conn) ([]byte, error) {
	var got []byte
	leave := rapid.IntRange(0, 300).Draw(t, "left over")
	for {
		if rapid.Bool().Draw(t, "read") {
			p := make([]byte, rapid.IntRange(1, 70000).Draw(t, "size"))
			n, err := c.Read(p)
			if got = append(got, p[:n]...); errors.Is(err, io.EOF) {
				return got, nil
			}
			if err != nil {
				return got, err
			}
			continue
		}
		shows := rapid.IntRange(1, 5).Draw(t, "shows")
		var rest []byte
		err := c.Feed(func(p []byte) (int, error) {
			n := max(len(p)-leave, 0)
			if len(p) > 60000 { // it fits no more: taken whole
				n = len(p)
			}
			if got = append(got, p[:n]...); n < len(p) {
				rest = bytes.Clone(p[n:])
			} else {
				rest = nil
			}
			clear(p)
			copy(p[n:], rest)
			if shows--; shows == 0 {
				return n, errPause
			}
			return n, nil
		})
		if !errors.Is(err, errPause) {
			return append(got, rest...), err
		}
	}
}

// TestWriteLeavesBytes: Write never changes what it is given, WriteOwned puts
// back what it borrowed.
func TestWriteLeavesBytes(t *testing.T) {
	a, b := pair(t, suites[0])
	go func() { _, _ = io.Copy(io.Discard, b) }()
	p := random(70000)
	whole := bytes.Clone(p)
	stop := make(chan struct{})
	go func() { // the race detector sees a write to p
		defer close(stop)
		for range 100 {
			if !bytes.Equal(p, whole) {
				t.Error("changed for a moment")
				return
			}
		}
	}()
	for range 20 {
		if _, err := a.Write(p[:50000]); err != nil {
			t.Fatal(err)
		}
	}
	<-stop
	if err := a.WriteOwned([][]byte{p[:10], p[10:5000], p[5000:60000], p[60000:60001]}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, whole) {
		t.Error("WriteOwned left other bytes behind")
	}
}

// TestGather: small pieces share records, large ones are not copied for it.
func TestGather(t *testing.T) {
	for _, tc := range []struct {
		pieces []int
		want   []int // contents of the records
	}{
		{[]int{30, 30, 30}, []int{90}},
		{slices.Repeat([]int{30}, 1000), []int{16380, 13620}},
		{[]int{9, 16384}, []int{9, 16384}},
		{[]int{40000, 100}, []int{16384, 16384, 7232, 100}},
		{[]int{16384 + 50, 60, 9000}, []int{16384, 110, 9000}},
		{[]int{0, 5, 0}, []int{5}},
		{[]int{256<<10 + 9}, append(slices.Repeat([]int{16384}, 16), 9)},
	} {
		c, nc := onCanned(t)
		var bufs [][]byte
		for _, n := range tc.pieces {
			bufs = append(bufs, roomy(random(n)))
		}
		if err := c.WriteOwned(bufs); err != nil {
			t.Fatal(err)
		}
		if nc.writes != 1 {
			t.Errorf("%v: %d writes", tc.pieces, nc.writes)
		}
		if got := contents(nc.w.Bytes()); !slices.Equal(got, tc.want) {
			t.Errorf("%v: records of %v, want %v", tc.pieces, got, tc.want)
		}
	}
}

type counted struct {
	canned
	writes int
}

func (c *counted) Write(p []byte) (int, error) { c.writes++; return c.canned.Write(p) }

func onCanned(t testing.TB) (*Conn, *counted) {
	t.Helper()
	nc := &counted{canned: canned{r: strings.NewReader("")}}
	st, _ := states(suites[0])
	return newConn(t, nc, st), nc
}

func contents(wire []byte) []int {
	var out []int
	for len(wire) > 0 {
		n := int(wire[3])<<8 | int(wire[4])
		out = append(out, n-tagSize-1)
		wire = wire[headerSize+n:]
	}
	return out
}

// TestRekey: no key is used for more records than allowed, in either
// direction, whoever has to think of it.
func TestRekey(t *testing.T) {
	a, b := pair(t, suites[1])
	a.out.limit, a.in.limit = 7, 7 // b would go on for ever
	a.in.post.updates, b.in.post.updates = boundless(), boundless()
	go func() { // b reads, and by that answers
		defer func() { _ = b.CloseWrite() }()
		_, _ = io.Copy(b, b)
	}()
	for i := range 100 {
		if _, err := a.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		if a.out.seq > 7 {
			t.Fatalf("record %d under one key", a.out.seq)
		}
		got := make([]byte, 2)
		if n, err := a.Read(got); err != nil || n != 1 || got[0] != byte(i) {
			t.Fatal(got[:n], err)
		}
	}
	first, _ := states(suites[1])
	if bytes.Equal(a.in.secret[:], first.In.Secret) {
		t.Error("the peer was never asked for another key")
	}
}

// TestUpdateWhileBlocked: a peer that asks for keys and does not read cannot
// stop our reader; the answer comes when it reads, one for many questions.
func TestUpdateWhileBlocked(t *testing.T) {
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("writer waits=%t", busy), func(t *testing.T) {
			open := make(chan struct{})
			plain, p := handmade(t, suites[0], false)
			st, mine := states(suites[0])
			c := newConn(t, &gated{Conn: plain.nc, open: open}, mine)
			if busy {
				go func() { _, _ = c.Write([]byte("first")) }()
				for c.out.mu.TryLock() {
					c.out.mu.Unlock()
				}
			}
			wire := p.record(typeData, []byte("a"), 0)
			for range 5 {
				wire = append(wire, p.record(typeHandshake, []byte{msgUpdate, 0, 0, 1, 1}, 0)...)
				wire = append(wire, p.recordAfterUpdate()...)
			}
			if _, err := p.Write(wire); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 6)
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "axxxxx" {
				t.Fatalf("%q, %v", got, err)
			}
			close(open)
			other := newConn(t, p.Conn, st)
			go func() {
				_, _ = c.Write([]byte("end"))
				_ = c.CloseWrite()
			}()
			all, err := io.ReadAll(other)
			if err != nil || !bytes.HasSuffix(all, []byte("end")) {
				t.Fatal(len(all), err)
			}
			if n := other.in.post.updates.left; n < updatesAtOnce-2 || bytes.Equal(other.in.secret[:32], st.In.Secret) {
				t.Errorf("%d updates, or none", updatesAtOnce-n)
			}
		})
	}
}

// gated is a connection, no socket, that takes nothing until it is opened.
type gated struct {
	net.Conn
	open chan struct{}
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.open
	return g.Conn.Write(p)
}

// blockSocket has a writer wait for the peer to read.
func blockSocket(c *Conn) {
	go func() { _, _ = c.Write(make([]byte, 32<<20)) }()
	for c.out.mu.TryLock() {
		c.out.mu.Unlock()
		runtime.Gosched()
	}
}

// TestBlockedWriter: a writer that waits for a peer stops neither the reader
// nor an alert's end of both.
func TestBlockedWriter(t *testing.T) {
	c, p := handmade(t, suites[0], false)
	blockSocket(c)
	_, _ = p.Write(p.record(typeData, []byte("still"), 0))
	got := make([]byte, 9)
	if n, err := c.Read(got); err != nil || string(got[:n]) != "still" {
		t.Fatalf("%q, %v", got[:n], err)
	}
	_, _ = p.Write([]byte{typeData, 3, 3, 0, 0})
	start := time.Now()
	if _, err := c.Read(got); !errors.As(err, new(*AlertError)) {
		t.Fatal(err)
	}
	if took := time.Since(start); took > lastWait/2 {
		t.Errorf("the reader waited %v", took)
	}
	// The writer ends soon, with an error.
	if err := c.WriteOwned([][]byte{roomy([]byte("x"))}); err == nil {
		t.Error("written")
	}
}

// TestCloseUnblocks: Close ends a reader and a writer that wait.
func TestCloseUnblocks(t *testing.T) {
	for _, feed := range []bool{true, false} {
		before := burst.Out()
		c, p := handmade(t, suites[0], false)
		blockSocket(c)
		ended := make(chan error, 1)
		go func() {
			if feed {
				ended <- c.Feed(func(p []byte) (int, error) { return 0, nil })
				return
			}
			_, err := io.ReadAll(c)
			ended <- err
		}()
		_, _ = p.Write(append(p.record(typeData, []byte("left over"), 0), 23, 3))
		time.Sleep(10 * time.Millisecond)
		start := time.Now()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) || time.Since(start) > lastWait/2 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		for deadline := time.Now().Add(5 * time.Second); burst.Out() > before && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if burst.Out() > before {
			t.Errorf("%d slabs are out", burst.Out()-before)
		}
		_ = p.Close()
	}
}

// TestExport: both ends move to other Conns again and again, over duplicates
// of their sockets, with records half read, plaintext left over, tickets half
// seen, and nothing is lost.
func TestExport(t *testing.T) {
	a, b := pair(t, suites[1])
	a.out.limit = 11
	b.in.post.updates = boundless()
	want := random(4 << 20)
	sent := make(chan error, 1)
	go func() {
		for rest := want; len(rest) > 0; {
			n := min(rand.IntN(90000)+1, len(rest))
			if _, err := a.Write(rest[:n]); err != nil {
				sent <- err
				return
			}
			if rest = rest[n:]; rand.IntN(4) == 0 {
				a = moved(t, a)
				a.out.limit = 11
			}
		}
		sent <- a.CloseWrite()
	}()
	var got []byte
	moves := 0
	for {
		_ = b.SetReadDeadline(time.Now().Add(time.Duration(rand.IntN(300)) * time.Microsecond))
		err := b.Feed(func(p []byte) (int, error) {
			n := rand.IntN(len(p) + 1)
			if len(p) > 200<<10 {
				n = len(p)
			}
			got = append(got, p[:n]...)
			return n, nil
		})
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		b = moved(t, b)
		b.in.post.updates = boundless()
		moves++
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	st, err := b.Export()
	if got = append(got, st.Plain...); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d of %d bytes after %d moves, or others; %v", len(got), len(want), moves, err)
	}
	if !st.GotClose {
		t.Error("the end was forgotten")
	}
}

// moved hands c over to another Conn, by a duplicate of its socket.
func moved(t *testing.T, c *Conn) *Conn {
	t.Helper()
	st, err := c.Export()
	if err != nil {
		t.Error(err)
		return c
	}
	if text := fmt.Sprintf("%v %+v %#v %s %x %d", st, st, st, st.In, st.Out, st); strings.Contains(text, fmt.Sprintf("%x", st.In.Secret)) || strings.Contains(text, fmt.Sprintf("%d", st.Out.Secret)) {
		t.Error("a secret can be printed")
	}
	f, err := c.NetConn().(*net.TCPConn).File()
	if err != nil {
		t.Error(err)
		return c
	}
	defer func() { _ = f.Close() }()
	nc, err := net.FileConn(f)
	if err != nil {
		t.Error(err)
		return c
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, ErrExported) {
		t.Errorf("write: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrExported) {
		t.Errorf("read: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	n, err := New(nc, st)
	if err != nil {
		t.Error(err)
		return c
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// TestExportRefuses: what has failed, is used, or makes no sense is not handed
// over.
func TestExportRefuses(t *testing.T) {
	c, p := handmade(t, suites[0], false)
	reading := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 1)); reading <- err }()
	for c.in.mu.TryLock() {
		c.in.mu.Unlock()
	}
	if _, err := c.Export(); !errors.Is(err, ErrBusy) {
		t.Errorf("while somebody reads: %v", err)
	}
	_, _ = p.Write([]byte{99, 0, 0, 0, 0})
	if err := <-reading; err == nil {
		t.Fatal("accepted")
	}
	if _, err := c.Export(); !errors.As(err, new(*AlertError)) {
		t.Errorf("after a failure: %v", err)
	}
	st, _ := states(suites[0])
	for name, change := range map[string]func(*State){
		"suite":  func(s *State) { s.Suite = 0x1303 },
		"secret": func(s *State) { s.In.Secret = s.In.Secret[:31] },
		"seq":    func(s *State) { s.Out.Seq = 1 << 60 },
		"head":   func(s *State) { s.Post.Head = make([]byte, 9) },
		"skip":   func(s *State) { s.Post.Skip = -1 },
	} {
		bad := st
		change(&bad)
		if _, err := New(p.Conn, bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestNoAllocations: neither direction allocates per record.
func TestNoAllocations(t *testing.T) {
	const n = 64 << 10
	if testing.AllocsPerRun(200, func() {
		for range 20 {
			burst.Get(n).Free()
		}
	}) > 0 {
		t.Skip("the race detector has free lists forget at random")
	}
	a, b := pair(t, suites[0])
	big, small, foreign := roomy(random(n)), roomy(random(30)), random(n)
	bufs := [][]byte{big, small, small}
	took := make(chan int, 1)
	total, want := 0, 0
	go func() {
		_ = b.Feed(func(p []byte) (int, error) {
			if total += len(p); total >= want {
				total = 0
				took <- 0
			}
			return len(p), nil
		})
	}()
	run := func(name string, size int, write func() error) {
		t.Helper()
		want = size
		got := testing.AllocsPerRun(200, func() {
			if err := write(); err != nil {
				t.Fatal(err)
			}
			<-took
		})
		if got >= 1 { // a pool may be emptied by the collector now and then
			t.Errorf("%s: %v allocations per call", name, got)
		}
	}
	run("WriteOwned", n+60, func() error { return a.WriteOwned(bufs) })
	run("Write", n, func() error { _, err := a.Write(foreign); return err })
}
