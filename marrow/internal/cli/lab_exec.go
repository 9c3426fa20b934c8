package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/marrowmesh/marrow/internal/lab"
)

func execCommand(t *target) *cobra.Command {
	var namespace, container string
	c := &cobra.Command{
		Use: "exec POD -- COMMAND [ARG...]", Short: "Run a command in a pod, or in the network namespace of a node", Args: cobra.MinimumNArgs(2),
		Example: "  marrow lab exec web -n shop -- marrow app client --url http://catalog:8080 --count 3\n  marrow lab exec node-1 -- ip route",
		RunE: func(c *cobra.Command, args []string) error {
			if c.ArgsLenAtDash() != 1 {
				return usage(c, "write it as: marrow lab exec POD -- COMMAND")
			}
			tg := targetOf(args[0], namespace)
			tg.Container = container
			// The command answers signals, not we.
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
			defer signal.Stop(signals)
			ctx := context.WithoutCancel(c.Context())
			client, err := t.connect(ctx)
			if err != nil {
				return err
			}
			defer client.Close()
			return exitSilently(client.Exec(ctx, lab.ExecRequest{Target: tg, Command: args[1:]},
				lab.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, signals))
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace")
	c.Flags().StringVarP(&container, "container", "c", "", "container (default: the first)")
	return c
}

func logsCommand(t *target) *cobra.Command {
	var namespace, container string
	var follow bool
	var tail int
	c := &cobra.Command{
		Use: "logs POD|COMPONENT|lab [-f]", Short: "Show the output of a pod or component, or the lab's own story", Args: cobra.ExactArgs(1),
		Example: "  marrow lab logs ztunnel-node-1 -f\n  marrow lab logs lab",
		RunE: func(c *cobra.Command, args []string) error {
			tg := targetOf(args[0], namespace)
			tg.Container = container
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				return client.Logs(ctx, c.OutOrStdout(), tg, follow, tail)
			})
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace")
	c.Flags().StringVarP(&container, "container", "c", "", "container (default: the first)")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	c.Flags().IntVar(&tail, "tail", 0, "begin with so many last lines; 0 = all")
	return c
}

func captureCommand(t *target) *cobra.Command {
	var namespace, file, iface string
	c := &cobra.Command{
		Use: "capture NODE|POD|fabric [-w FILE] [-i INTERFACE]", Short: "Record packets as pcap until interrupted", Args: cobra.ExactArgs(1),
		Long: `Record what passes the uplink of a node or the link of a pod, or with -i any
all links of a node, in pcap format: into a file, or to standard output for a
program that reads it (tcpdump -r -).`,
		RunE: func(c *cobra.Command, args []string) error {
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				out, err := captureOutput(c, file)
				if err != nil {
					return err
				}
				if err := client.Capture(ctx, out, targetOf(args[0], namespace), iface); err != nil {
					return err
				}
				return out.Close()
			})
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace")
	c.Flags().StringVarP(&file, "write", "w", "-", "file; - = standard output")
	c.Flags().StringVarP(&iface, "interface", "i", "", "interface (default: the uplink), or any")
	return c
}

type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }

func captureOutput(c *cobra.Command, file string) (io.WriteCloser, error) {
	if file != "-" {
		f, err := os.Create(file)
		if err != nil {
			return nil, fmt.Errorf("write the capture: %w", err)
		}
		return f, nil
	}
	if st, err := os.Stdout.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
		return nil, usage(c, "a capture is binary and standard output is a terminal: give -w FILE")
	}
	return keepOpen{c.OutOrStdout()}, nil
}
