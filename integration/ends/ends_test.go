//go:build lab

package ends_test

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/integration/arena"
)

const (
	port   = "7100" // somebody listens
	nobody = "7199" // nobody does
)

// way is a pair of pods.
type way struct {
	name           string
	client, server *arena.Agent
	addr           string // of the server
}

// exchange is one connection, driven from both ends; what they see is written down.
type exchange struct {
	t    *testing.T
	w    way
	mu   sync.Mutex
	said []string
	c, s *side
}

// side is one end of the connection.
type side struct {
	x    *exchange
	name string
	g    *arena.Agent
	conn int
}

func (x *exchange) note(format string, args ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.said = append(x.said, fmt.Sprintf(format, args...))
}

func (s *side) step(method string, o Op) Seen {
	o.Conn = s.conn
	var seen Seen
	if err := s.g.Call(30*time.Second, "Pod."+method, o, &seen); err != nil {
		s.x.t.Fatal(err)
	}
	return seen
}

// The steps. Each writes down what was observed.

func (s *side) send(n int64, seed uint64) {
	got := s.step("Send", Op{Bytes: n, Seed: seed})
	s.x.note("%s sends %d: %d %s", s.name, n, got.Bytes, got.End)
}

// push sends as much as goes within some time, which nobody can tell beforehand.
func (s *side) push(seed uint64) {
	s.step("Send", Op{Bytes: 64 << 20, Seed: seed, Limit: 300 * time.Millisecond})
}

func (s *side) receive(n int64, seed uint64) {
	got := s.step("Receive", Op{Bytes: n, Seed: seed})
	s.x.note("%s receives %d %s, as sent: %t, then %q", s.name, got.Bytes, got.Hash, got.Good, got.End)
}

// drain reads to the end where it is open how much there is.
func (s *side) drain(seed uint64) {
	got := s.step("Receive", Op{Seed: seed})
	s.x.note("%s receives some, as sent: %t, then %q", s.name, got.Good, got.End)
}

func (s *side) arrived(n int64) {
	got := s.step("Arrived", Op{Bytes: n})
	s.x.note("%s has %d unread %s", s.name, got.Bytes, got.End)
}

func (s *side) over()       { s.x.note("%s only listens: %s", s.name, s.step("Over", Op{}).End) }
func (s *side) nag()        { s.x.note("%s writes on: %s", s.name, s.step("Nag", Op{}).End) }
func (s *side) closeWrite() { s.x.note("%s half-closes: %s", s.name, s.step("CloseWrite", Op{}).End) }
func (s *side) close()      { s.x.note("%s closes: %s", s.name, s.step("Close", Op{}).End) }
func (s *side) reset()      { s.x.note("%s resets: %s", s.name, s.step("Reset", Op{}).End) }
func (x *exchange) settle() { time.Sleep(60 * time.Millisecond) }

func (x *exchange) both(f, g func()) {
	var work sync.WaitGroup
	work.Go(f)
	work.Go(g)
	work.Wait()
	// Two ends at once have no order between them.
	slices.Sort(x.said[max(0, len(x.said)-2):])
}

// open connects both ends.
func (x *exchange) open() {
	got := x.c.step("Dial", Op{Addr: net.JoinHostPort(x.w.addr, port)})
	x.c.conn = got.Conn
	x.note("client connects: %s", got.End)
	got = x.s.step("Accept", Op{Addr: ":" + port})
	x.s.conn = got.Conn
	x.note("server accepts: %s", got.End)
}

// row is one exchange.
type row struct {
	name   string
	script func(x *exchange)
	// otherwise is what is seen in the mesh where it differs, and why. Nil = the same as without.
	otherwise []string
	reason    string
}

const (
	small = 5
	large = 10 << 20
)

func rows() []row {
	on := func(f func(x *exchange, c, s *side)) func(x *exchange) {
		return func(x *exchange) {
			x.open()
			f(x, x.c, x.s)
		}
	}
	return []row{
		{name: "no byte, client closes first", script: on(func(_ *exchange, c, s *side) { c.close(); s.receive(0, 1); s.close() })},
		{name: "no byte, server closes first", script: on(func(_ *exchange, c, s *side) { s.close(); c.receive(0, 1); c.close() })},
		{name: "accepted and reset at once", script: on(func(_ *exchange, c, s *side) { s.reset(); c.receive(0, 1) })},
		{name: "one byte each way", script: on(func(_ *exchange, c, s *side) {
			c.send(1, 1)
			s.receive(1, 1)
			s.send(1, 2)
			c.receive(1, 2)
			c.close()
			s.receive(0, 1)
			s.close()
		})},
		{name: "10 MB each way at once", script: on(func(x *exchange, c, s *side) {
			x.both(func() { c.send(large, 1) }, func() {
				x.both(func() { s.receive(large, 1) }, func() { x.both(func() { s.send(large, 2) }, func() { c.receive(large, 2) }) })
			})
			slices.Sort(x.said)
			c.close()
			s.receive(0, 3)
			s.close()
		})},
		{name: "client ends first, is answered", script: on(func(_ *exchange, c, s *side) {
			c.send(small, 1)
			c.closeWrite()
			s.receive(0, 1)
			s.send(small, 2)
			s.close()
			c.receive(0, 2)
			c.close()
		})},
		{name: "server ends first, is answered", script: on(func(_ *exchange, c, s *side) {
			s.send(small, 1)
			s.closeWrite()
			c.receive(0, 1)
			c.send(small, 2)
			c.close()
			s.receive(0, 2)
			s.close()
		})},
		{name: "half-closed by the client, then 10 MB back", script: on(func(x *exchange, c, s *side) {
			c.closeWrite()
			s.receive(0, 1)
			x.both(func() { s.send(large, 2) }, func() { c.receive(large, 2) })
			s.close()
			c.receive(0, 3)
		})},
		{name: "half-closed by the server, then 10 MB to it", script: on(func(x *exchange, c, s *side) {
			s.closeWrite()
			c.receive(0, 1)
			x.both(func() { c.send(large, 2) }, func() { s.receive(large, 2) })
			c.close()
			s.receive(0, 3)
		})},
		{name: "both half-close at once", script: on(func(x *exchange, c, s *side) {
			x.both(c.closeWrite, s.closeWrite)
			x.both(func() { c.receive(0, 1) }, func() { s.receive(0, 1) })
		})},
		{name: "client resets while idle", script: on(func(_ *exchange, c, s *side) { c.reset(); s.receive(0, 1) })},
		{name: "server resets while idle", script: on(func(_ *exchange, c, s *side) { s.reset(); c.receive(0, 1) })},
		{name: "client resets, then the server writes", script: on(func(x *exchange, c, s *side) { c.reset(); x.settle(); s.nag() })},
		{name: "server resets, then the client writes", script: on(func(x *exchange, c, s *side) { s.reset(); x.settle(); c.nag() })},
		{name: "client resets after what the server has not read yet", script: on(func(x *exchange, c, s *side) {
			c.send(small, 1)
			s.arrived(small)
			c.reset()
			x.settle()
			s.receive(0, 1)
		})},
		{name: "server resets after what the client has not read yet", script: on(func(x *exchange, c, s *side) {
			s.send(small, 1)
			c.arrived(small)
			s.reset()
			x.settle()
			c.receive(0, 1)
		})},
		{name: "client closes with unread data", script: on(func(_ *exchange, c, s *side) {
			s.send(small, 1)
			c.arrived(small)
			c.close()
			s.receive(0, 1)
		})},
		{name: "server closes with unread data", script: on(func(_ *exchange, c, s *side) {
			c.send(small, 1)
			s.arrived(small)
			s.close()
			c.receive(0, 1)
		})},
		{name: "server answers and closes with unread data", script: on(func(x *exchange, c, s *side) {
			c.send(small, 1)
			s.arrived(small)
			s.send(small, 2)
			c.arrived(small)
			s.close()
			x.settle()
			c.receive(0, 2)
		})},
		{name: "client resets with data in flight", script: on(func(_ *exchange, c, s *side) { c.push(1); c.reset(); s.drain(1) })},
		{name: "server resets with data in flight", script: on(func(_ *exchange, c, s *side) { s.push(1); s.reset(); c.drain(1) })},
		{name: "client resets with data in flight towards it", script: on(func(_ *exchange, c, s *side) { s.push(1); c.reset(); s.nag() })},
		{name: "server resets with data in flight towards it", script: on(func(_ *exchange, c, s *side) { c.push(1); s.reset(); c.nag() })},
		{name: "client closes, the server writes on", script: on(func(_ *exchange, c, s *side) { c.close(); s.receive(0, 1); s.nag() })},
		{name: "server closes, the client writes on", script: on(func(_ *exchange, c, s *side) { s.close(); c.receive(0, 1); c.nag() })},
		{name: "client half-closes and then resets", script: on(func(x *exchange, c, s *side) {
			c.closeWrite()
			s.receive(0, 1)
			c.reset()
			x.settle()
			s.nag()
		})},
		{name: "server half-closes and then resets", script: on(func(x *exchange, c, s *side) {
			s.closeWrite()
			c.receive(0, 1)
			s.reset()
			x.settle()
			c.nag()
		})},
		{name: "client half-closes and then resets, the server only listens", script: on(func(_ *exchange, c, s *side) {
			c.closeWrite()
			s.receive(0, 1)
			c.reset()
			s.over()
		})},
		{name: "server half-closes and then resets, the client only listens", script: on(func(_ *exchange, c, s *side) {
			s.closeWrite()
			c.receive(0, 1)
			s.reset()
			c.over()
		})},
		{name: "client half-closes, the server resets", script: on(func(_ *exchange, c, s *side) {
			c.send(small, 1)
			c.closeWrite()
			s.receive(0, 1)
			s.reset()
			c.receive(0, 2)
		})},
		{name: "server half-closes, the client resets", script: on(func(_ *exchange, c, s *side) {
			s.send(small, 1)
			s.closeWrite()
			c.receive(0, 1)
			c.reset()
			s.receive(0, 2)
		})},
		{name: "100 kB and closed at once by the client", script: on(func(x *exchange, c, s *side) {
			c.send(100<<10, 1)
			c.close()
			x.settle()
			s.receive(0, 1)
			s.close()
		})},
		{name: "100 kB and closed at once by the server", script: on(func(x *exchange, c, s *side) {
			s.send(100<<10, 1)
			s.close()
			x.settle()
			c.receive(0, 1)
			c.close()
		})},
		{name: "10 MB and closed by the server, to a reader that keeps up", script: on(func(x *exchange, c, s *side) {
			x.both(func() { s.send(large, 1); s.close() }, func() { c.receive(0, 1) })
			slices.Sort(x.said)
		})},
		{
			name: "nobody listens", script: func(x *exchange) {
				// A refusal that comes after the accept may reach the connect or the first read.
				got := x.c.step("Dial", Op{Addr: net.JoinHostPort(x.w.addr, nobody)})
				if got.End == "" {
					x.c.conn = got.Conn
					got = x.c.step("Receive", Op{})
				}
				x.note("client learns of it by %s", got.End)
			}, otherwise: []string{"client learns of it by ECONNRESET"},
			reason: "instead of ECONNREFUSED: the proxy accepts before it can know the destination; a reset is the nearest to a refusal that is left",
		},
	}
}

// run plays one exchange and gives what was seen.
func (r row) run(t *testing.T, w way) []string {
	x := &exchange{t: t, w: w}
	x.c, x.s = &side{x: x, name: "client", g: w.client}, &side{x: x, name: "server", g: w.server}
	r.script(x)
	return x.said
}

// TestEndsAreTheSame: what applications see of a connection does not depend on the mesh.
func TestEndsAreTheSame(t *testing.T) {
	var pods []arena.Pod
	for _, mesh := range []bool{false, true} {
		prefix := map[bool]string{false: "bare-", true: "mesh-"}[mesh]
		pods = append(pods, arena.Pod{Name: prefix + "client", Node: "node-1", Mesh: mesh},
			arena.Pod{Name: prefix + "near", Node: "node-1", Mesh: mesh}, arena.Pod{Name: prefix + "far", Node: "node-2", Mesh: mesh})
	}
	a := arena.Up(t, pods...)
	var ways []way
	for _, prefix := range []string{"bare-", "mesh-"} {
		client := a.Agent(t, arena.InPod(prefix+"client"))
		for _, server := range []string{"far", "near"} {
			w := way{name: prefix + server, client: client, server: a.Agent(t, arena.InPod(prefix+server)), addr: a.IP(t, prefix+server).String()}
			arena.Do[Seen](t, w.server, "Pod.Listen", Op{Addr: ":" + port})
			ways = append(ways, w)
		}
	}
	for _, r := range rows() {
		t.Run(r.name, func(t *testing.T) {
			want := r.run(t, ways[0])
			if again := r.run(t, ways[1]); !slices.Equal(want, again) {
				t.Errorf("without the mesh the two ways differ, so that nothing is proved:\n%s", diff(want, again))
			}
			if r.otherwise != nil {
				t.Logf("in the mesh otherwise: %s", r.reason)
				want = r.otherwise
			}
			for _, w := range ways[2:] {
				if got := r.run(t, w); !slices.Equal(want, got) {
					t.Errorf("%s:\n%s", w.name, diff(want, got))
				}
			}
		})
	}
}

// diff puts two accounts beside each other.
func diff(want, got []string) string {
	var b strings.Builder
	for i := range max(len(want), len(got)) {
		at := func(l []string) string {
			if i < len(l) {
				return l[i]
			}
			return "(nothing)"
		}
		mark := "  "
		if at(want) != at(got) {
			mark = "! "
		}
		fmt.Fprintf(&b, "%s%-75s | %s\n", mark, at(want), at(got))
	}
	return b.String()
}
