package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/perf/account"
	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/scenario"
)

// loads places a scenario's load on the lab's pods.
func (w *world) loads(s scenario.Scenario) ([]placed, error) {
	var out []placed
	if s.Requested() {
		spec := s.Load
		spec.Targets = []string{w.serviceAddr(s)}
		return []placed{{pod: client(0), spec: spec}}, nil
	}
	for i := range max(1, s.Pairs) {
		spec := s.Load
		from, to := client(i), server(i)
		if s.Near {
			to = near
		}
		spec.Targets = []string{w.addr(to)}
		switch spec.Kind {
		case load.Cold:
			spec.Targets = nil
			for k := range max(1, s.Pairs) {
				spec.Targets = append(spec.Targets, w.addr(server(k)))
			}
		case load.Handshake:
			from = outsider // the mesh would take the connection for itself
			spec.Targets = []string{net.JoinHostPort(w.ips[to], strconv.Itoa(hbonePort))}
			material, err := w.clientCertificate()
			if err != nil {
				return nil, err
			}
			spec.TLS = material
		default: // one target
		}
		out = append(out, placed{pod: from, spec: spec})
	}
	return out, nil
}

// steady measures a load that does not change.
func (b *bench) steady(ctx context.Context, w *world, block result.Block, s scenario.Scenario, count bool) (m measured, err error) {
	ratio, err := b.calibrate(ctx)
	if err != nil {
		return m, err
	}
	loads, err := w.loads(s)
	if err != nil {
		return m, err
	}
	ss, err := w.startAll(ctx, loads)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, ss.end()) }()
	if _, err := ss.phase(s.Warm); err != nil {
		return m, fmt.Errorf("warm up: %w", err)
	}
	var rest used // of proxies that do nothing, per second
	if s.How == scenario.Cold {
		if rest, err = w.atRest(ctx); err != nil {
			return m, err
		}
	}
	before, err := w.see()
	if err != nil {
		return m, err
	}
	finish := b.profiler.start(ctx, w, block, nodes(s), s.Measure)
	defer finish()
	report, err := ss.phase(s.Measure)
	if err != nil {
		return m, err
	}
	used, err := w.since(before)
	if err != nil {
		return m, err
	}
	finish() // what comes next is not to be in it
	used.subtract(rest, report.Seconds)
	if w.proxied() && used.of(s).CPU == 0 {
		return m, errors.New("the proxies used no CPU: the load did not go through them")
	}
	m = measured{seconds: report.Seconds, noise: used.noise, metrics: map[string]float64{}}
	m.noise.Calibration = ratio
	fill(m.metrics, s, report, used, w.proxied())
	if report.Latency != nil {
		report.Latency.Each(func(upTo time.Duration, n uint64) {
			m.histogram = append(m.histogram, result.Bucket{UpTo: micros(upTo), Count: n})
		})
	}
	if !count {
		return m, nil
	}
	return m, errors.Join(b.count(ctx, w, s, ss, m.metrics), b.records(ctx, w, s, ss, m.metrics))
}

// view is one look at everything.
type view struct {
	looked  time.Time // at the table
	pids    proxies
	usage   map[string]account.Usage // node -> of its proxy
	own     time.Duration            // of this program
	machine account.Machine
	table   account.Table
}

// see looks: what takes long first, so that the figures that matter are of the
// last moment.
func (w *world) see() (v view, err error) {
	v.looked = time.Now()
	if v.table, err = account.ReadTable(); err != nil {
		return v, err
	}
	if v.pids, err = w.proxies(v.table); err != nil {
		return v, err
	}
	if v.own, err = account.CPU(os.Getpid()); err != nil {
		return v, err
	}
	if v.machine, err = account.ReadMachine(); err != nil {
		return v, err
	}
	v.usage, err = usage(v.pids)
	return v, err
}

func usage(pids proxies) (map[string]account.Usage, error) {
	out := map[string]account.Usage{}
	for node, list := range pids {
		for _, pid := range list {
			u, err := account.Read(pid)
			if err != nil {
				return nil, fmt.Errorf("proxy on %s ended: %w", node, err)
			}
			have := out[node]
			out[node] = account.Usage{
				CPU: have.CPU + u.CPU, Switches: have.Switches + u.Switches,
				ReadCalls: have.ReadCalls + u.ReadCalls, WriteCalls: have.WriteCalls + u.WriteCalls,
			}
		}
	}
	return out, nil
}

// used is what was used between two looks.
type used struct {
	usage map[string]account.Usage
	busy  time.Duration // of the machine, without this program
	noise result.Noise
}

// of is the use of the proxies that a scenario is about.
func (u used) of(s scenario.Scenario) account.Usage {
	var sum account.Usage
	for place, p := range u.usage {
		if s.Requested() != (waypointOf(place+"-") != "") || s.Requested() && place != gateway(s.Through.Routes) {
			continue
		}
		sum.CPU += p.CPU
		sum.Switches += p.Switches
		sum.ReadCalls += p.ReadCalls
		sum.WriteCalls += p.WriteCalls
	}
	return sum
}

// atRest is what the proxies use without load, for a scenario that pauses most
// of the time.
func (w *world) atRest(ctx context.Context) (used, error) {
	before, err := w.see()
	if err != nil {
		return used{}, err
	}
	if err := wait(ctx, time.Second); err != nil {
		return used{}, err
	}
	return w.since(before)
}

// subtract takes the use of a second at rest off, as often as it was at rest.
func (u *used) subtract(rest used, seconds float64) {
	for node, r := range rest.usage {
		have := u.usage[node]
		have.CPU = max(0, have.CPU-time.Duration(float64(r.CPU)*seconds))
		u.usage[node] = have
	}
}

func (w *world) since(before view) (u used, err error) {
	after, err := usage(before.pids)
	if err != nil {
		return u, err
	}
	machine, err := account.ReadMachine()
	if err != nil {
		return u, err
	}
	own, err := account.CPU(os.Getpid())
	if err != nil {
		return u, err
	}
	looked := time.Now()
	table, err := account.ReadTable()
	if err != nil {
		return u, err
	}
	u.usage = map[string]account.Usage{}
	for node, a := range after {
		u.usage[node] = a.Sub(before.usage[node])
	}
	u.busy = max(0, machine.Busy(before.machine)-(own-before.own))
	ours := table.Tree(w.pid)
	for pid := range before.table.Tree(w.pid) {
		ours[pid] = true
	}
	ours[os.Getpid()] = true
	// Looking at the table takes a while: its window is a little wider.
	all := float64(machine.CPUs) * float64(looked.Sub(before.looked))
	foreign := float64(table.Foreign(before.table, ours)) / max(all, 1)
	u.noise = result.Noise{Steal: machine.Stolen(before.machine), Foreign: min(1, foreign)}
	return u, nil
}

// count adds the counters to metrics: a further phase of the same load, under
// observation and therefore not timed.
func (b *bench) count(ctx context.Context, w *world, s scenario.Scenario, ss sessions, metrics map[string]float64) (err error) {
	const least = 400 * time.Millisecond
	frames, copied := w.tunnels(ctx, nodes(s)) // answering costs allocations
	heap := newHeap(ctx, w, nodes(s))
	table, err := account.ReadTable()
	if err != nil {
		return err
	}
	pids, err := w.proxies(table)
	if err != nil {
		return err
	}
	calls := openCounters(pids)
	defer func() { err = errors.Join(err, calls.close()) }()
	before, err := usage(pids)
	if err != nil {
		return err
	}
	began, err := calls.read()
	if err != nil {
		return err
	}
	report, err := ss.phase(max(least, s.Measure/6))
	if err != nil {
		return fmt.Errorf("counting: %w", err)
	}
	ended, err := calls.read()
	if err != nil {
		return err
	}
	after, err := usage(pids)
	if err != nil {
		return err
	}
	c := counts{calls: map[string]float64{}, allocs: heap.since(ctx)}
	c.frames, c.copied = w.tunnels(ctx, nodes(s))
	subtract(c.frames, frames)
	subtract(c.copied, copied)
	for node := range pids {
		u := after[node].Sub(before[node])
		if !s.Requested() || slices.Contains(nodes(s), node) {
			c.switches += float64(u.Switches)
		}
		if n, ok := ended[node]; ok {
			c.calls[node] = float64(n - began[node])
		} else {
			// Where the kernel does not let us count: what it counts anyway.
			// That misses recv and send, so it is no figure to compare peers by.
			c.calls[node] = float64(u.ReadCalls + u.WriteCalls)
			c.partial = true
		}
	}
	c.fill(metrics, s, report)
	return nil
}

// counters count system calls per node.
type counters map[string][]*netsys.SyscallCounter

// Countable says why system calls cannot be counted on this machine by this
// user, nil if they can.
func Countable() error {
	c, err := netsys.CountSyscalls(os.Getpid())
	if err != nil {
		return err
	}
	return c.Close()
}

// openCounters begins to count where that is allowed: as root.
func openCounters(pids proxies) counters {
	out := counters{}
	for node, list := range pids {
		for _, pid := range list {
			c, err := netsys.CountSyscalls(pid)
			if err != nil {
				_ = counters{node: out[node]}.close() // half a count is none
				delete(out, node)
				break
			}
			out[node] = append(out[node], c)
		}
	}
	return out
}

func (c counters) read() (map[string]uint64, error) {
	out := map[string]uint64{}
	for node, list := range c {
		for _, one := range list {
			n, err := one.Count()
			if err != nil {
				return nil, err
			}
			out[node] += n
		}
	}
	return out, nil
}

func (c counters) close() error {
	var errs []error
	for _, list := range c {
		for _, one := range list {
			errs = append(errs, one.Close())
		}
	}
	return errors.Join(errs...)
}

// heap counts allocations of proxies that publish them.
type heap struct {
	w    *world
	at   []string           // nodes or gateways
	base map[string]float64 // after the second scrape
	cost map[string]float64 // of a scrape itself
}

func newHeap(ctx context.Context, w *world, at []string) heap {
	w.mallocs(ctx, at) // the first is dearer than the others
	first := w.mallocs(ctx, at)
	second := w.mallocs(ctx, at)
	h := heap{w: w, at: at, base: second, cost: map[string]float64{}}
	for node, n := range second {
		h.cost[node] = n - first[node]
	}
	return h
}

// since is the allocations per node since the second scrape, without those of
// the last.
func (h heap) since(ctx context.Context) map[string]float64 {
	out := map[string]float64{}
	for node, n := range h.w.mallocs(ctx, h.at) {
		if base, ok := h.base[node]; ok {
			out[node] = max(0, n-base-h.cost[node])
		}
	}
	return out
}

// mallocs scrapes the count of heap allocations of a proxy in Go; nodes whose
// proxy does not tell are left out. The count in /metrics would not do: it lags
// behind by some thousand, while a heap profile stops the world and collects
// what each processor has counted.
func (w *world) mallocs(ctx context.Context, at []string) map[string]float64 {
	out := map[string]float64{}
	for _, node := range at {
		text, err := w.fetch(ctx, node, "http://127.0.0.1:15000/debug/pprof/allocs?debug=1")
		if err != nil {
			continue // no program in Go
		}
		if n, ok := profileValue(text, "Mallocs"); ok {
			out[node] = n
		}
	}
	return out
}

// tunnels scrapes what proxies that publish it say of their tunnels; the others
// are left out.
func (w *world) tunnels(ctx context.Context, at []string) (frames, copied map[string]float64) {
	frames, copied = map[string]float64{}, map[string]float64{}
	for _, node := range at {
		text, err := w.fetch(ctx, node, "http://127.0.0.1:15020/metrics")
		if err != nil {
			continue
		}
		for name, to := range map[string]map[string]float64{"marrow_tunnel_frames_total": frames, "marrow_tunnel_copied_bytes_total": copied} {
			if n, ok := sampleValue(text, name); ok {
				to[node] = n
			}
		}
	}
	return frames, copied
}

// sampleValue finds the value of a series without labels in Prometheus' text.
func sampleValue(text, name string) (float64, bool) {
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) == 2 && words[0] == name {
			n, err := strconv.ParseFloat(words[1], 64)
			return n, err == nil
		}
	}
	return 0, false
}

// subtract takes before from now; what was not there before is dropped.
func subtract(now, before map[string]float64) {
	for k := range now {
		if n, ok := before[k]; ok {
			now[k] -= n
		} else {
			delete(now, k)
		}
	}
}

// profileValue finds a "# Name = value" line of a heap profile's text.
func profileValue(text, name string) (float64, bool) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 4 && words[0] == "#" && words[1] == name {
			n, err := strconv.ParseFloat(words[3], 64)
			return n, err == nil
		}
	}
	return 0, false
}

// nodes of a scenario's proxies: near has one. For requests it is the waypoint.
func nodes(s scenario.Scenario) []string {
	if s.Requested() {
		return []string{gateway(s.Through.Routes)}
	}
	if s.Near {
		return []string{nodeA}
	}
	return []string{nodeA, nodeB}
}

// wants says whether a scenario has a metric.
func wants(s scenario.Scenario, name string) bool {
	return slices.ContainsFunc(s.Metrics, func(m result.Metric) bool { return m.Name == name })
}
