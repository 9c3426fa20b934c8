// Command ztunnel is the node proxy: it carries the traffic of the node's pods
// over authenticated tunnels and enforces layer 4 policy.
package main

import (
	"os"

	"github.com/marrowmesh/marrow/ztunnel/internal/app"
)

func main() { os.Exit(app.Main(os.Args[1:])) }
