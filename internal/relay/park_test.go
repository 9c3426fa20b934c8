package relay

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/burst"
)

// parking is a relay between two sockets whose quiet directions wait in a lot.
type parking struct {
	t           *testing.T
	lot         *burst.Lot
	client, srv *net.TCPConn
	relay       *Relay
	done        chan struct{}
	calls       atomic.Int32
}

func parks(t *testing.T, ctx context.Context) *parking {
	t.Helper()
	p := &parking{t: t, done: make(chan struct{})}
	var woken sync.WaitGroup
	p.lot = burst.NewLot(func(fn func()) { woken.Go(fn) })
	var down, up *net.TCPConn
	p.client, down = pair(t)
	up, p.srv = pair(t)
	p.relay = Start(ctx, down, up, nil)
	woken.Go(func() {
		p.relay.Then(p.lot, func() {
			p.calls.Add(1)
			close(p.done)
		})
	})
	t.Cleanup(func() {
		_, _ = p.client.Close(), p.srv.Close()
		<-p.done
		p.lot.Close()
		woken.Wait()
	})
	return p
}

// rest waits until both directions have parked; no goroutine of the relay is left then.
func (p *parking) rest() {
	p.t.Helper()
	until(p.t, "it does not park", func() bool { return p.lot.Parked() == 2 })
	stacks := make([]byte, 1<<20)
	until(p.t, "goroutines carry what is parked", func() bool {
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "relay.(*direction).carry")
	})
}

func (p *parking) says(from, to *net.TCPConn, text string) {
	p.t.Helper()
	_, _ = io.WriteString(from, text)
	got := make([]byte, len(text))
	_ = to.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		p.t.Errorf("%q, %v", got, err)
	}
	_ = to.SetReadDeadline(time.Time{})
}

func (p *parking) ends(sent, received int64) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.t.Fatal("the relay does not end")
	}
	if r := p.relay.Result(); r.Err != nil || r.Sent != sent || r.Received != received {
		p.t.Errorf("%+v, want %d sent and %d received", r, sent, received)
	}
	if n := p.calls.Load(); n != 1 {
		p.t.Errorf("done was called %d times", n)
	}
}

// TestPairParks: a connection between two sockets costs no goroutine and no pipe while it is quiet, also after the kernel
// has moved its bytes, and goes on as if nothing had been.
func TestPairParks(t *testing.T) {
	before := pipesNow(t)
	p := parks(t, t.Context())
	p.rest()
	bulk(t, p.client, p.srv)
	p.rest()
	if n := pipesNow(t); n > before {
		t.Errorf("%d pipes are open, %d before", n, before)
	}
	p.says(p.client, p.srv, "there")
	p.says(p.srv, p.client, "and back")
	bulk(t, p.client, p.srv)
	p.rest()
	_ = p.client.CloseWrite()
	if got, err := io.ReadAll(p.srv); err != nil || len(got) > 0 {
		t.Errorf("%q, %v", got, err)
	}
	p.says(p.srv, p.client, "last")
	_ = p.srv.Close()
	if got, err := io.ReadAll(p.client); err != nil || len(got) > 0 {
		t.Errorf("%q, %v", got, err)
	}
	p.ends(8<<20+5, 12)
}

// TestParkedPairEnds: the end of a parked connection is what it was, whoever makes it.
func TestParkedPairEnds(t *testing.T) {
	for name, end := range map[string]func(c *net.TCPConn){
		"close": func(c *net.TCPConn) { _ = c.Close() },
		"reset": func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
	} {
		for _, swap := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, by server %v", name, swap), func(t *testing.T) {
				p := parks(t, t.Context())
				ender, other := p.client, p.srv
				if swap {
					ender, other = other, ender
				}
				p.rest()
				end(ender)
				want := map[string]string{"close": "fin", "reset": "reset"}[name]
				if _, how := ending(other); how != want {
					t.Errorf("%s, want %s", how, want)
				}
				_ = other.Close()
				p.ends(0, 0)
			})
		}
	}
	t.Run("cut", func(t *testing.T) {
		ctx, cut := context.WithCancel(t.Context())
		p := parks(t, ctx)
		p.rest()
		cut()
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
			t.Fatal("the relay does not end")
		}
		if r := p.relay.Result(); r.Err == nil || p.calls.Load() != 1 {
			t.Errorf("%+v, done was called %d times", r, p.calls.Load())
		}
	})
}
