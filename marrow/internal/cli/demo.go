package cli

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/marrow/internal/demo"
)

type demoFlags struct {
	up     upFlags
	once   bool
	asJSON bool
}

func demoCommand() *cobra.Command {
	var d demoFlags
	c := &cobra.Command{
		Use: "demo", Short: "A namespace joins the mesh, step by step, on two nodes on this machine", Args: cobra.NoArgs,
		Long: `demo starts a lab of two nodes and takes the namespace shop from plaintext to
authenticated, routed and protected traffic. Each step says what was expected
and what was observed on the wire. It exits with 1 if a step differs.`,
		RunE: func(c *cobra.Command, _ []string) error { return d.run(c) },
	}
	f := c.Flags()
	f.BoolVar(&d.once, "once", false, "end after the last step (the default without a terminal)")
	f.BoolVar(&d.asJSON, "json", false, "print the report as JSON on standard output; the narration goes to standard error")
	f.StringVar(&d.up.o.Name, "name", "demo", "name of the lab")
	d.up.componentFlags(c)
	return c
}

func (d *demoFlags) run(c *cobra.Command) error {
	if err := d.up.commands(); err != nil {
		return &usageError{cmd: c, err: err}
	}
	tell := c.OutOrStdout()
	cfg := demo.Config{Lab: d.up.o, Tell: tell}
	if d.asJSON {
		cfg.Tell, cfg.JSON = c.ErrOrStderr(), c.OutOrStdout()
	}
	cfg.Waypoint = func(ctx context.Context, _ *lab.Client) error {
		return deployWaypoint(ctx, cfg.Tell, d.up.o.Name)
	}
	if !d.once && interactive() {
		cfg.Stay = func(ctx context.Context, l *lab.Lab) { stay(ctx, cfg.Tell, l) }
	}
	err := demo.Run(c.Context(), cfg)
	if err != nil && c.Context().Err() != nil {
		return &interrupted{step: "step", err: err}
	}
	return err
}

// interrupted is a demo, or a measurement, that was ended before its last step.
// It hides the cancellation within, which is a normal end for programs that
// only serve.
type interrupted struct {
	step string
	err  error
}

func (e *interrupted) Error() string {
	return fmt.Sprintf("interrupted before the last %s: %v", e.step, e.err)
}
func (e *interrupted) ExitCode() int { return run.ExitSignal }

// deployWaypoint is the user's own command.
func deployWaypoint(ctx context.Context, out io.Writer, labName string) error {
	cmd := Root()
	cmd.SetArgs([]string{"waypoint", "apply", "-n", "shop", "--service-account", "catalog", "--lab", labName})
	cmd.SetOut(io.Discard)
	cmd.SetErr(out)
	return cmd.ExecuteContext(ctx)
}

// interactive says that a person sits in front of it.
func interactive() bool {
	fi, err := os.Stdin.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// stay leaves the mesh to the user until an interrupt.
func stay(ctx context.Context, tell io.Writer, l *lab.Lab) {
	_, _ = fmt.Fprintf(tell, `
The mesh stays up until you press Ctrl-C. In another terminal:
  bin/marrow lab get pods --lab %[1]s
  bin/marrow lab exec shop/load --lab %[1]s -- marrow app client --url http://web/ --count 5
  bin/marrow lab refused --lab %[1]s
  bin/marrow lab logs ztunnel-node-1 --lab %[1]s
  bin/marrow lab capture node-1 --lab %[1]s -w node-1.pcap
  bin/marrow lab apply -f manifests/samples/demo/canary.yaml --lab %[1]s
`, l.Name)
	select {
	case <-ctx.Done():
	case <-l.Ended():
	}
}
