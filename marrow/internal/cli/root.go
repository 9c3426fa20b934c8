package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/run"
)

// Main runs the command line and answers with the exit code.
func Main(args []string) int {
	return run.Main("marrow", func(ctx context.Context) error {
		cmd := Root()
		cmd.SetArgs(args)
		return cmd.ExecuteContext(ctx)
	})
}

// Root is the whole command tree.
func Root() *cobra.Command {
	root := &cobra.Command{
		Use:   "marrow",
		Short: "An ambient service mesh",
		Long: `marrow runs and inspects an ambient service mesh.

Try it:
  marrow lab up -f manifests/samples/shop   a small cluster on this machine
  marrow lab get pods                       what runs in it
  marrow lab down                           and nothing is left`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return &usageError{cmd: c, err: err} })
	root.AddCommand(labCommand(), demoCommand(), waypointCommand(), perfCommand(), explainCommand(), versionCommand(), appCommand(), envoyCommand(), perfLoadCommand())
	strictWords(root)
	return root
}

// strictWords makes wrong words on the command line usage errors everywhere:
// without it a group of commands answers an unknown one with its help and 0.
func strictWords(c *cobra.Command) {
	for _, sub := range c.Commands() {
		strictWords(sub)
	}
	if !c.Runnable() {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			hint := ""
			c.SuggestionsMinimumDistance = 2
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				hint = " (did you mean " + strings.Join(near, " or ") + "?)"
			}
			return usage(c, "unknown command %q%s", args[0], hint)
		}
		return
	}
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage(c, "%w: %s", err, c.UseLine())
			}
			return nil
		}
	}
}

// usageError is a command line that cannot be understood; it ends with 64.
type usageError struct {
	cmd *cobra.Command
	err error
}

func (e *usageError) Error() string {
	return fmt.Sprintf("%v; see `%s --help`", e.err, e.cmd.CommandPath())
}
func (e *usageError) Unwrap() error { return e.err }
func (e *usageError) ExitCode() int { return run.ExitConfig }

func usage(c *cobra.Command, format string, args ...any) error {
	return &usageError{cmd: c, err: fmt.Errorf(format, args...)}
}

// target chooses the lab that a command speaks to.
type target struct{ name string }

func (t *target) flags(c *cobra.Command) {
	c.PersistentFlags().StringVar(&t.name, "lab", "", "name of the lab (default: the only one running)")
}

func (t *target) connect(ctx context.Context) (*lab.Client, error) {
	return lab.Connect(ctx, "", t.name)
}

// with runs fn with a client of the chosen lab.
func (t *target) with(c *cobra.Command, fn func(ctx context.Context, client *lab.Client) error) error {
	client, err := t.connect(c.Context())
	if err != nil {
		return err
	}
	defer client.Close()
	return fn(c.Context(), client)
}

// table prints rows in columns; the first row is the head.
func table(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				_, _ = fmt.Fprint(tw, "\t") // the writer keeps its first error for Flush
			}
			_, _ = fmt.Fprint(tw, cell)
		}
		_, _ = fmt.Fprintln(tw)
	}
	return tw.Flush()
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// exitSilently makes a command's own failure ours without a further word.
func exitSilently(err error) error {
	if exit, ok := errors.AsType[*lab.ExitError](err); ok {
		os.Exit(exit.Code)
	}
	return err
}
