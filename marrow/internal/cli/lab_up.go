package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/marrowmesh/marrow/internal/lab"
)

func labCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "lab", Short: "A small cluster on this machine, made of Linux namespaces",
		Long: `A lab runs Kubernetes manifests on one machine without containers: nodes and
pods are network namespaces, containers are host processes. It needs root, or
a kernel that lets you make user namespaces.`,
	}
	t := &target{}
	t.flags(c)
	c.AddCommand(upCommand(), downCommand(t), listCommand(), getCommand(t), applyCommand(t), deleteCommand(t),
		labelCommand(t), refusedCommand(t), execCommand(t), forwardCommand(t), logsCommand(t), captureCommand(t), killCommand(t), waitCommand(t))
	return c
}

type upFlags struct {
	o      lab.Options
	asJSON bool
	// Command lines as one string each.
	ztunnel, cni, waypoint, controlPlane string
}

func upCommand() *cobra.Command {
	var u upFlags
	c := &cobra.Command{
		Use: "up -f DIR [--nodes N] [--name NAME] [--detach]", Short: "Start a lab", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return u.run(c) },
	}
	f := c.Flags()
	f.StringArrayVarP(&u.o.Files, "filename", "f", nil, "manifests: file, directory or - (repeatable)")
	f.IntVar(&u.o.Nodes, "nodes", 2, "number of nodes")
	f.StringVar(&u.o.Name, "name", lab.DefaultName, "name of the lab")
	f.BoolVarP(&u.o.Detach, "detach", "d", false, "leave the lab running and return")
	f.BoolVar(&u.o.NoMesh, "no-mesh", false, "pods and services only, no component of the mesh")
	f.BoolVar(&u.o.NoIPv6, "no-ipv6", false, "IPv4 only")
	f.StringArrayVar(&u.o.Zones, "zone", nil, "region/zone of node 1, 2, ... (repeatable)")
	f.DurationVar(&u.o.Timeout, "timeout", 2*time.Minute, "limit of the start")
	f.BoolVar(&u.asJSON, "json", false, "print the lab as JSON when it is up, and progress as lines of JSON on standard error")
	u.componentFlags(c)
	return c
}

// componentFlags are the flags of every command that starts a lab.
func (u *upFlags) componentFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&u.ztunnel, "ztunnel-command", "", "run this in the place of our ztunnel")
	f.StringVar(&u.cni, "cni-command", "", "run this in the place of our cni")
	f.StringVar(&u.waypoint, "waypoint-command", "", "run this in the place of our waypoint")
	f.StringVar(&u.controlPlane, "control-plane-command", "", "run this in the place of our istiod-lite")
	f.StringArrayVarP(&u.o.Env, "env", "e", nil, "NAME=value for every component (repeatable)")
	f.BoolVar(&u.o.User, "user-namespace", false, "use a user namespace, also as root")
}

func (u *upFlags) commands() error {
	for flag, pair := range map[string]struct {
		line string
		into *[]string
	}{
		"--ztunnel-command":       {u.ztunnel, &u.o.Commands.Ztunnel},
		"--cni-command":           {u.cni, &u.o.Commands.CNI},
		"--waypoint-command":      {u.waypoint, &u.o.Commands.Waypoint},
		"--control-plane-command": {u.controlPlane, &u.o.Commands.ControlPlane},
	} {
		words, err := lab.SplitWords(pair.line)
		if err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
		*pair.into = words
	}
	return nil
}

func (u *upFlags) run(c *cobra.Command) error {
	if err := u.commands(); err != nil {
		return &usageError{cmd: c, err: err}
	}
	if c.Flags().Changed("nodes") && u.o.Nodes < 1 {
		return usage(c, "--nodes %d: a lab needs at least one node", u.o.Nodes)
	}
	began := time.Now()
	u.o.Progress = func(p lab.Progress) {
		if u.asJSON {
			line(c.ErrOrStderr(), p)
			return
		}
		_, _ = fmt.Fprintf(c.ErrOrStderr(), "%6.1fs  %s\n", p.Time.Sub(began).Seconds(), p.Text)
	}
	l, err := lab.Up(c.Context(), u.o)
	if err != nil {
		return err
	}
	info, err := l.Info(c.Context())
	if err != nil {
		return err
	}
	if u.asJSON {
		err = printJSON(c.OutOrStdout(), info)
	} else {
		_, err = fmt.Fprintf(c.OutOrStdout(), "lab %s is up: %s\n  marrow lab get pods%s\n  marrow lab exec%[3]s POD -- COMMAND\n  marrow lab down%[3]s\n",
			l.Name, strings.Join(info.Nodes, ", "), nameFlag(l.Name))
	}
	if err != nil || u.o.Detach {
		return err
	}
	select {
	case <-c.Context().Done():
		_, _ = fmt.Fprintln(c.ErrOrStderr(), "ending the lab")
	case <-l.Ended():
	}
	return l.Down(context.WithoutCancel(c.Context()))
}

func nameFlag(name string) string {
	if name == lab.DefaultName {
		return ""
	}
	return " --lab " + name
}

func downCommand(t *target) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "down [NAME]", Short: "End a lab and remove what is left of it, also after it was killed", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			names, err := downNames(t.name, args, all)
			if err != nil {
				return err
			}
			for _, name := range names {
				if err := lab.Down(c.Context(), "", name); err != nil {
					return err
				}
				if _, err := fmt.Fprintf(c.OutOrStdout(), "lab %s is down\n", name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "end every lab")
	return c
}

// downNames chooses among running and stale labs.
func downNames(flag string, args []string, all bool) ([]string, error) {
	if len(args) == 1 {
		return args, nil
	}
	if flag != "" {
		return []string{flag}, nil
	}
	labs, err := lab.List("")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range labs {
		names = append(names, l.Name)
	}
	switch {
	case all || len(names) == 1:
		return names, nil
	case len(names) == 0:
		return nil, fmt.Errorf("%w (looked in %s)", lab.ErrNoLab, lab.DefaultRoot())
	}
	return nil, fmt.Errorf("several labs exist (%s); name one, or give --all", strings.Join(names, ", "))
}

func listCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the labs of this machine", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			labs, err := lab.List("")
			if err != nil {
				return err
			}
			if asJSON {
				if labs == nil {
					labs = []lab.Info{}
				}
				return printJSON(c.OutOrStdout(), labs)
			}
			if len(labs) == 0 {
				_, err := fmt.Fprintln(c.OutOrStdout(), "No labs found.")
				return err
			}
			rows := [][]string{{"NAME", "STATE", "NODES", "MESH", "PID", "AGE"}}
			for _, l := range labs {
				state := "running"
				if !l.Running {
					state = "stale (marrow lab down " + l.Name + ")"
				}
				rows = append(rows, []string{l.Name, state, fmt.Sprint(len(l.Nodes)), fmt.Sprint(l.Mesh), fmt.Sprint(l.PID), age(l.Started)})
			}
			return table(c.OutOrStdout(), rows)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func age(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	return time.Since(t).Round(time.Second).String()
}
