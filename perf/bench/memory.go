package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/marrowmesh/marrow/perf/account"
	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/scenario"
)

// holding is the memory at one moment.
type holding struct {
	proxies map[string]account.Memory
	kernel  account.Kernel
}

// rss is the mean over the proxies, in MiB.
func (h holding) rss() float64 {
	sum := 0.0
	for _, m := range h.proxies { // of a lab without waypoints
		sum += float64(m.RSS)
	}
	return sum / float64(max(1, len(h.proxies))) / (1 << 20)
}

func (w *world) holding(pids proxies) (h holding, err error) {
	h.proxies = map[string]account.Memory{}
	for node, list := range pids {
		for _, pid := range list {
			m, err := account.ReadMemory(pid)
			if err != nil {
				return h, fmt.Errorf("proxy on %s ended: %w", node, err)
			}
			have := h.proxies[node]
			h.proxies[node] = account.Memory{RSS: have.RSS + m.RSS, Anon: have.Anon + m.Anon}
		}
	}
	h.kernel, err = account.ReadKernel()
	return h, err
}

// fresh measures memory in a lab of its own: what earlier load left behind in
// a proxy would hide what the next needs.
func (b *bench) fresh(ctx context.Context, i Impl, s scenario.Scenario) (m measured, err error) {
	w, err := b.fleet.fresh(ctx, i)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, b.fleet.release(ctx, w)) }()
	// Some connections, so that both proxies have done everything once.
	if err := w.touch(ctx, client(0), load.Spec{Kind: load.Connect, Conns: 1, Targets: []string{w.addr(server(0))}}); err != nil {
		return m, err
	}
	const rest = time.Second
	if err := wait(ctx, rest); err != nil {
		return m, err
	}
	m = measured{metrics: map[string]float64{}}
	if m.noise.Calibration, err = b.calibrate(ctx); err != nil {
		return m, err
	}
	table, err := account.ReadTable()
	if err != nil {
		return m, err
	}
	pids, err := w.proxies(table)
	if err != nil {
		return m, err
	}
	machine, err := account.ReadMachine()
	if err != nil {
		return m, err
	}
	base, err := w.holding(pids)
	if err != nil {
		return m, err
	}
	if w.proxied() {
		m.metrics["base_rss_mib"] = base.rss()
	}
	spec := s.Load
	spec.Targets = []string{w.addr(server(0))}
	began := time.Now()
	if s.How == scenario.Held {
		err = w.held(ctx, s, spec, pids, base, m.metrics)
	} else {
		err = w.burst(ctx, s, spec, pids, m.metrics)
	}
	if err != nil {
		return m, err
	}
	m.seconds = time.Since(began).Seconds()
	after, err := account.ReadMachine()
	m.noise.Steal = after.Stolen(machine)
	return m, err
}

// held looks at idle connections.
func (w *world) held(ctx context.Context, s scenario.Scenario, spec load.Spec, pids proxies, base holding, metrics map[string]float64) (err error) {
	ss, err := w.startAll(ctx, []placed{{pod: client(0), spec: spec}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ss.end()) }()
	if err := wait(ctx, s.Wait); err != nil {
		return err
	}
	h, err := w.holding(pids)
	if err != nil {
		return err
	}
	per := func(after, before uint64) float64 { return (float64(after) - float64(before)) / float64(spec.Conns) }
	metrics["kernel_bytes_per_conn_machine"] = per(h.kernel.Sum(), base.kernel.Sum())
	if w.proxied() {
		source, destination := per(h.proxies[nodeA].Anon, base.proxies[nodeA].Anon), per(h.proxies[nodeB].Anon, base.proxies[nodeB].Anon)
		metrics["user_bytes_per_conn_source"], metrics["user_bytes_per_conn_destination"] = source, destination
		metrics["user_bytes_per_conn"] = (source + destination) / 2
	}
	return nil
}

// burst looks at what is left of many streams.
func (w *world) burst(ctx context.Context, s scenario.Scenario, spec load.Spec, pids proxies, metrics map[string]float64) error {
	ss, err := w.startAll(ctx, []placed{{pod: client(0), spec: spec}})
	if err != nil {
		return err
	}
	_, err = ss.phase(s.Measure)
	peak, lookErr := w.holding(pids)
	if err := errors.Join(err, lookErr, ss.end()); err != nil {
		return err
	}
	if err := wait(ctx, s.Wait); err != nil {
		return err
	}
	h, err := w.holding(pids)
	metrics["rss_peak_mib"], metrics["rss_after_burst_mib"] = peak.rss(), h.rss()
	return err
}

// beside measures a load alone and beside a crowd.
func (b *bench) beside(ctx context.Context, w *world, block result.Block, s scenario.Scenario) (m measured, err error) {
	m = measured{metrics: map[string]float64{}}
	if m.noise.Calibration, err = b.calibrate(ctx); err != nil {
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
		return m, err
	}
	before, err := w.see()
	if err != nil {
		return m, err
	}
	alone, err := ss.phase(s.Measure)
	if err != nil {
		return m, err
	}
	s.Crowd.Targets = loads[0].spec.Targets
	crowd, err := w.startAll(ctx, []placed{{pod: client(0), spec: s.Crowd}})
	if err != nil {
		return m, err
	}
	crowding := make(chan error, 1)
	go func() {
		_, err := crowd.phase(s.Warm + s.Measure + crowdSlack)
		crowding <- err
	}()
	defer func() { err = errors.Join(err, <-crowding, crowd.end()) }()
	if err := wait(ctx, s.Warm); err != nil { // until slow readers have filled every window
		return m, err
	}
	finish := b.profiler.start(ctx, w, block, nodes(s), s.Measure)
	defer finish()
	crowded, err := ss.phase(s.Measure)
	if err != nil {
		return m, fmt.Errorf("beside the crowd: %w", err)
	}
	u, err := w.since(before)
	if err != nil {
		return m, err
	}
	m.noise.Steal, m.noise.Foreign, m.seconds = u.noise.Steal, u.noise.Foreign, crowded.Seconds
	m.metrics["rtt_p50_us"] = micros(crowded.Latency.Quantile(0.5))
	m.metrics["rtt_p99_us"] = micros(crowded.Latency.Quantile(0.99))
	if p99 := alone.Latency.Quantile(0.99); p99 > 0 {
		m.metrics["p99_beside_over_alone"] = float64(crowded.Latency.Quantile(0.99)) / float64(p99)
	}
	crowded.Latency.Each(func(upTo time.Duration, n uint64) {
		m.histogram = append(m.histogram, bucket(upTo, n))
	})
	return m, nil
}

// crowdSlack is how much longer the crowd stays, so that it does not leave
// before the load that is measured beside it.
const crowdSlack = 300 * time.Millisecond
