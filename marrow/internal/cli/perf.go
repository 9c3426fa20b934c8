package cli

import (
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/marrowmesh/marrow/marrow/internal/perf"
)

func perfCommand() *cobra.Command {
	c := &cobra.Command{Use: "perf", Short: "Measure the mesh against no mesh and against other node proxies"}
	c.AddCommand(perfRunCommand(), perfCompareCommand())
	return c
}

type perfFlags struct {
	cfg  perf.Config
	list bool
}

func perfRunCommand() *cobra.Command {
	var p perfFlags
	c := &cobra.Command{
		Use: "run [--quick] [--peer NAME=COMMAND]... [--out DIR]", Short: "Boot labs, load them in turn, print tables and write a report", Args: cobra.NoArgs,
		Long: `run boots one lab of two nodes per implementation (direct: no mesh; marrow; each
peer: another ztunnel on both nodes, under the same control plane and node agent),
loads them in turn in short blocks of random order, and compares what each unit
of work costs. --quick ends within five minutes, the full set within forty.

  marrow perf run --quick --out build/perf
  marrow perf run --peer istio=/path/to/ztunnel --out build/perf
  marrow perf run --scenario 'wp-*' --waypoint envoy='marrow envoy-waypoint --envoy /path/to/envoy'
  marrow perf run --scenario 'bulk-*' --peer std='env MARROW_TLS_RECORDS=std bin/ztunnel'
  marrow perf compare before/results.json build/perf/results.json`,
		RunE: func(c *cobra.Command, _ []string) error { return p.run(c) },
	}
	f := c.Flags()
	f.BoolVar(&p.cfg.Quick, "quick", false, "the set that ends within five minutes")
	f.StringVar(&p.cfg.Scenario, "scenario", "", "only scenarios whose names match, e.g. 'bulk-*,rt-100-1'")
	f.IntVar(&p.cfg.Rounds, "rounds", 0, "rounds of each scenario; 0: as the set has it")
	f.DurationVar(&p.cfg.Block, "block", 0, "length of the measured part of each block; 0: as the set has it")
	f.StringSliceVar(&p.cfg.Impls, "impl", nil, "only these implementations: direct, marrow, a peer's name")
	f.StringArrayVar(&p.cfg.Peers, "peer", nil, "NAME=COMMAND of another ztunnel (repeatable)")
	f.StringArrayVar(&p.cfg.Waypoints, "waypoint", nil, "NAME=COMMAND of another waypoint, for the scenarios with requests (repeatable)")
	f.StringArrayVar(&p.cfg.Plain, "plain", nil, "envoy or haproxy, or NAME=PATH: forward TCP on both nodes in clear text, without a mesh (repeatable)")
	f.StringArrayVar(&p.cfg.PeerEnv, "peer-ztunnel-config", nil, "NAME=value for the peers' proxies (repeatable)")
	f.StringArrayVar(&p.cfg.MarrowEnv, "marrow-ztunnel-config", nil, "NAME=value for marrow's proxies (repeatable)")
	f.StringVar(&p.cfg.Out, "out", "", "directory of report.html, plots and results.json")
	f.BoolVar(&p.cfg.JSON, "json", false, "print results.json on standard output in the place of tables")
	f.StringVar(&p.cfg.Profile, "profile", "", "directory of CPU profiles of marrow's proxies, one per block and node; taking them costs, so compare no timings of such a run")
	f.BoolVar(&p.cfg.Gate, "gate", false, "end with an error when a counter of marrow is above its bound")
	f.Uint64Var(&p.cfg.Seed, "seed", 0, "of the blocks' order; 0: a new one each time")
	f.StringVar(&p.cfg.Commit, "commit", "", "of the programs, for the machine block, where they do not know it themselves")
	f.BoolVar(&p.cfg.Lab.User, "user-namespace", false, "use a user namespace, also as root")
	f.BoolVar(&p.list, "list", false, "list the scenarios and end")
	return c
}

func (p *perfFlags) run(c *cobra.Command) error {
	if p.list {
		return perf.List(c.OutOrStdout(), p.cfg.JSON)
	}
	p.cfg.Command = os.Args
	err := perf.Run(c.Context(), p.cfg, c.OutOrStdout(), c.ErrOrStderr())
	if wrong, ok := errors.AsType[interface {
		error
		Usage() bool
	}](err); ok && wrong.Usage() {
		return usage(c, "%w", err)
	}
	if err != nil && c.Context().Err() != nil {
		return &interrupted{step: "block", err: err}
	}
	return err
}

func perfCompareCommand() *cobra.Command {
	return &cobra.Command{
		Use: "compare A.json B.json", Short: "Tell what changed from one run's results.json to another's", Args: cobra.ExactArgs(2),
		Long: strings.TrimSpace(`
compare tells which figures of marrow changed between two runs on one machine,
with intervals, and which changes are within the noise.`),
		RunE: func(c *cobra.Command, args []string) error { return perf.Compare(c.OutOrStdout(), args[0], args[1]) },
	}
}
