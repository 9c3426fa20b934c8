package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/manifest"
)

func getCommand(t *target) *cobra.Command {
	var namespace, output string
	var all bool
	c := &cobra.Command{
		Use: "get KIND [NAME] [-n NS] [-o json|yaml|wide]", Short: "Show pods, services, nodes or any other objects", Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			kind, err := lab.ParseKind(args[0])
			if err != nil {
				return &usageError{cmd: c, err: err}
			}
			if !slices.Contains([]string{"", "json", "yaml", "wide", "name"}, output) {
				return usage(c, "-o %q: use json, yaml, wide or name", output)
			}
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			if all || !kind.Namespaced {
				namespace = ""
			}
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				objects, err := client.Get(ctx, kind, namespace, name)
				if err != nil {
					return err
				}
				return printObjects(c.OutOrStdout(), kind, objects, output, name != "")
			})
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace (default: all)")
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "all namespaces")
	c.Flags().StringVarP(&output, "output", "o", "", "json, yaml, wide or name")
	return c
}

func printObjects(w io.Writer, kind lab.Kind, objects []manifest.Object, output string, single bool) error {
	switch output {
	case "json":
		return printTrees(w, objects, single)
	case "yaml":
		raw, err := lab.EncodeAll(objects)
		if err != nil {
			return err
		}
		_, err = w.Write(bytes.TrimPrefix(raw, []byte("---\n")))
		return err
	case "name":
		for _, o := range objects {
			if _, err := fmt.Fprintln(w, lab.RefOf(manifest.KeyOf(o))); err != nil {
				return err
			}
		}
		return nil
	}
	if len(objects) == 0 {
		_, err := fmt.Fprintf(w, "No %s found.\n", strings.ToLower(kind.Kind)+"s")
		return err
	}
	return table(w, rowsOf(kind, objects))
}

func printTrees(w io.Writer, objects []manifest.Object, single bool) error {
	items := []map[string]any{}
	for _, o := range objects {
		tree, err := manifest.Tree(o)
		if err != nil {
			return err
		}
		items = append(items, tree)
	}
	if single && len(items) == 1 {
		return printJSON(w, items[0])
	}
	return printJSON(w, map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
}

func rowsOf(kind lab.Kind, objects []manifest.Object) [][]string {
	head := map[string][]string{
		"Pod":        {"NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"},
		"Service":    {"NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "PORTS", "AGE"},
		"Node":       {"NAME", "STATUS", "ADDRESS", "PODS", "REGION", "ZONE"},
		"Deployment": {"NAMESPACE", "NAME", "READY", "UP-TO-DATE", "AGE"},
	}
	rows := [][]string{{"NAMESPACE", "NAME", "AGE"}}
	if h, ok := head[kind.Kind]; ok {
		rows = [][]string{h}
	} else if !kind.Namespaced {
		rows = [][]string{{"NAME", "AGE", "LABELS"}}
	}
	for _, o := range objects {
		rows = append(rows, rowOf(kind, o))
	}
	return rows
}

func rowOf(kind lab.Kind, o manifest.Object) []string {
	old := time.Since(o.GetCreationTimestamp().Time).Round(time.Second).String()
	switch t := o.(type) {
	case *corev1.Pod:
		ready, restarts := 0, int32(0)
		for _, s := range t.Status.ContainerStatuses {
			if s.Ready {
				ready++
			}
			restarts += s.RestartCount
		}
		return []string{t.Namespace, t.Name, fmt.Sprintf("%d/%d", ready, len(t.Spec.Containers)), podStatus(t), fmt.Sprint(restarts), old, dash(t.Status.PodIP), dash(t.Spec.NodeName)}
	case *corev1.Service:
		var ports []string
		for _, p := range t.Spec.Ports {
			ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
		return []string{t.Namespace, t.Name, string(t.Spec.Type), dash(strings.Join(t.Spec.ClusterIPs, ",")), dash(strings.Join(ports, ",")), old}
	case *corev1.Node:
		var addrs []string
		for _, a := range t.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				addrs = append(addrs, a.Address)
			}
		}
		return []string{t.Name, "Ready", strings.Join(addrs, ","), strings.Join(t.Spec.PodCIDRs, ","), t.Labels[corev1.LabelTopologyRegion], t.Labels[corev1.LabelTopologyZone]}
	case *appsv1.Deployment:
		return []string{t.Namespace, t.Name, fmt.Sprintf("%d/%d", t.Status.ReadyReplicas, plan.Replicas(t)), fmt.Sprint(t.Status.UpdatedReplicas), old}
	}
	if !kind.Namespaced {
		var labels []string
		for k, v := range o.GetLabels() {
			labels = append(labels, k+"="+v)
		}
		slices.Sort(labels)
		return []string{o.GetName(), old, dash(strings.Join(labels, ","))}
	}
	return []string{o.GetNamespace(), o.GetName(), old}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// podStatus is kubectl's column: the reason that matters, else the phase.
func podStatus(p *corev1.Pod) string {
	if p.DeletionTimestamp != nil {
		return "Terminating"
	}
	for _, s := range p.Status.ContainerStatuses {
		if s.State.Waiting != nil && s.State.Waiting.Reason != "" {
			return s.State.Waiting.Reason
		}
	}
	if p.Status.Reason != "" {
		return p.Status.Reason
	}
	if p.Status.Phase == "" {
		return "Pending"
	}
	return string(p.Status.Phase)
}

func waitCommand(t *target) *cobra.Command {
	var limit time.Duration
	c := &cobra.Command{
		Use: "wait", Short: "Wait until every pod is ready and every rollout is over", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				if err := client.WaitReady(ctx, limit); err != nil {
					return err
				}
				_, err := fmt.Fprintln(c.OutOrStdout(), "every pod is ready")
				return err
			})
		},
	}
	c.Flags().DurationVar(&limit, "timeout", time.Minute, "give up after this time")
	return c
}

var errNothing = errors.New("nothing to do: give -f FILE or names")
