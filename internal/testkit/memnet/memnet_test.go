package memnet_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/marrowmesh/marrow/internal/testkit/memnet"
)

var server = netip.MustParseAddrPort("10.0.0.2:80")

func TestRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(100 * time.Millisecond)
		l, err := n.Listen(server)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		c, err := n.Dial(t.Context(), netip.MustParseAddr("10.0.0.1"), server)
		if err != nil || time.Since(start) != 100*time.Millisecond {
			t.Fatalf("dial: %v after %v", err, time.Since(start))
		}
		s, err := l.AcceptConn()
		if err != nil || s.Remote() != c.Local() {
			t.Fatalf("accept: %v", err)
		}
		echoed := make(chan struct{})
		go func() {
			defer close(echoed)
			_, _ = io.Copy(s, s)
			_ = s.CloseWrite()
		}()
		_, _ = c.Write([]byte("ping"))
		buf := make([]byte, 8)
		got, err := c.Read(buf)
		if string(buf[:got]) != "ping" || err != nil || time.Since(start) != 200*time.Millisecond {
			t.Fatalf("echo %q, %v after %v", buf[:got], err, time.Since(start))
		}
		_ = c.Close()
		<-echoed
		_ = l.Close()
		if _, err := l.Accept(); err == nil {
			t.Fatal("a closed listener accepts")
		}
	})
}

func TestHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.New(0).Pair(server, server)
		_ = a.CloseWrite()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		big := bytes.Repeat([]byte("x"), 1<<20)
		go func() { _, _ = b.Write(big); _ = b.CloseWrite() }()
		got, err := io.ReadAll(a)
		if err != nil || !bytes.Equal(got, big) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}

func TestRefusedLostAndReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(0)
		if _, err := n.Dial(t.Context(), server.Addr(), server); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
		n.Lose(server)
		start := time.Now()
		if _, err := n.Dial(t.Context(), server.Addr(), server); err == nil || time.Since(start) != 10*time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
		a, b := n.Pair(server, server)
		_, _ = a.Write([]byte("unread"))
		_ = b.Close()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		_ = a.SetReadDeadline(time.Now().Add(time.Second))
		c, _ := n.Pair(server, server)
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Fatal("no deadline")
		}
	})
}
