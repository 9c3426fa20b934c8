package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/marrow/internal/explain"
)

const (
	gatewayLabel = "gateway.networking.k8s.io/gateway-name"
	adminPages   = "http://127.0.0.1:15000"
)

// explainCommand answers "what would become of this request?".
func explainCommand() *cobra.Command {
	t := &target{}
	var r explain.Request
	var asJSON bool
	c := &cobra.Command{
		Use: "explain --from NAMESPACE/POD --to http://HOST/PATH", Short: "What would become of a request, and why", Args: cobra.NoArgs,
		Long: `explain asks the client's ztunnel where a request would go, and the waypoint there
what it would do: which route takes the request and why others do not, what each
policy says, which cluster and endpoints, time limit and retries. The waypoint
runs the deciders that serve requests on the configuration that it serves them
by. No request is sent.`,
		Example: "  marrow explain --from shop/load --to http://catalog/ -H 'x-version: 2' -X DELETE",
		RunE: func(c *cobra.Command, _ []string) error {
			if r.From == "" || r.To == "" {
				return usage(c, "--from and --to are needed")
			}
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				found, answer, err := explained(ctx, client, r)
				if err != nil {
					return err
				}
				if asJSON && answer != nil {
					_, err := c.OutOrStdout().Write(answer)
					return err
				}
				_, _ = fmt.Fprint(c.OutOrStdout(), found)
				if answer == nil {
					return nil
				}
				a, err := explain.ParseAnswer(answer)
				if err != nil {
					return err
				}
				_, err = fmt.Fprint(c.OutOrStdout(), a)
				return err
			})
		},
	}
	t.flags(c)
	f := c.Flags()
	f.StringVar(&r.From, "from", "", "client, namespace/pod")
	f.StringVar(&r.To, "to", "", "http://host[:port]/path as the client would write it")
	f.StringVarP(&r.Method, "method", "X", http.MethodGet, "method")
	f.StringArrayVarP(&r.Headers, "header", "H", nil, "header `name: value` (repeatable)")
	f.BoolVar(&r.HTTP2, "h2c", false, "the client speaks HTTP/2 in clear text")
	f.BoolVar(&asJSON, "json", false, "print the waypoint's answer as JSON")
	return c
}

// explained asks the proxies on the way. The answer is nil where no waypoint reads the request.
func explained(ctx context.Context, c *lab.Client, r explain.Request) (*explain.Found, []byte, error) {
	pods, err := lab.Get[*corev1.Pod](ctx, c, "", "")
	if err != nil {
		return nil, nil, err
	}
	r.From, err = fullName(pods, r.From)
	if err != nil {
		return nil, nil, err
	}
	node, err := proxyOf(pods, r.From)
	if err != nil {
		return nil, nil, err
	}
	raw, err := fetchIn(ctx, c, node, adminPages+"/config_dump")
	if err != nil {
		return nil, nil, err
	}
	dump, err := explain.ParseDump(raw)
	if err != nil {
		return nil, nil, err
	}
	found, err := dump.Find(r)
	if err != nil || !found.Read() {
		return found, nil, err
	}
	for _, p := range pods {
		if p.Namespace+"/"+p.Labels[gatewayLabel] == found.Waypoint && p.Status.Phase == corev1.PodRunning {
			answer, err := fetchIn(ctx, c, p, adminPages+"/explain?"+found.Query.Encode())
			return found, answer, err
		}
	}
	return found, nil, fmt.Errorf("waypoint %s has no running pod: requests to %s fail", found.Waypoint, r.To)
}

// fullName completes a pod's name by its owner's: load stands for load-7f9c-x2x.
func fullName(pods []*corev1.Pod, from string) (string, error) {
	namespace, name, ok := strings.Cut(from, "/")
	if !ok {
		return "", fmt.Errorf("--from %q: write it as namespace/pod", from)
	}
	longer := ""
	for _, p := range pods {
		if p.Namespace != namespace {
			continue
		}
		if p.Name == name {
			return from, nil
		}
		if strings.HasPrefix(p.Name, name+"-") && longer == "" {
			longer = p.Name
		}
	}
	if longer == "" {
		return "", fmt.Errorf("there is no pod %s", from)
	}
	return namespace + "/" + longer, nil
}

// proxyOf is the ztunnel on a pod's node.
func proxyOf(pods []*corev1.Pod, from string) (*corev1.Pod, error) {
	node := ""
	for _, p := range pods {
		if p.Namespace+"/"+p.Name == from {
			node = p.Spec.NodeName
		}
	}
	for _, p := range pods {
		if p.Labels["app"] == "ztunnel" && p.Spec.NodeName == node {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no ztunnel runs on node %q of %s", node, from)
}

// fetchIn reads an admin page from inside a proxy's pod; nobody else can.
func fetchIn(ctx context.Context, c *lab.Client, p *corev1.Pod, url string) ([]byte, error) {
	out, err := c.Run(ctx, lab.Target{Namespace: p.Namespace, Name: p.Name}, "marrow", "app", "fetch", url)
	if err != nil {
		return nil, fmt.Errorf("ask %s/%s: %w", p.Namespace, p.Name, err)
	}
	if out.Exit != 0 {
		return nil, fmt.Errorf("ask %s/%s: %s", p.Namespace, p.Name, bytes.TrimSpace(out.Stderr))
	}
	return out.Stdout, nil
}

// fetchCommand prints a page.
func fetchCommand() *cobra.Command {
	return &cobra.Command{
		Use: "fetch URL", Short: "Print what a URL answers", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			if resp.StatusCode != http.StatusOK {
				text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // the status tells enough
				return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
			}
			_, err = io.Copy(c.OutOrStdout(), resp.Body)
			return err
		},
	}
}
