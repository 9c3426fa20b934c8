package relay

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// goesAway has one peer end its side and then reset, while the other one has nothing to say; that one learns of it.
func goesAway(t *testing.T, ender, other *net.TCPConn) {
	t.Helper()
	if _, err := ender.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	_ = ender.CloseWrite()
	if got, err := io.ReadAll(other); err != nil || string(got) != "last words" {
		t.Fatalf("%q, %v", got, err)
	}
	if closedState(other) {
		t.Fatal("closed by the half close alone")
	}
	_ = ender.SetLinger(0)
	_ = ender.Close()
	until(t, "the other peer was not told of the reset", func() bool { return closedState(other) })
}

// TestResetAfterTheEnd: a reset that follows a half close is passed on between two sockets, though nobody reads or writes.
func TestResetAfterTheEnd(t *testing.T) {
	for _, swap := range []bool{false, true} {
		t.Run(fmt.Sprintf("by server %v", swap), func(t *testing.T) {
			client, srv, result, _ := relayed(t, t.Context())
			ender, other := client, srv
			if swap {
				ender, other = srv, client
			}
			goesAway(t, ender, other)
			if r := <-result; r.Err != nil {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestCutAfterTheEnd is the same through a tunnel.
func TestCutAfterTheEnd(t *testing.T) {
	p := newProxies(t)
	for _, swap := range []bool{false, true} {
		t.Run(fmt.Sprintf("by server %v", swap), func(t *testing.T) {
			ender, other := p.connect(t)
			if swap {
				ender, other = other, ender
			}
			goesAway(t, ender, other)
			for range 2 {
				if r := <-p.results; r.Err != nil {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

// TestWatchEndsInOrder: who waits for what comes after the end goes when the other direction has ended, too.
func TestWatchEndsInOrder(t *testing.T) {
	for _, swap := range []bool{false, true} {
		client, srv, result, _ := relayed(t, t.Context())
		first, second := client, srv
		if swap {
			first, second = srv, client
		}
		_ = first.CloseWrite()
		if _, err := io.ReadAll(second); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Write([]byte("after that")); err != nil {
			t.Fatal(err)
		}
		_ = second.CloseWrite()
		if got, err := io.ReadAll(first); err != nil || string(got) != "after that" {
			t.Errorf("%q, %v", got, err)
		}
		if r := <-result; r.Err != nil {
			t.Errorf("%+v", r)
		}
	}
}

// unheard is a socket whose peer never learns that we have said all, as when the network between is cut.
type unheard struct{ *net.TCPConn }

func (unheard) Bare()             {}
func (unheard) CloseWrite() error { return nil }

// TestWatchDoesNotHold: nor does it wait for a peer who does not answer any more.
func TestWatchDoesNotHold(t *testing.T) {
	client, down := pair(t)
	up, srv := pair(t)
	result := make(chan Result, 1)
	go func() { result <- Both(t.Context(), unheard{down}, up, nil) }()
	_ = client.CloseWrite()
	if _, err := io.ReadAll(srv); err != nil {
		t.Fatal(err)
	}
	_ = srv.CloseWrite()
	select {
	case r := <-result:
		if r.Err != nil {
			t.Errorf("%+v", r)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the relay waits for a peer who has said all, and does not answer")
	}
}
