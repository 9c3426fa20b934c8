package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/config"
)

// UsageError is a command line that cannot be understood.
type UsageError struct{ Problem string }

func (e *UsageError) Error() string {
	return e.Problem + "; usage: waypoint [proxy waypoint|router] [--domain D] [--serviceCluster C]; everything else comes from the environment"
}

// ExitCode implements the interface of run.Main.
func (e *UsageError) ExitCode() int { return 64 }

// Command is what main runs.
func Command(ctx context.Context, args []string) error {
	router, err := checkArgs(args)
	if err != nil {
		return err
	}
	if err := conf.Steady(); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "waypoint: requests will cost more: %v\n", err)
	}
	cfg, err := config.Load(conf.FromEnv())
	if err != nil {
		return err
	}
	out := obs.NewBatch(obs.Stdout()) // one line per request: they go out together
	defer func() { _ = out.Flush() }()
	log, levels, err := obs.NewLogger(out, cfg.LogFormat, cfg.LogFilter)
	if err != nil {
		return errors.Join(errors.New("MARROW_LOG"), err)
	}
	return Run(ctx, cfg, Deps{Router: router, Env: conf.Value, Out: out, Log: log, Levels: levels, Threads: runtime.GOMAXPROCS(0)})
}

// checkArgs accepts what Istio's Deployments write. Their flags repeat what the environment says.
func checkArgs(args []string) (router bool, err error) {
	if len(args) >= 2 && args[0] == "proxy" {
		if args[1] != "waypoint" && args[1] != "router" {
			return false, &UsageError{fmt.Sprintf("proxy %q is neither a waypoint nor a router", args[1])}
		}
		router = args[1] == "router"
		args = args[2:]
	}
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "--domain", "--serviceCluster", "--proxyLogLevel", "--proxyComponentLogLevel", "--log_output_level":
			if i++; i == len(args) {
				return false, &UsageError{fmt.Sprintf("flag %s has no value", args[i-1])}
			}
		default:
			return false, &UsageError{fmt.Sprintf("argument %q is not known", args[i])}
		}
	}
	return router, nil
}
