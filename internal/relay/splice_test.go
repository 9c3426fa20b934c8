package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/burst"
)

// descriptors lists what the process has open, by kind.
func descriptors(t testing.TB) (pipes, sockets int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		switch {
		case strings.HasPrefix(to, "pipe:"):
			pipes++
		case strings.HasPrefix(to, "socket:"):
			sockets++
		}
	}
	return pipes, sockets
}

// until waits for something that happens soon.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestBulkAndTalk sends large and small pieces by turns, both ways at once, so that connections go from reading to
// splicing and back.
func TestBulkAndTalk(t *testing.T) {
	client, srv, result, seen := relayed(t, t.Context())
	talk := func(seed int, w, r *net.TCPConn) error {
		sent := make([]byte, 8<<20)
		_, _ = rand.Read(sent)
		failed := make(chan error, 1)
		go func() {
			for i, left := 0, sent; len(left) > 0; i++ {
				n := 1 << 20
				if (i+seed)%2 == 0 {
					n = 700
					time.Sleep(time.Millisecond)
				}
				n = min(n, len(left))
				if _, err := w.Write(left[:n]); err != nil {
					failed <- err
					return
				}
				left = left[n:]
			}
			failed <- w.CloseWrite()
		}()
		got, err := io.ReadAll(r)
		if err == nil && !bytes.Equal(got, sent) {
			err = fmt.Errorf("other bytes: %d of %d", len(got), len(sent))
		}
		return errors.Join(err, <-failed)
	}
	back := make(chan error, 1)
	go func() { back <- talk(1, srv, client) }()
	if err := errors.Join(talk(0, client, srv), <-back); err != nil {
		t.Fatal(err)
	}
	if r := <-result; r.Err != nil || r.Sent != 8<<20 || r.Received != 8<<20 || seen[0].Load() != r.Sent || seen[1].Load() != r.Received {
		t.Errorf("%+v, increments %d and %d", r, seen[0].Load(), seen[1].Load())
	}
}

// bulk makes a relay splice from client to server.
func bulk(t testing.TB, client, srv *net.TCPConn) {
	t.Helper()
	const n = 4 << 20
	go func() { _, _ = client.Write(make([]byte, n)) }()
	if _, err := io.ReadFull(srv, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}

// pipesNow counts the open pipes once the relays' own are closed.
func pipesNow(t testing.TB) int {
	t.Helper()
	until(t, "unused pipes are never closed", func() bool {
		return pipes.Len() == 0
	})
	n, _ := descriptors(t)
	return n
}

// TestIdleHoldsNoPipe: neither an idle connection nor, after a moment, the process holds pipes.
func TestIdleHoldsNoPipe(t *testing.T) {
	before := pipesNow(t)
	client, srv, result, _ := relayed(t, t.Context())
	bulk(t, client, srv)
	until(t, "no pipe was used and given back", func() bool {
		return pipes.Len() > 0
	})
	if n := pipesNow(t); n > before {
		t.Errorf("%d pipes, %d before", n, before)
	}
	bulk(t, client, srv)
	_, _ = client.CloseWrite(), srv.CloseWrite()
	<-result
}

// TestCutWhileSpliced ends a relay whose pipe is full because nobody reads.
func TestCutWhileSpliced(t *testing.T) {
	before := pipesNow(t)
	ctx, cancel := context.WithCancel(t.Context())
	client, srv, result, seen := relayed(t, ctx)
	bulk(t, client, srv)
	var wrote int64
	_ = client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	for err := error(nil); err == nil; {
		var n int
		n, err = client.Write(make([]byte, 1<<20))
		wrote += int64(n)
	}
	cancel()
	r := <-result
	if !errors.Is(r.Err, context.Canceled) || r.Down != nil || r.Up != nil {
		t.Errorf("%+v", r)
	}
	got, _ := io.Copy(io.Discard, srv)
	if got += 4 << 20; got != r.Sent {
		t.Errorf("%d bytes counted, %d arrived", r.Sent, got)
	}
	if seen[0].Load() != r.Sent || r.Sent > wrote+4<<20 {
		t.Errorf("%d in increments, %d in all", seen[0].Load(), r.Sent)
	}
	if n := pipesNow(t); n > before {
		t.Errorf("%d pipes, %d before", n, before)
	}
}

// TestRefusedSplice: sockets that the kernel does not splice, or splices only half of the way, lose nothing.
func TestRefusedSplice(t *testing.T) {
	for name, refuse := range map[string]func(call int, toSocket bool) bool{
		"at once":      func(int, bool) bool { return true },
		"to socket":    func(_ int, toSocket bool) bool { return toSocket },
		"after a time": func(call int, _ bool) bool { return call > 5 },
	} {
		t.Run(name, func(t *testing.T) {
			client, src := pair(t)
			dst, srv := pair(t)
			sent := make([]byte, 3<<20)
			_, _ = rand.Read(sent)
			go func() { _, _ = client.Write(sent); _ = client.CloseWrite() }()
			got := make(chan []byte, 1)
			go func() { all, _ := io.ReadAll(srv); got <- all }()
			counted, calls := 0, 0
			s, err := newSplicer(burst.NewFeeder(src), dst, func(n int) { counted += n })
			if err != nil {
				t.Fatal(err)
			}
			s.move = func(from, to, n int) (int, error) {
				if calls++; refuse(calls, s.pipe.r == from) {
					return 0, syscall.EINVAL
				}
				return splice(from, to, n)
			}
			ended, err := s.run()
			if ended || err != nil || !s.refused || s.pipe != nil {
				t.Fatalf("ended %v, refused %v, %v", ended, s.refused, err)
			}
			rest, err := io.Copy(dst, io.MultiReader(src))
			if err != nil {
				t.Fatal(err)
			}
			_ = dst.CloseWrite()
			if all := <-got; !bytes.Equal(all, sent) || counted+int(rest) != len(sent) {
				t.Errorf("%d bytes arrived, %d spliced and %d copied of %d", len(all), counted, rest, len(sent))
			}
			_, _, _, _ = client.Close(), src.Close(), dst.Close(), srv.Close()
		})
	}
}

// ending is how a connection's end looks to the other side.
func ending(c *net.TCPConn) (got int64, how string) {
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	got, err := io.Copy(io.Discard, c)
	switch {
	case err == nil:
		return got, "fin"
	case errors.Is(err, syscall.ECONNRESET):
		return got, "reset"
	}
	return got, err.Error()
}

// TestEndsAreCarried compares how ends look with and without a relay in between.
func TestEndsAreCarried(t *testing.T) {
	for name, end := range map[string]func(c *net.TCPConn){
		"close":      func(c *net.TCPConn) { _ = c.Close() },
		"half close": func(c *net.TCPConn) { _ = c.CloseWrite() },
		"reset":      func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
	} {
		for _, size := range []int{0, 100, 2 << 20} {
			for _, swap := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s after %d bytes, by server %v", name, size, swap), func(t *testing.T) {
					run := func(ender, other *net.TCPConn) (int64, string) {
						var wg sync.WaitGroup
						wg.Go(func() { _, _ = ender.Write(make([]byte, size)) })
						_, _ = io.ReadFull(other, make([]byte, size))
						wg.Wait()
						end(ender)
						return ending(other)
					}
					a, b := pair(t)
					wantN, want := run(a, b)
					_, _ = a.Close(), b.Close()
					client, srv, result, _ := relayed(t, t.Context())
					if swap {
						client, srv = srv, client
					}
					if n, how := run(client, srv); n != wantN || how != want {
						t.Errorf("%d bytes and %s, without relay %d and %s", n, how, wantN, want)
					}
					_, _ = client.Close(), srv.Close()
					if r := <-result; r.Err != nil {
						t.Errorf("%+v", r)
					}
				})
			}
		}
	}
}

// TestResetAgainstTheFlow: who is reset while it is being written to is reset for the one who writes, not closed.
func TestResetAgainstTheFlow(t *testing.T) {
	for i := range 100 {
		client, srv, result, _ := relayed(t, t.Context())
		if i%2 == 0 {
			client, srv = srv, client
		}
		wrote := make(chan error, 1)
		go func() { // keeps the relay writing to the client
			for {
				if _, err := srv.Write(make([]byte, 32<<10)); err != nil {
					wrote <- err
					return
				}
			}
		}()
		_, _ = io.ReadFull(client, make([]byte, (1+i)*20_000))
		_ = client.SetLinger(0)
		_ = client.Close()
		_, how := ending(srv)
		// Only one of reader and writer is told; after a close, the writer would be told of a broken pipe.
		if err := <-wrote; how != "reset" && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("round %d: the end is %s, writing gives %v", i, how, err)
		}
		_ = srv.Close()
		<-result
	}
}

// TestAbortsLeaveNothing ends many connections in the middle of what they do.
func TestAbortsLeaveNothing(t *testing.T) {
	rounds := 600
	if testing.Short() {
		rounds = 200
	}
	pipesBefore := pipesNow(t)
	_, before := descriptors(t)
	for i := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		client, srv, result, _ := relayed(t, ctx)
		if i%4 == 0 {
			go func() { _, _ = client.Write(make([]byte, 1<<20)) }()
			go func() { _, _ = io.Copy(io.Discard, srv) }()
		}
		switch i % 3 {
		case 0:
			_ = client.SetLinger(0)
			_ = client.Close()
		case 1:
			_ = srv.Close()
			_ = client.Close()
		default:
			cancel()
		}
		<-result
		cancel()
		_, _ = client.Close(), srv.Close()
	}
	until(t, "descriptors are left", func() bool { p, s := descriptors(t); return p <= pipesBefore && s <= before })
}
