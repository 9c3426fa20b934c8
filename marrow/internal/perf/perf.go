package perf

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/perf/bench"
	"github.com/marrowmesh/marrow/perf/report"
	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/scenario"
	"github.com/marrowmesh/marrow/perf/stats"
)

// Config is what the command line asks for.
type Config struct {
	Quick     bool
	Scenario  string        // patterns, comma-separated; empty = all of the set
	Rounds    int           // 0 = the set's
	Block     time.Duration // of the measured part; 0 = the table's
	Impls     []string      // empty = direct, marrow and all peers
	Peers     []string      // name=command of a ztunnel
	Plain     []string      // program[=command] that forwards TCP without a mesh
	Waypoints []string      // name=command of a waypoint
	// PeerEnv and MarrowEnv are added to the proxies' environment, NAME=value.
	PeerEnv, MarrowEnv []string
	Out                string // directory of the report; empty = none
	Profile            string // directory of CPU profiles; empty = none
	JSON               bool   // results.json on standard output in the place of tables
	Gate               bool   // counters above their bounds are an error
	Seed               uint64 // of the order; 0 = the time
	Lab                lab.Options
	Command            []string // to repeat the run
	Commit             string   // of the programs, where the linker recorded none
}

// plan is what will run.
type plan struct {
	scenarios []scenario.Scenario
	impls     []bench.Impl
	rounds    int
	seed      uint64
}

// usageError is a request that makes no sense.
type usageError struct{ error }

// Usage marks it for the command line.
func (usageError) Usage() bool { return true }

func (c Config) plan(now time.Time) (plan, error) {
	p := plan{rounds: c.Rounds, seed: c.Seed}
	if p.seed == 0 {
		p.seed = uint64(now.UnixNano())
	}
	all, rounds := scenario.Full(), scenario.FullRounds
	switch {
	case len(c.Waypoints) > 0:
		all = scenario.Requests()
	case c.Quick:
		all, rounds = scenario.Quick(), scenario.QuickRounds
	}
	if p.rounds == 0 {
		p.rounds = rounds
	}
	if p.rounds < 1 {
		return p, usageError{fmt.Errorf("--rounds %d: must be 1 or more", c.Rounds)}
	}
	p.scenarios = all
	if c.Scenario != "" {
		var err error
		if p.scenarios, err = scenario.Match(named(all, c.Quick), c.Scenario); err != nil {
			return p, usageError{err}
		}
	}
	if c.Block < 0 {
		return p, usageError{fmt.Errorf("--block %v: must be positive", c.Block)}
	}
	for i := range p.scenarios {
		if c.Block > 0 {
			p.scenarios[i].Resize(c.Block)
		}
	}
	impls := []bench.Impl{{Name: result.Direct}, {Name: result.Marrow, Env: c.MarrowEnv}}
	for _, text := range c.Peers {
		peer, err := parsePeer(text, c.PeerEnv)
		if err != nil {
			return p, usageError{err}
		}
		impls = append(impls, peer)
	}
	for _, text := range c.Waypoints {
		peer, err := parsePeer(text, nil)
		if err != nil {
			return p, usageError{err}
		}
		impls = append(impls, bench.Impl{Name: peer.Name, Waypoint: peer.Ztunnel})
	}
	for _, text := range c.Plain {
		plain, err := parsePlain(text)
		if err != nil {
			return p, usageError{err}
		}
		impls = append(impls, plain)
	}
	for _, kv := range slices.Concat(c.PeerEnv, c.MarrowEnv) {
		if !strings.Contains(kv, "=") {
			return p, usageError{fmt.Errorf("environment %q: must be NAME=value", kv)}
		}
	}
	if c.Profile != "" && len(c.Impls) > 0 && !slices.Contains(c.Impls, result.Marrow) {
		return p, usageError{fmt.Errorf("--profile %s: only proxies of %s are profiled, name it in --impl", c.Profile, result.Marrow)}
	}
	if len(c.Impls) == 0 {
		p.impls = impls
		return p, nil
	}
	for _, name := range c.Impls {
		i := slices.IndexFunc(impls, func(i bench.Impl) bool { return i.Name == name })
		if i < 0 {
			return p, usageError{fmt.Errorf("--impl %q: is neither %s, %s nor a --peer or --waypoint", name, result.Direct, result.Marrow)}
		}
		p.impls = append(p.impls, impls[i])
	}
	return p, nil
}

// named is what --scenario chooses from: everything, but the quick blocks of the quick set.
func named(set []scenario.Scenario, quick bool) []scenario.Scenario {
	if quick {
		return set
	}
	return scenario.All()
}

// parsePeer reads name=command.
func parsePeer(text string, env []string) (bench.Impl, error) {
	name, line, ok := strings.Cut(text, "=")
	words, err := lab.SplitWords(line)
	if err != nil || !ok || name == "" || len(words) == 0 || name == result.Direct || name == result.Marrow {
		return bench.Impl{}, fmt.Errorf("peer %q: must be name=command, and the name another than %s and %s: %w",
			text, result.Direct, result.Marrow, errors.Join(err, errNoPeer))
	}
	// A relative path is the caller's, not the pod's; the program may stand
	// behind env and its variables.
	for i, w := range words {
		if _, err := os.Stat(w); err != nil || !strings.Contains(w, "/") {
			continue
		}
		if words[i], err = filepath.Abs(w); err != nil {
			return bench.Impl{}, err
		}
	}
	return bench.Impl{Name: name, Ztunnel: words, Env: env}, nil
}

// parsePlain reads a program that is installed, or program=path.
func parsePlain(text string) (bench.Impl, error) {
	name, path, _ := strings.Cut(text, "=")
	if !slices.Contains(bench.PlainPrograms(), name) {
		return bench.Impl{}, fmt.Errorf("--plain %q: must be one of %s, with =PATH where it is not installed", text, strings.Join(bench.PlainPrograms(), ", "))
	}
	path, err := exec.LookPath(cmp.Or(path, name))
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return bench.Impl{}, fmt.Errorf("--plain %q: %w", text, err)
	}
	// Not to be mistaken for a mesh in the tables.
	return bench.Impl{Name: name + "-plain", Plain: name, Ztunnel: []string{path}}, nil
}

var errNoPeer = errors.New("the command is that of a ztunnel, which runs on both nodes, or of a waypoint")

// Run measures and reports. Tables go to out, progress to tell.
func Run(ctx context.Context, c Config, out, tell io.Writer) error {
	began := time.Now()
	p, err := c.plan(began)
	if err != nil {
		return err
	}
	var names []string
	for _, i := range p.impls {
		names = append(names, i.Name)
	}
	say(tell, "%d scenarios, %s, %d rounds\n", len(p.scenarios), strings.Join(names, " | "), p.rounds)
	run, runErr := bench.Run(ctx, bench.Config{
		Scenarios: p.scenarios, Impls: p.impls, Lab: c.Lab, Profile: c.Profile,
		Blocks:      stats.Schedule(scenario.Results(p.scenarios), names, p.rounds, p.seed),
		Tell:        func(p bench.Progress) { progress(tell, began, p) },
		CountRounds: counting(c.Quick),
	})
	run.Machine.Command, run.Machine.Seed = c.Command, p.seed
	run.Machine.Commit = cmp.Or(run.Machine.Commit, c.Commit)
	if len(run.Samples) == 0 {
		return runErr
	}
	file := stats.Analyse(run)
	return errors.Join(runErr, c.publish(run, file, out, tell))
}

// counting is how many rounds of each scenario have a counting phase.
func counting(quick bool) int {
	if quick {
		return 2 // there is no time for more
	}
	return 4
}

func (c Config) publish(run result.Run, file result.File, out, tell io.Writer) error {
	var errs []error
	if c.JSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		errs = append(errs, enc.Encode(file))
	} else {
		report.Tables(out, file)
	}
	if c.Out != "" {
		errs = append(errs, report.Write(c.Out, run, file))
		say(tell, "report: %s\n", filepath.Join(c.Out, "report.html"))
	}
	if c.Gate {
		errs = append(errs, report.Gate(file, budgets(run.Scenarios, bench.Countable(), tell)))
	}
	return errors.Join(errs...)
}

// budgets leaves out what this machine cannot count, and says so.
func budgets(of []result.Scenario, uncountable error, tell io.Writer) []report.Budget {
	all := report.Budgets(of)
	if uncountable == nil {
		return all
	}
	say(tell, "system calls are not judged, since they cannot be counted here: %v\n", uncountable)
	return slices.DeleteFunc(all, func(b report.Budget) bool { return strings.HasPrefix(b.Metric, "syscalls") })
}

func progress(w io.Writer, began time.Time, p bench.Progress) {
	if p.Total == 0 {
		say(w, "%6.1fs  %s\n", time.Since(began).Seconds(), p.Text)
		return
	}
	say(w, "%6.1fs  %d/%d  %s  (%v left)\n", time.Since(began).Seconds(), p.Done+1, p.Total, p.Text, p.Left)
}

// Compare tells what changed from one results.json to another.
func Compare(out io.Writer, before, after string) error {
	a, err := report.Read(before)
	if err != nil {
		return err
	}
	b, err := report.Read(after)
	if err != nil {
		return err
	}
	return report.Compare(out, a, b)
}

// List prints the table of scenarios.
func List(out io.Writer, asJSON bool) error {
	all := scenario.All()
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(scenario.Results(all))
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	say(w, "SCENARIO\tGOAL\tQUICK\tWHAT\n")
	for _, s := range all {
		quick := ""
		if s.Quick {
			quick = "yes"
		}
		say(w, "%s\t%s\t%s\t%s\n", s.Name, s.Goal, quick, s.Title)
	}
	return w.Flush()
}

func say(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, format, args...) // a reader that left is no reason to stop
}
