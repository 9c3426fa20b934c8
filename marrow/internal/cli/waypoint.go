package cli

import (
	"github.com/spf13/cobra"
)

func waypointCommand() *cobra.Command {
	return &cobra.Command{Use: "waypoint", Short: "Waypoints: the mesh's layer 7 proxies"}
}
