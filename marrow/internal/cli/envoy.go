package cli

import (
	"github.com/spf13/cobra"

	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/marrow/internal/envoyboot"
)

// envoyCommand runs a stock Envoy in a waypoint's pod. It is hidden: the lab's --waypoint-command names it.
func envoyCommand() *cobra.Command {
	var o envoyboot.Options
	c := &cobra.Command{
		Use: "envoy-waypoint [proxy waypoint ...]", Short: "Become a stock Envoy that serves as a waypoint", Hidden: true,
		Long: `envoy-waypoint makes Envoy's bootstrap from the environment of a waypoint's pod and becomes Envoy.

  marrow lab up -f DIR --waypoint-command "marrow envoy-waypoint --envoy /path/to/envoy"

Arguments and flags that it does not know, such as those the pod's container passes, are ignored.`,
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		RunE: func(*cobra.Command, []string) error {
			return envoyboot.Run(conf.FromEnv(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Envoy, "envoy", "envoy", "the Envoy program")
	f.StringVar(&o.LogLevel, "envoy-log-level", "", "Envoy's log level")
	f.IntVar(&o.Concurrency, "concurrency", 2, "Envoy's worker threads")
	f.BoolVar(&o.Print, "print", false, "print the bootstrap and end")
	return c
}
