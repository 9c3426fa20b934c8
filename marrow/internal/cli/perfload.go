package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/marrowmesh/marrow/perf/load"
)

// perfLoadCommand is what `marrow perf run` runs in the lab's pods.
func perfLoadCommand() *cobra.Command {
	c := &cobra.Command{Use: "perf-load", Short: "The performance suite's load, inside the pods", Hidden: true}
	c.AddCommand(loadServerCommand(), loadClientCommand(), loadFetchCommand())
	return c
}

func loadServerCommand() *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use: "server", Short: "Answer every kind of load on one port", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			preparePorts(c)
			var lc net.ListenConfig
			l, err := lc.Listen(c.Context(), "tcp", listen)
			if err != nil {
				return err
			}
			return load.Serve(c.Context(), l)
		},
	}
	c.Flags().StringVar(&listen, "listen", ":7000", "address")
	return c
}

func loadClientCommand() *cobra.Command {
	var spec string
	c := &cobra.Command{
		Use: "client --spec JSON", Short: "Make one kind of load, a phase for each line on standard input", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var s load.Spec
			if err := json.Unmarshal([]byte(spec), &s); err != nil {
				return usage(c, "--spec: %w", err)
			}
			preparePorts(c)
			return load.Run(c.Context(), s, os.Stdin, c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&spec, "spec", "", "the load")
	return c
}

// preparePorts says so when it fails: most loads do not need it.
func preparePorts(c *cobra.Command) {
	if err := load.PreparePorts(); err != nil {
		_, _ = fmt.Fprintf(c.ErrOrStderr(), "the range of ephemeral ports stays as it is: %v\n", err)
	}
}

func loadFetchCommand() *cobra.Command {
	var limit time.Duration
	c := &cobra.Command{
		Use: "fetch URL", Short: "Print what an HTTP server answers", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), limit)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", args[0], resp.Status)
			}
			_, err = io.Copy(c.OutOrStdout(), resp.Body)
			return err
		},
	}
	c.Flags().DurationVar(&limit, "timeout", 5*time.Second, "for the whole answer")
	return c
}
