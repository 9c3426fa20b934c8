package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/internal/burst"

	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	return tcppair.New(t)
}

// relayed is a client and a server with a relay between them.
func relayed(t testing.TB, ctx context.Context) (client, srv *net.TCPConn, result chan Result, seen *[2]atomic.Int64) {
	t.Helper()
	client, down := pair(t)
	up, srv := pair(t)
	result, seen = make(chan Result, 1), new([2]atomic.Int64)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		result <- Both(ctx, down, up, func(s, r int64) { seen[0].Add(s); seen[1].Add(r) })
	}()
	t.Cleanup(func() {
		_, _ = client.Close(), srv.Close()
		<-ended // the next test counts descriptors
	})
	return client, srv, result, seen
}

func TestHalfCloseKeepsOrder(t *testing.T) {
	client, srv, result, seen := relayed(t, t.Context())
	sent := make([]byte, 5<<20)
	_, _ = rand.Read(sent)
	go func() { _, _ = client.Write(sent); _ = client.CloseWrite() }()
	got, err := io.ReadAll(srv) // ends although the other direction is open
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d of %d bytes, %v", len(got), len(sent), err)
	}
	_, _ = srv.Write([]byte("answer"))
	_ = srv.CloseWrite()
	back, err := io.ReadAll(client)
	if string(back) != "answer" || err != nil {
		t.Fatalf("%q, %v", back, err)
	}
	r := <-result
	if r.Err != nil || r.Sent != int64(len(sent)) || r.Received != 6 {
		t.Errorf("%+v", r)
	}
	if seen[0].Load() != r.Sent || seen[1].Load() != r.Received {
		t.Errorf("increments %d and %d, result %+v", seen[0].Load(), seen[1].Load(), r)
	}
}

func TestResetIsNoFailure(t *testing.T) {
	for name, cut := range map[string]func(client, srv *net.TCPConn){
		"client": func(c, _ *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
		"server": func(_, s *net.TCPConn) { _ = s.SetLinger(0); _ = s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			client, srv, result, _ := relayed(t, t.Context())
			_, _ = client.Write([]byte("x"))
			_, _ = io.ReadFull(srv, make([]byte, 1))
			cut(client, srv)
			select {
			case r := <-result:
				if r.Err != nil {
					t.Errorf("error %v", r.Err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("relay goes on without one of its ends")
			}
		})
	}
}

func TestCancelEndsIdleRelay(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	client, _, result, _ := relayed(t, ctx)
	why := errors.New("policy changed")
	cancel(why)
	if r := <-result; !errors.Is(r.Err, why) {
		t.Errorf("error %v does not say why", r.Err)
	}
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("client is still connected")
	}
}

func TestBothDirectionsEnd(t *testing.T) {
	client, srv, result, _ := relayed(t, t.Context())
	_ = srv.CloseWrite()
	_, _ = io.ReadAll(client)
	select {
	case r := <-result:
		t.Fatalf("ended with one direction open: %+v", r)
	case <-time.After(20 * time.Millisecond):
	}
	_ = client.CloseWrite()
	if r := <-result; r.Err != nil || r.Sent+r.Received != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := srv.Write([]byte("x")); err == nil {
		if _, err = srv.Read(make([]byte, 1)); err == nil {
			t.Error("an end is still open")
		}
	}
}

// TestLastAnswerArrives: a server that answers early and closes does not lose
// its answer because the client is still sending.
func TestLastAnswerArrives(t *testing.T) {
	client, srv, result, _ := relayed(t, t.Context())
	_, _ = srv.Write([]byte("too large"))
	_ = srv.CloseWrite()
	got, err := io.ReadAll(client)
	if string(got) != "too large" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	_ = client.CloseWrite()
	_ = srv.Close()
	<-result
}

func TestIdleHoldsNoBuffer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	results := make([]chan Result, 50)
	for i := range results {
		client, srv, result, _ := relayed(t, ctx)
		_, _ = client.Write([]byte("x"))
		_, _ = io.ReadFull(srv, make([]byte, 1))
		results[i] = result
	}
	for end := time.Now().Add(5 * time.Second); burst.Out() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d idle relays hold %d buffers", len(results), burst.Out())
		}
	}
	cancel()
	for _, r := range results {
		<-r
	}
	if n := burst.Out(); n != 0 {
		t.Errorf("%d buffers lost", n)
	}
}

func BenchmarkBoth(b *testing.B) {
	client, srv, _, _ := relayed(b, b.Context())
	buf := make([]byte, 1<<20)
	go func() { _, _ = io.Copy(io.Discard, srv) }()
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = client.Write(buf)
	}
}
