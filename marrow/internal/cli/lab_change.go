package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/manifest"
)

func printChanges(w io.Writer, changes []lab.Change) error {
	for _, ch := range changes {
		if _, err := fmt.Fprintf(w, "%s %s\n", ch.Ref, ch.Action); err != nil {
			return err
		}
	}
	return nil
}

func applyCommand(t *target) *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use: "apply -f FILE", Short: "Create or change objects; one that is refused changes nothing", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usage(c, "-f is missing: name a file, a directory or -")
			}
			objects, err := lab.ReadManifests(c.InOrStdin(), files...)
			if err != nil {
				return err
			}
			if len(objects) == 0 {
				return fmt.Errorf("-f %s: holds no object; name YAML files or directories with such", strings.Join(files, ", "))
			}
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				changes, err := client.ApplyObjects(ctx, objects...)
				if err != nil {
					return err
				}
				return printChanges(c.OutOrStdout(), changes)
			})
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, directory or - (repeatable)")
	return c
}

func deleteCommand(t *target) *cobra.Command {
	var files []string
	var namespace string
	wait := true
	c := &cobra.Command{
		Use: "delete (-f FILE | KIND NAME...) [-n NS]", Short: "Delete objects; pods end gracefully",
		RunE: func(c *cobra.Command, args []string) error {
			refs, err := deleteRefs(c, files, args, namespace)
			if err != nil {
				return err
			}
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				changes, err := client.Delete(ctx, wait, refs...)
				if err != nil {
					return err
				}
				if err := printChanges(c.OutOrStdout(), changes); err != nil {
					return err
				}
				return missing(changes, len(files) > 0)
			})
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "delete the objects of this file, directory or - (repeatable)")
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace")
	c.Flags().BoolVar(&wait, "wait", true, "wait until pods have ended")
	return c
}

func deleteRefs(c *cobra.Command, files, args []string, namespace string) ([]lab.Ref, error) {
	var refs []lab.Ref
	if len(files) > 0 {
		objects, err := lab.ReadManifests(c.InOrStdin(), files...)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			k := manifest.KeyOf(o)
			if k.Namespace == "" && manifest.Namespaced(k.Group, k.Kind) {
				k.Namespace = "default"
			}
			refs = append(refs, lab.RefOf(k))
		}
		return refs, nil
	}
	if len(args) < 2 {
		return nil, usage(c, "%v", errNothing)
	}
	kind, err := lab.ParseKind(args[0])
	if err != nil {
		return nil, &usageError{cmd: c, err: err}
	}
	for _, name := range args[1:] {
		refs = append(refs, kind.Ref(namespace, name))
	}
	return refs, nil
}

// missing is an error for named objects that were not there; a file may name
// some that are gone already.
func missing(changes []lab.Change, fromFile bool) error {
	if fromFile {
		return nil
	}
	var gone []string
	for _, ch := range changes {
		if ch.Action == "not found" {
			gone = append(gone, ch.Ref.String())
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return fmt.Errorf("%s: not found", strings.Join(gone, ", "))
}

func labelCommand(t *target) *cobra.Command {
	var namespace string
	var template, annotate bool
	c := &cobra.Command{
		Use: "label KIND NAME KEY=VALUE KEY-... [-n NS]", Short: "Set labels, or remove them with KEY-", Args: cobra.MinimumNArgs(3),
		Example: "  marrow lab label namespace shop istio.io/dataplane-mode=ambient\n  marrow lab label pod web-1 istio.io/dataplane-mode- -n shop",
		RunE: func(c *cobra.Command, args []string) error {
			kind, err := lab.ParseKind(args[0])
			if err != nil {
				return &usageError{cmd: c, err: err}
			}
			req := lab.LabelRequest{Ref: kind.Ref(namespace, args[1]), Set: map[string]string{}, Template: template, Annotations: annotate}
			for _, word := range args[2:] {
				if key, value, ok := strings.Cut(word, "="); ok {
					req.Set[key] = value
					continue
				}
				key, ok := strings.CutSuffix(word, "-")
				if !ok || key == "" {
					return usage(c, "%q: write KEY=VALUE to set a label, KEY- to remove it", word)
				}
				req.Remove = append(req.Remove, key)
			}
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				change, err := client.Label(ctx, req)
				if err != nil {
					return err
				}
				return printChanges(c.OutOrStdout(), []lab.Change{change})
			})
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace")
	c.Flags().BoolVar(&template, "template", false, "change the pod template of a Deployment")
	c.Flags().BoolVar(&annotate, "annotations", false, "change annotations instead")
	return c
}

func killCommand(t *target) *cobra.Command {
	var namespace, container string
	var number int
	c := &cobra.Command{
		Use: "kill POD [--signal N]", Short: "Send a signal to a pod's processes; the lab restarts them as the pod says", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			tg := targetOf(args[0], namespace)
			tg.Container = container
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				res, err := client.Kill(ctx, tg, syscall.Signal(number))
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "sent %v to %s (%s)\n", syscall.Signal(number), res.Pod, strings.Join(res.Containers, ", "))
				return err
			})
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace")
	c.Flags().StringVarP(&container, "container", "c", "", "container (default: all)")
	c.Flags().IntVarP(&number, "signal", "s", int(syscall.SIGKILL), "number of the signal")
	return c
}

// targetOf reads POD or NS/POD with -n.
func targetOf(word, namespace string) lab.Target {
	tg := lab.ParseTarget(word)
	if tg.Namespace == "" {
		tg.Namespace = namespace
	}
	return tg
}
