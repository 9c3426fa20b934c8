package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/marrow/internal/waypoint"
)

// waypointFlags are shared by the sub-commands.
type waypointFlags struct {
	target
	spec           waypoint.Spec
	serviceAccount string
	service        string
	enrolNamespace bool
	overwrite      bool
	waitApply      bool // each verb has its own default, so each its own field
	waitStatus     bool
	limit          time.Duration
	all            bool // all namespaces, or all waypoints
}

func waypointCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "waypoint", Short: "Waypoints: the mesh's layer 7 proxies, per namespace, service or service account",
		Example: `  marrow waypoint apply -n shop --enroll-namespace --wait
  marrow waypoint apply -n shop --service-account catalog --wait
  marrow waypoint list -A`,
	}
	f := &waypointFlags{}
	f.flags(c)
	c.PersistentFlags().StringVarP(&f.spec.Namespace, "namespace", "n", "", "namespace (default: default)")
	c.PersistentFlags().StringVar(&f.spec.Name, "name", "", "name of the waypoint (default: waypoint, or waypoint-SA with --service-account)")
	c.AddCommand(f.generate(), f.apply(), f.list(), f.status(), f.remove())
	return c
}

// normalize fills in the name and refuses a spec that cannot be.
func (f *waypointFlags) normalize(c *cobra.Command) error {
	if f.spec.Name == "" {
		f.spec.Name = waypoint.DefaultName
		if f.serviceAccount != "" {
			f.spec.Name = waypoint.NameFor(f.serviceAccount)
		}
	}
	if err := f.spec.Check(); err != nil {
		return &usageError{cmd: c, err: err}
	}
	return nil
}

func (f *waypointFlags) namespace() string {
	if f.spec.Namespace == "" {
		return metav1.NamespaceDefault
	}
	return f.spec.Namespace
}

func (f *waypointFlags) specFlags(c *cobra.Command) {
	c.Flags().StringVar(&f.spec.For, "for", "", "traffic it is for: service, workload, all or none")
	c.Flags().StringVarP(&f.spec.Revision, "revision", "r", "", "revision of the control plane")
	c.Flags().StringVar(&f.serviceAccount, "service-account", "", "the waypoint of this service account")
}

func (f *waypointFlags) generate() *cobra.Command {
	c := &cobra.Command{
		Use: "generate", Short: "Print the waypoint's Gateway", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.normalize(c); err != nil {
				return err
			}
			raw, err := manifest.Encode(f.spec.Gateway())
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(raw)
			return err
		},
	}
	f.specFlags(c)
	return c
}

func (f *waypointFlags) apply() *cobra.Command {
	c := &cobra.Command{
		Use: "apply", Short: "Make a waypoint, and lead traffic to it", Args: cobra.NoArgs,
		Long: `Make a waypoint. --enroll-namespace leads all of the namespace's traffic to it,
--service that of one Service, and --service-account that of the Services whose
pods run as the service account (with --for workload or all, of its pods too).`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.normalize(c); err != nil {
				return err
			}
			f.spec.Namespace = f.namespace()
			return f.with(c, func(ctx context.Context, client *lab.Client) error { return f.runApply(ctx, c, client) })
		},
	}
	f.specFlags(c)
	c.Flags().StringVar(&f.service, "service", "", "lead this Service's traffic to it")
	c.Flags().BoolVar(&f.enrolNamespace, "enroll-namespace", false, "lead the namespace's traffic to it")
	c.Flags().BoolVar(&f.overwrite, "overwrite", false, "also where the namespace uses another waypoint")
	c.Flags().BoolVarP(&f.waitApply, "wait", "w", false, "wait until it is ready")
	c.Flags().DurationVar(&f.limit, "waypoint-timeout", 90*time.Second, "how long to wait")
	return c
}

func (f *waypointFlags) runApply(ctx context.Context, c *cobra.Command, client *lab.Client) error {
	ns, err := lab.Get[*corev1.Namespace](ctx, client, "", f.spec.Namespace)
	if err != nil {
		return err
	}
	if f.enrolNamespace {
		if used := ns[0].Labels[waypoint.UseLabel]; used != "" && used != f.spec.Name && !f.overwrite {
			_, err := fmt.Fprintf(c.ErrOrStderr(), "Warning: namespace %s uses the waypoint %q already; nothing was applied, give --overwrite to replace it\n", f.spec.Namespace, used)
			return err
		}
		if ns[0].Labels["istio.io/dataplane-mode"] != "ambient" {
			_, _ = fmt.Fprintf(c.ErrOrStderr(), "Warning: namespace %s is not in the mesh; label it istio.io/dataplane-mode=ambient\n", f.spec.Namespace)
		}
	}
	if _, err := client.ApplyObjects(ctx, f.spec.Gateway()); err != nil {
		return err
	}
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(c.OutOrStdout(), format+"\n", args...) }
	say("✅ waypoint %s/%s applied", f.spec.Namespace, f.spec.Name)
	if f.waitApply {
		if err := waypoint.Wait(ctx, client, f.spec.Namespace, f.spec.Name, f.limit); err != nil {
			return err
		}
		say("✅ waypoint %s/%s is ready!", f.spec.Namespace, f.spec.Name)
	}
	return f.enrol(ctx, client, say)
}

// enrol labels after the waypoint is there, so that with --wait no traffic is
// led to one that does not run yet.
func (f *waypointFlags) enrol(ctx context.Context, client *lab.Client, say func(string, ...any)) error {
	var refs []lab.Ref
	if f.enrolNamespace {
		refs = append(refs, lab.Ref{Kind: "Namespace", Name: f.spec.Namespace})
	}
	if f.service != "" {
		refs = append(refs, lab.Ref{Kind: "Service", Namespace: f.spec.Namespace, Name: f.service})
	}
	for _, ref := range refs {
		if _, err := client.Label(ctx, waypoint.Use(ref, f.spec.Name, false)); err != nil {
			return err
		}
		say("✅ %s labeled with \"%s: %s\"", ref, waypoint.UseLabel, f.spec.Name)
	}
	if f.serviceAccount == "" {
		return nil
	}
	labelled, err := waypoint.EnrolServiceAccount(ctx, client, f.spec.Namespace, f.serviceAccount, f.spec.Name, f.spec.For)
	for _, ref := range labelled {
		say("✅ %s labeled with \"%s: %s\"", ref, waypoint.UseLabel, f.spec.Name)
	}
	if err == nil && len(labelled) == 0 {
		err = fmt.Errorf("nothing in namespace %s runs as service account %q alone, so nothing was enrolled", f.spec.Namespace, f.serviceAccount)
	}
	return err
}

func (f *waypointFlags) list() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List waypoints", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.with(c, func(ctx context.Context, client *lab.Client) error {
				gs, err := f.waypoints(ctx, client)
				if err != nil {
					return err
				}
				rows := [][]string{{"NAMESPACE", "NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"}}
				for _, g := range gs {
					rows = append(rows, []string{
						g.Namespace, g.Name, or(g.Labels[waypoint.RevLabel], "default"), or(g.Labels[waypoint.ForLabel], "service"),
						string(waypoint.Programmed(g).Status),
					})
				}
				return f.print(c, rows)
			})
		},
	}
	c.Flags().BoolVarP(&f.all, "all-namespaces", "A", false, "all namespaces")
	return c
}

func (f *waypointFlags) waypoints(ctx context.Context, client *lab.Client) ([]*gatewayv1.Gateway, error) {
	ns := f.namespace()
	if f.all {
		ns = ""
	}
	return waypoint.List(ctx, client, ns)
}

// print leaves the namespace column out where there is only one.
func (f *waypointFlags) print(c *cobra.Command, rows [][]string) error {
	if len(rows) == 1 {
		_, err := fmt.Fprintln(c.OutOrStdout(), "No waypoints found.")
		return err
	}
	if !f.all {
		for i := range rows {
			rows[i] = rows[i][1:]
		}
	}
	return table(c.OutOrStdout(), rows)
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (f *waypointFlags) status() *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Show whether waypoints are programmed, and why not", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.with(c, func(ctx context.Context, client *lab.Client) error {
				gs, err := f.waypoints(ctx, client)
				if err != nil {
					return err
				}
				for _, g := range gs {
					if f.waitStatus && (f.spec.Name == "" || f.spec.Name == g.Name) {
						if err := waypoint.Wait(ctx, client, g.Namespace, g.Name, f.limit); err != nil {
							return err
						}
					}
				}
				if gs, err = f.waypoints(ctx, client); err != nil {
					return err
				}
				if f.spec.Name != "" && !slices.ContainsFunc(gs, func(g *gatewayv1.Gateway) bool { return g.Name == f.spec.Name }) {
					return fmt.Errorf("waypoint %s/%s: not found", f.namespace(), f.spec.Name)
				}
				rows := [][]string{{"NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE"}}
				for _, g := range gs {
					if f.spec.Name == "" || f.spec.Name == g.Name {
						cond := waypoint.Programmed(g)
						rows = append(rows, []string{g.Namespace, g.Name, string(cond.Status), cond.Type, cond.Reason, cond.Message})
					}
				}
				return f.print(c, rows)
			})
		},
	}
	c.Flags().BoolVarP(&f.all, "all-namespaces", "A", false, "all namespaces")
	c.Flags().BoolVarP(&f.waitStatus, "wait", "w", true, "wait until they are ready")
	c.Flags().DurationVar(&f.limit, "waypoint-timeout", 90*time.Second, "how long to wait")
	return c
}

func (f *waypointFlags) remove() *cobra.Command {
	c := &cobra.Command{
		Use: "delete [NAME...]", Short: "Delete waypoints",
		Long: `Delete waypoints. Labels that lead traffic to them stay, except with
--service-account, which takes those of the service account away first.`,
		RunE: func(c *cobra.Command, args []string) error {
			return f.with(c, func(ctx context.Context, client *lab.Client) error { return f.runDelete(ctx, c, client, args) })
		},
	}
	c.Flags().BoolVar(&f.all, "all", false, "all waypoints of the namespace")
	c.Flags().StringVarP(&f.spec.Revision, "revision", "r", "", "all waypoints of this revision")
	c.Flags().StringVar(&f.serviceAccount, "service-account", "", "the waypoint of this service account, and its labels")
	return c
}

func (f *waypointFlags) runDelete(ctx context.Context, c *cobra.Command, client *lab.Client, names []string) error {
	ns := f.namespace()
	if f.spec.Name != "" {
		names = append(names, f.spec.Name)
	}
	if f.serviceAccount != "" {
		if _, err := waypoint.EnrolServiceAccount(ctx, client, ns, f.serviceAccount, "", "all"); err != nil {
			return err
		}
		if len(names) == 0 {
			names = append(names, waypoint.NameFor(f.serviceAccount))
		}
	}
	if len(names) == 0 && !f.all && f.spec.Revision == "" {
		return usage(c, "name a waypoint, or give --all")
	}
	gs, err := waypoint.List(ctx, client, ns)
	if err != nil {
		return err
	}
	found, every := map[string]bool{}, len(names) == 0
	for _, g := range gs {
		found[g.Name] = true
		if every && (f.spec.Revision == "" || g.Labels[waypoint.RevLabel] == f.spec.Revision) {
			names = append(names, g.Name)
		}
	}
	if len(names) == 0 {
		_, err := fmt.Fprintln(c.OutOrStdout(), "No waypoints found.")
		return err
	}
	var missing []error
	for _, name := range names {
		if !found[name] {
			missing = append(missing, fmt.Errorf("waypoint %s/%s: not found", ns, name))
			continue
		}
		if _, err := client.Delete(ctx, true, waypoint.Ref(ns, name)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(c.OutOrStdout(), "waypoint %s/%s deleted\n", ns, name); err != nil {
			return err
		}
	}
	return errors.Join(missing...)
}
