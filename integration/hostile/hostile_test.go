//go:build lab

package hostile_test

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/integration/arena"
)

// ground is the lab of all attacks: the victim on node-2, its neighbour's client on node-1, the attacker beside the mesh.
type ground struct {
	server, client      string // addresses
	attacker, neighbour *arena.Agent
	watcher             *arena.Agent
	window              time.Duration
	calm                arena.State // before any attack, with the neighbour's tunnel open
	line                []string
}

func newGround(t *testing.T, environment ...string) *ground {
	t.Helper()
	a := arena.UpWith(t, environment, arena.Pod{Name: "client", Node: "node-1", Mesh: true}, arena.Pod{Name: "server", Node: "node-2", Mesh: true},
		arena.Pod{Name: "rogue", Node: "node-1"})
	g := &ground{
		server: a.IP(t, "server").String(), client: a.IP(t, "client").String(),
		attacker: a.Agent(t, arena.InPod("rogue")), neighbour: a.Agent(t, arena.InPod("client")), watcher: a.Watch(t, "node-2"),
		window: 60 * time.Millisecond,
	}
	if text := os.Getenv("MARROW_HOSTILE_WINDOW"); text != "" {
		var err error
		if g.window, err = time.ParseDuration(text); err != nil {
			t.Fatalf("MARROW_HOSTILE_WINDOW: %v", err)
		}
	}
	arena.Do[None](t, a.Agent(t, arena.InPod("server")), "Victim.Serve", None{})
	g.ask(t, time.Second)
	g.calm = g.watcher.Look(t)
	return g
}

// ask lets the neighbour make round trips; every one must succeed.
func (g *ground) ask(t *testing.T, d time.Duration) Rounds {
	t.Helper()
	r := arena.Do[Rounds](t, g.neighbour, "Neighbour.Ask", Window{Addr: net.JoinHostPort(g.server, echoPort), For: d})
	if r.Fault != "" {
		t.Errorf("the neighbour's connection broke after %d round trips: %s", r.Count, r.Fault)
	}
	return r
}

// TestHostilePeers: each attack ends as the table says, costs bounded memory, leaves nothing, and does not stop the neighbour.
func TestHostilePeers(t *testing.T) {
	g := newGround(t, arena.NoPenalty)
	began := time.Now()
	arena.Do[None](t, g.attacker, "Dozer.Hold", Assault{Pod: "rogue", Server: g.client})
	for _, row := range attacks() {
		t.Run(row.name, func(t *testing.T) { g.attack(t, row) })
	}
	g.patience(t, began)
	t.Logf("%d attacks in %v; the proxy at rest before: %.1f MiB, %d goroutines, %d files\n%-46s %9s %8s %7s %9s %9s %6s  %s\n%s",
		len(attacks()), time.Since(began).Round(time.Millisecond), mib(g.calm.RSS), g.calm.Goroutines, g.calm.FDs,
		"attack", "sent", "peak MiB", "CPU s/s", "p99 calm", "p99 under", "ratio", "ends", strings.Join(g.line, "\n"))
}

// TestAttackersAreKeptOut: who breaks the rules again and again is not let in, and the neighbour hardly notices him.
func TestAttackersAreKeptOut(t *testing.T) {
	g := newGround(t)
	window := max(g.window, 500*time.Millisecond)
	seen := Outcome{Ends: map[string]int{}}
	for _, name := range []string{"rapid reset", "made you reset: DATA after END_STREAM", "CONTINUATION without end", "SETTINGS flood", "PING flood", "toggled initial window"} {
		before := g.watcher.Look(t)
		arena.Do[None](t, g.watcher, "Watcher.Begin", None{})
		var peace, under []time.Duration
		sent := int64(0)
		for range 3 {
			peace = append(peace, g.ask(t, window).P99)
			done := make(chan error, 1)
			var out Outcome
			go func() {
				done <- g.attacker.Call(20*time.Second, "Attacker.Persist", Assault{Name: name, Pod: "rogue", Server: g.server, For: window}, &out)
			}()
			under = append(under, g.ask(t, window).P99)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			for end, n := range out.Ends {
				seen.Ends[end] += n
			}
			sent += out.Sent
		}
		peak := arena.Do[int64](t, g.watcher, "Watcher.Peak", None{})
		if grown := peak - before.RSS; grown > mostGrowth<<20 {
			t.Errorf("%s: the proxy grew by %.1f MiB, from %.1f", name, mib(grown), mib(before.RSS))
		}
		slices.Sort(peace)
		slices.Sort(under)
		g.line = append(g.line, fmt.Sprintf("%-46s %9d %8.1f %9v %9v %6.2f", name, sent, mib(peak),
			peace[1].Round(time.Microsecond), under[1].Round(time.Microsecond), float64(under[1])/float64(peace[1])))
	}
	broke := 0
	for end, n := range seen.Ends {
		if end != keptOut {
			broke += n
		}
	}
	t.Logf("%d connections broke the rules, %d were not let in; medians of three windows of %v\n%-46s %9s %8s %9s %9s %6s\n%s",
		broke, seen.Ends[keptOut], window, "attack", "sent", "peak MiB", "p99 calm", "p99 under", "ratio", strings.Join(g.line, "\n"))
	// One for nothing, then after 1, 2, 4, 8, 16 and 30 seconds.
	if broke > 8 || broke < 2 || seen.Ends[keptOut] < 10 {
		t.Errorf("connections ended as %v", seen.Ends)
	}
	g.watcher.Settled(t, g.calm, slack, 5*time.Second)
}

// patience is how long a connection may come to nothing: a PING after 10 s of silence, and 20 s for its answer.
const patience = 32 * time.Second

// patience wants every connection that came to nothing closed by now. They were opened, before all attacks, to a pod of
// the other node, whose proxy nobody counts.
func (g *ground) patience(t *testing.T, began time.Time) {
	var awake []string
	for {
		if awake = arena.Do[[]string](t, g.attacker, "Dozer.Awake", None{}); len(awake) == 0 {
			return
		}
		if time.Since(began) > patience {
			t.Errorf("still open after %v: %q", time.Since(began).Round(time.Second), awake)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// attack runs one row: two rounds of a window in peace and one under attack.
func (g *ground) attack(t *testing.T, row attack) {
	before := g.watcher.Look(t)
	arena.Do[None](t, g.watcher, "Watcher.Begin", None{})
	total := Outcome{Ends: map[string]int{}}
	var peace, under []time.Duration
	var busy, lasted time.Duration
	window := 2 * g.window
	if row.mob != nil {
		window *= 3 // so many connections take their time
	}
	for range 2 {
		peace = append(peace, g.ask(t, g.window).P99)
		cpu, start := g.watcher.Look(t).CPU, time.Now()
		done := make(chan error, 1)
		var out Outcome
		go func() {
			done <- g.attacker.Call(20*time.Second, "Attacker.Run", Assault{Name: row.name, Pod: "rogue", Server: g.server, For: window}, &out)
		}()
		r := g.ask(t, window)
		if r.Count == 0 || r.P99 > time.Second {
			t.Errorf("the neighbour made %d round trips, p99 %v", r.Count, r.P99)
		}
		under = append(under, r.P99)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		busy, lasted = busy+g.watcher.Look(t).CPU-cpu, lasted+time.Since(start)
		for end, n := range out.Ends {
			total.Ends[end] += n
		}
		total.Sent += out.Sent
		total.Notes = append(total.Notes, out.Notes...)
	}
	peak := arena.Do[int64](t, g.watcher, "Watcher.Peak", None{})
	if len(total.Ends) == 0 {
		t.Error("no connection of the attack came to an end")
	}
	for end, n := range total.Ends {
		// Bytes that the server never read turn its close into a reset, which may overtake its last words.
		if end == closed && slices.ContainsFunc(row.want, func(told string) bool { return strings.HasPrefix(told, "GOAWAY") && total.Ends[told] > n }) {
			continue
		}
		if !slices.Contains(row.want, end) {
			t.Errorf("%d connections ended with %q, want one of %q; %q", n, end, row.want, total.Notes)
		}
	}
	if grown := peak - before.RSS; grown > row.growth() {
		t.Errorf("the proxy grew by %.1f MiB, from %.1f; more than %.0f is too much", mib(grown), mib(before.RSS), mib(row.growth()))
	}
	g.watcher.Settled(t, g.calm, slack, 5*time.Second)
	calm, loud := (peace[0]+peace[1])/2, (under[0]+under[1])/2
	g.line = append(g.line, fmt.Sprintf("%-46s %9d %8.1f %7.2f %9v %9v %6.1f  %s", row.name, total.Sent, mib(peak), busy.Seconds()/lasted.Seconds(),
		calm.Round(time.Microsecond), loud.Round(time.Microsecond), float64(loud)/float64(calm), ends(total.Ends)))
}

func ends(m map[string]int) string {
	var words []string
	for end, n := range m {
		words = append(words, fmt.Sprintf("%d %s", n, end))
	}
	slices.SortFunc(words, cmp.Compare[string])
	return strings.Join(words, ", ")
}

// slack is for goroutines and sockets that come and go with the proxy's own life: discovery, the admin page that is asked.
const slack = 6

// TestHostileServers: the far end of a tunnel is in hostile hands, and the proxy on the client's side has other clients too.
func TestHostileServers(t *testing.T) {
	a := arena.Up(t, arena.Pod{Name: "client", Node: "node-1", Mesh: true}, arena.Pod{Name: "caller", Node: "node-1", Mesh: true},
		arena.Pod{Name: "server", Node: "node-2", Mesh: true}, arena.Pod{Name: "evil", Node: "node-2", Own: true})
	evil, caller := a.Agent(t, arena.InPod("evil")), a.Agent(t, arena.InPod("caller"))
	g := &ground{server: a.IP(t, "server").String(), neighbour: a.Agent(t, arena.InPod("client")), watcher: a.Watch(t, "node-1")}
	arena.Do[None](t, a.Agent(t, arena.InPod("server")), "Victim.Serve", None{})
	g.ask(t, time.Second)
	g.calm = g.watcher.Look(t)
	addr := net.JoinHostPort(a.IP(t, "evil").String(), "80")
	for _, row := range impostures() {
		t.Run(row.name, func(t *testing.T) {
			window := 300 * time.Millisecond
			if row.deafApp {
				window = time.Second // the sockets between fill first
			}
			before := g.watcher.Look(t)
			arena.Do[None](t, g.watcher, "Watcher.Begin", None{})
			arena.Do[None](t, evil, "Impostor.Begin", Assault{Name: row.name, Pod: "evil", For: window})
			done := make(chan Outcome, 1)
			go func() {
				var out Outcome
				if err := caller.Call(20*time.Second, "Caller.Call", Window{Addr: addr, For: window, Deaf: row.deafApp}, &out); err != nil {
					out.Notes = append(out.Notes, err.Error())
				}
				done <- out
			}()
			r := g.ask(t, window)
			called := <-done
			time.Sleep(50 * time.Millisecond)
			conns := arena.Do[Outcome](t, evil, "Impostor.End", None{})
			peak := arena.Do[int64](t, g.watcher, "Watcher.Peak", None{})
			if len(called.Ends) == 0 || r.Count == 0 || r.P99 > time.Second {
				t.Errorf("calls %v %q; the neighbour made %d round trips, p99 %v", called.Ends, called.Notes, r.Count, r.P99)
			}
			for end, n := range conns.Ends {
				if !slices.Contains(row.want, end) {
					t.Errorf("%d tunnels ended with %q, want one of %q; %q", n, end, row.want, conns.Notes)
				}
			}
			if grown := peak - before.RSS; grown > row.growth() {
				t.Errorf("the proxy grew by %.1f MiB, from %.1f", mib(grown), mib(before.RSS))
			}
			g.watcher.Settled(t, g.calm, slack, 5*time.Second)
			g.line = append(g.line, fmt.Sprintf("%-40s %8d %8.1f %9v  %-60s %s", row.name, conns.Sent, mib(peak), r.P99.Round(time.Microsecond), ends(conns.Ends), ends(called.Ends)))
		})
	}
	t.Logf("the client's proxy at rest before: %.1f MiB\n%-40s %8s %8s %9s  %-60s %s\n%s", mib(g.calm.RSS),
		"imposture", "sent", "peak MiB", "p99 under", "tunnels", "calls", strings.Join(g.line, "\n"))
}
