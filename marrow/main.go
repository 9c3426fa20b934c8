// Command marrow is the command line of the mesh: labs, waypoints, and the
// demo's application.
package main

import (
	"os"

	"github.com/marrowmesh/marrow/internal/lab/cluster"
	"github.com/marrowmesh/marrow/internal/lab/proc"
	"github.com/marrowmesh/marrow/internal/lab/sandbox"
	"github.com/marrowmesh/marrow/marrow/internal/cli"
)

func main() {
	// The lab starts this program again: as the sandbox's first process, as
	// the lab inside it, and for each container until that becomes the
	// container's own program.
	proc.MaybeInit()
	sandbox.MaybeInit()
	if box, ok := sandbox.Inside(); ok {
		os.Exit(cluster.Main(box, os.Args[1:]))
	}
	os.Exit(cli.Main(os.Args[1:]))
}
