// Command cni is the node agent: it redirects the traffic of the node's
// enrolled pods to the node proxy, and hands their network namespaces to it.
package main

import (
	"os"

	"github.com/marrowmesh/marrow/cni/internal/app"
)

func main() { os.Exit(app.Main(os.Args[1:])) }
