// Command istiod-lite is the control plane: discovery for node proxies and
// waypoints, and the certificate authority.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/istiod-lite/internal/app"
	"github.com/marrowmesh/marrow/istiod-lite/internal/config"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "version" {
		fmt.Printf("%+v\n", obs.BuildInfo(""))
		return
	}
	os.Exit(run.Main("istiod-lite", func(ctx context.Context) error {
		cfg, err := config.Load(conf.FromEnv())
		if err != nil {
			return err
		}
		return app.Run(ctx, cfg)
	}))
}
