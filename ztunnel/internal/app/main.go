package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/ztunnel/internal/config"
)

const usage = `ztunnel is the node proxy of the mesh.

usage:
  ztunnel [proxy [ztunnel]]  serve the pods of this node
  ztunnel version            print what this was built from
  ztunnel help               print this, and the settings

Settings are environment variables:
`

// Main is the command line; it returns the exit code.
func Main(args []string) int {
	command := "proxy"
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "proxy":
		if err := conf.Steady(); err != nil {
			_, _ = fmt.Fprintf(os.Stderr, "ztunnel: small messages will cost more: %v\n", err)
		}
		sys := FromSystem()
		out := obs.NewBatch(sys.Log) // one line per connection: they go out together
		sys.Log = out
		defer func() { _ = out.Flush() }()
		return run.Main("ztunnel", func(ctx context.Context) error { return Run(ctx, sys) })
	case "version":
		_ = json.NewEncoder(os.Stdout).Encode(obs.BuildInfo(""))
		return run.ExitOK
	case "help", "-h", "--help":
		help(os.Stdout)
		return run.ExitOK
	}
	_, _ = fmt.Fprintf(os.Stderr, "ztunnel: unknown command %q; see ztunnel help\n", command)
	return run.ExitFailed
}

func help(w io.Writer) {
	_, _ = io.WriteString(w, usage)
	r := conf.FromMap(nil)
	// The error says that NODE_NAME is missing; the fields are complete anyway.
	_, _ = config.Load(r, func(string) ([]byte, bool) { return nil, false })
	for _, f := range r.Fields() {
		_, _ = fmt.Fprintf(w, "  %s (default %s)\n      %s\n", f.Name, f.Default, f.About)
	}
}

// System is what the process gets from outside.
type System struct {
	Conf  *conf.Reader
	Files config.Files
	Log   io.Writer
}

// FromSystem is the real outside.
func FromSystem() System {
	return System{Conf: conf.FromEnv(), Log: obs.Stdout(), Files: func(path string) ([]byte, bool) {
		b, err := os.ReadFile(path)
		return b, err == nil
	}}
}
