package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/perf/account"
	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/scenario"
)

// Impl is one implementation to measure.
type Impl struct {
	Name string // result.Direct, result.Marrow or a peer's
	// Ztunnel is the command of the node proxy in words; empty = ours.
	Ztunnel []string
	// Env is added to the proxy's environment, NAME=value.
	Env []string
	// Plain is one of PlainPrograms: Ztunnel is then no ztunnel but that
	// program's command, which forwards TCP in the place of a mesh.
	Plain string
	// Waypoint is another waypoint's command in words; the node proxies are ours.
	Waypoint []string
}

// mesh says whether the lab is in a mesh.
func (i Impl) mesh() bool { return i.Name != result.Direct && i.Plain == "" }

// proxied says whether something stands between the pods.
func (i Impl) proxied() bool { return i.Name != result.Direct }

// Config says what to run.
type Config struct {
	Scenarios []scenario.Scenario
	Impls     []Impl
	Blocks    []result.Block // in this order
	// Lab is what all labs have in common: directories, kind of namespaces.
	Lab lab.Options
	// CountRounds is how many rounds of each scenario have a counting phase; 0 = 2.
	CountRounds int
	// Profile is a directory for CPU profiles of our own proxies in their timed
	// blocks; empty = none. Taking them costs, so such a run compares with no other.
	Profile string
	// Tell gets progress; nil = nobody.
	Tell func(Progress)
}

// Progress is what the bench does now.
type Progress struct {
	Text string
	// Done and Total count blocks; zero while the labs boot.
	Done, Total int
	Left        time.Duration // estimated
}

// bench is a run.
type bench struct {
	cfg       Config
	scenarios map[string]scenario.Scenario
	impls     map[string]Impl
	fleet     *fleet
	profiler  profiler
	cal       *account.Calibrator
	counted   map[result.Block]int // round zero: scenario and implementation -> rounds with counts
	rates     map[string]float64   // scenario -> rate of its HalfOf
	ratios    []float64            // of all calibrations so far, sorted
	waited    time.Duration        // for a calm machine, so far
	clock     estimate             // of the time left
	machine   result.Machine       // filled as it becomes known
}

// Run measures all blocks. On an interrupt it returns what it has, with the
// context's error.
func Run(ctx context.Context, cfg Config) (run result.Run, err error) {
	began := time.Now()
	b, err := newBench(cfg)
	if err != nil {
		return run, err
	}
	raiseFileLimit()
	b.machine = describe(began)
	run = result.Run{Scenarios: scenario.Results(cfg.Scenarios)}
	for _, i := range cfg.Impls {
		run.Impls = append(run.Impls, i.Name)
	}
	defer func() {
		b.tell("taking the labs down")
		err = errors.Join(err, b.fleet.down(context.WithoutCancel(ctx)))
		b.machine.Wall = time.Since(began).Seconds()
		run.Machine = b.machine
	}()
	if err := b.boot(ctx); err != nil {
		return run, err
	}
	b.cal = account.NewCalibrator()
	b.clock.began = time.Now()
	for i, block := range b.cfg.Blocks {
		if ctx.Err() != nil {
			return run, context.Cause(ctx)
		}
		s := b.scenarios[block.Scenario]
		b.announce(i, block)
		sample := b.block(ctx, block, s)
		b.clock.done(s)
		if sample.Failed != "" {
			b.tell(fmt.Sprintf("%s, %s, round %d failed: %s", block.Scenario, block.Impl, block.Round, sample.Failed))
		}
		if ctx.Err() == nil {
			run.Samples = append(run.Samples, sample)
		}
	}
	return run, ctx.Err()
}

func newBench(cfg Config) (*bench, error) {
	if cfg.CountRounds == 0 {
		cfg.CountRounds = 2
	}
	b := &bench{
		cfg: cfg, scenarios: map[string]scenario.Scenario{}, impls: map[string]Impl{}, counted: map[result.Block]int{},
		rates: map[string]float64{},
	}
	for _, s := range cfg.Scenarios {
		b.scenarios[s.Name] = s
	}
	for _, i := range cfg.Impls {
		if _, twice := b.impls[i.Name]; twice || i.Name == "" {
			return nil, fmt.Errorf("implementation %q: every one needs a name of its own", i.Name)
		}
		if err := lab.CheckName(labPrefix + i.Name + coldSuffix); err != nil {
			return nil, fmt.Errorf("implementation %q: %w", i.Name, err)
		}
		b.impls[i.Name] = i
	}
	b.cfg.Blocks = nil
	for _, block := range cfg.Blocks {
		s, known := b.scenarios[block.Scenario]
		if _, ok := b.impls[block.Impl]; !ok || !known {
			return nil, fmt.Errorf("block %+v names a scenario or an implementation that is not there", block)
		}
		// Without a mesh there is nothing to see of its proxies.
		if (block.Impl != result.Direct || !s.NeedsMesh()) && b.impls[block.Impl].able(s) {
			b.cfg.Blocks = append(b.cfg.Blocks, block)
			b.clock.rest += s.Seconds
		}
	}
	if cfg.Profile != "" {
		if err := os.MkdirAll(cfg.Profile, 0o755); err != nil {
			return nil, fmt.Errorf("directory for profiles: %w", err)
		}
	}
	b.profiler = profiler{dir: cfg.Profile, tell: b.tell, fetch: fetchFrom}
	b.fleet = newFleet(cfg, b.tell)
	return b, nil
}

// boot starts every lab that the blocks need and sees that it is in order.
func (b *bench) boot(ctx context.Context) error {
	for _, i := range b.cfg.Impls {
		uses := b.uses(i)
		for u := range ofRequests + 1 {
			if !uses[u] {
				continue
			}
			w, err := b.fleet.get(ctx, i, u)
			if err != nil {
				return err
			}
			switch u {
			case ofPods:
				if err := b.inspect(ctx, w); err != nil {
					return fmt.Errorf("lab of %s: %w", i.Name, err)
				}
			case ofRequests:
				b.inspectWaypoints(ctx, w)
			case ofCold, ofTwo:
			}
		}
	}
	return b.checkIdle(ctx)
}

// uses are the labs that an implementation needs for its blocks.
func (b *bench) uses(i Impl) map[use]bool {
	out := map[use]bool{}
	for _, block := range b.cfg.Blocks {
		if s := b.scenarios[block.Scenario]; block.Impl == i.Name && s.How != scenario.Routes {
			out[useOf(s)] = true
		}
	}
	if !i.mesh() && len(out) > 0 {
		return map[use]bool{ofPods: true}
	}
	return out
}

// checkIdle says so when labs that nobody loads need CPU: then they disturb
// the others.
func (b *bench) checkIdle(ctx context.Context) error {
	use := func() (map[string]time.Duration, error) {
		out := map[string]time.Duration{}
		table, err := account.ReadTable()
		if err != nil {
			return nil, err
		}
		for _, w := range b.fleet.all() {
			for pid := range table.Tree(w.pid) {
				if d, err := account.CPU(pid); err == nil { // it may have ended
					out[w.name()] += d
				}
			}
		}
		return out, nil
	}
	if err := wait(ctx, time.Second); err != nil { // what their start left to do
		return err
	}
	before, err := use()
	if err != nil {
		return err
	}
	const look = time.Second
	if err := wait(ctx, look); err != nil {
		return err
	}
	after, err := use()
	if err != nil {
		return err
	}
	for _, w := range b.fleet.all() {
		part := float64(after[w.name()]-before[w.name()]) / float64(look)
		b.tell(fmt.Sprintf("lab %s at rest uses %.1f %% of one CPU", w.name(), 100*part))
	}
	return nil
}

func (b *bench) tell(text string) {
	if b.cfg.Tell != nil {
		b.cfg.Tell(Progress{Text: text, Left: b.clock.left(time.Now())})
	}
}

func (b *bench) announce(i int, block result.Block) {
	if b.cfg.Tell == nil {
		return
	}
	rounds := 0
	for _, o := range b.cfg.Blocks {
		rounds = max(rounds, o.Round)
	}
	b.cfg.Tell(Progress{
		Text: fmt.Sprintf("round %d of %d: %s, %s", block.Round, rounds, block.Scenario, block.Impl),
		Done: i, Total: len(b.cfg.Blocks), Left: b.clock.left(time.Now()),
	})
}

// estimate tells the time left from the table's times and how true they were.
type estimate struct {
	began        time.Time
	passed, rest float64 // seconds, as the table has them
}

func (e *estimate) total() time.Duration {
	return time.Duration((e.passed + e.rest) * float64(time.Second))
}

func (e *estimate) done(s scenario.Scenario) {
	e.passed += s.Seconds
	e.rest -= s.Seconds
}

func (e *estimate) left(now time.Time) time.Duration {
	factor := 1.0
	if e.passed > 10 {
		factor = now.Sub(e.began).Seconds() / e.passed
	}
	return time.Duration(e.rest * factor * float64(time.Second)).Round(time.Second)
}

// block measures one block. Its errors are in the sample: the others go on.
func (b *bench) block(ctx context.Context, block result.Block, s scenario.Scenario) result.Sample {
	sample := result.Sample{Scenario: block.Scenario, Impl: block.Impl, Round: block.Round, Start: time.Now().UTC()}
	m, err := b.carryOut(ctx, block, s)
	if err != nil {
		sample.Failed = err.Error()
		return sample
	}
	sample.Metrics, sample.Histogram = m.metrics, m.histogram
	sample.Seconds, sample.Noise = m.seconds, m.noise
	return sample
}

// calibrate waits until what the last block left behind is done, and times the
// fixed loop. When that is off, it waits a little for the machine to be calm
// again: a block that is not begun need not be dropped. It knows no
// implementation, so it favours none.
func (b *bench) calibrate(ctx context.Context) (float64, error) {
	for try := 1; ; try++ {
		if err := wait(ctx, settle); err != nil {
			return 0, err
		}
		r := b.cal.Ratio()
		b.ratios = append(b.ratios, r)
		slices.Sort(b.ratios)
		usual := b.ratios[len(b.ratios)/2]
		if math.Abs(r/usual-1) < calm || try == tries || b.waited > b.clock.total()/20 {
			return r, nil
		}
		b.waited += settle
	}
}

const (
	// settle is how long connections that were closed take to be gone.
	settle = 100 * time.Millisecond
	// calm is how far from its median the loop may be; the rule by which a
	// round is dropped is wider.
	calm = 0.04
	// tries bound the wait to about half a second; all of them together take
	// at most a twentieth of the run.
	tries = 5
)

// measured is what a block gave.
type measured struct {
	metrics   map[string]float64
	histogram []result.Bucket
	seconds   float64
	noise     result.Noise
}

func (b *bench) carryOut(ctx context.Context, block result.Block, s scenario.Scenario) (measured, error) {
	impl := b.impls[block.Impl]
	switch s.How {
	case scenario.Held, scenario.Burst:
		return b.fresh(ctx, impl, s)
	case scenario.Routes:
		return b.routes(ctx, impl, s)
	case scenario.Steady, scenario.Beside, scenario.Cold:
	}
	w, err := b.fleet.get(ctx, impl, useOf(s))
	if err != nil {
		return measured{}, err
	}
	if s.HalfOf != "" {
		if s.Load.Rate, err = b.half(ctx, s); err != nil {
			return measured{}, err
		}
	}
	if s.How == scenario.Beside {
		return b.beside(ctx, w, block, s)
	}
	count := false
	if w.proxied() {
		key := result.Block{Scenario: block.Scenario, Impl: block.Impl}
		count = b.counted[key] < b.cfg.CountRounds
		b.counted[key]++
	}
	return b.steady(ctx, w, block, s, count)
}

// half is half of what the slowest implementation reached in the closed loop
// that s names, measured once and the same for all.
func (b *bench) half(ctx context.Context, s scenario.Scenario) (float64, error) {
	if r, ok := b.rates[s.Name]; ok {
		return r, nil
	}
	var closed scenario.Scenario
	for _, c := range scenario.All() {
		if c.Name == s.HalfOf {
			closed = c
		}
	}
	slowest, rate := 0.0, "rt_per_s"
	if s.Requested() {
		rate = "req_per_s"
	}
	for _, i := range b.cfg.Impls {
		if !i.able(s) {
			continue
		}
		w, err := b.fleet.get(ctx, i, useOf(s))
		if err != nil {
			return 0, err
		}
		m, err := b.steady(ctx, w, result.Block{}, closed, false) // of no round: without profiles
		if err != nil {
			return 0, fmt.Errorf("find the maximum of %s: %w", i.Name, err)
		}
		b.tell(fmt.Sprintf("%s does at most %.0f a second of %s", i.Name, m.metrics[rate], closed.Name))
		if slowest == 0 || m.metrics[rate] < slowest {
			slowest = m.metrics[rate]
		}
	}
	b.rates[s.Name] = max(1, slowest/2)
	return b.rates[s.Name], nil
}

// wait waits.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// raiseFileLimit gives the labs what a container runtime would. Set here, it
// is inherited; Go's own raising of the soft limit is not.
func raiseFileLimit() {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return
	}
	const want = 1 << 20
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: max(want, l.Max), Max: max(want, l.Max)}) != nil {
		// Without the right to raise the hard limit: as far as it goes. What
		// needs more says so itself.
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: l.Max, Max: l.Max})
	}
}

// byName keeps worlds in a stable order.
func byName(a, b *world) int { return cmp.Compare(a.name(), b.name()) }
