package cli

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/marrow/internal/refusals"
)

// refusedCommand answers "why was this connection refused?".
func refusedCommand(t *target) *cobra.Command {
	var since time.Duration
	var match string
	var asJSON bool
	c := &cobra.Command{
		Use: "refused", Short: "What the mesh refused, and why", Args: cobra.NoArgs,
		Long: `refused reads the access logs of every ztunnel and waypoint of the lab and lists
the connections and requests that were refused or failed, with the reason: which
policy, which certificate, which missing endpoint.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				list, err := refused(ctx, client, since, match)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), list)
				}
				if len(list) == 0 {
					_, err := fmt.Fprintln(c.OutOrStdout(), "nothing was refused")
					return err
				}
				rows := [][]string{{"TIME", "PROXY", "FROM", "TO", "REASON"}}
				for _, e := range list {
					rows = append(rows, []string{e.Time.Format("15:04:05.000"), e.Proxy, e.From, e.To, e.Reason})
				}
				return table(c.OutOrStdout(), rows)
			})
		},
	}
	f := c.Flags()
	f.DurationVar(&since, "since", 10*time.Minute, "how far to look back; 0 = all there is")
	f.StringVar(&match, "match", "", "only entries that contain this text: a name, an address, an identity")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// refused collects from the proxies' logs, oldest first.
func refused(ctx context.Context, c *lab.Client, since time.Duration, match string) ([]refusals.Entry, error) {
	pods, err := lab.Get[*corev1.Pod](ctx, c, "", "")
	if err != nil {
		return nil, err
	}
	list := []refusals.Entry{}
	for _, p := range pods {
		if !strings.HasPrefix(p.Name, "ztunnel-") && p.Labels["gateway.networking.k8s.io/gateway-name"] == "" {
			continue
		}
		var log bytes.Buffer
		if err := c.Logs(ctx, &log, lab.Target{Namespace: p.Namespace, Name: p.Name}, false, 0); err != nil {
			return nil, fmt.Errorf("read the log of %s/%s: %w", p.Namespace, p.Name, err)
		}
		for line := range strings.Lines(log.String()) {
			e, ok := refusals.Parse(p.Name, strings.TrimSuffix(line, "\n"))
			if !ok || (since > 0 && time.Since(e.Time) > since) || !strings.Contains(e.From+" "+e.To+" "+e.Reason, match) {
				continue
			}
			list = append(list, e)
		}
	}
	slices.SortStableFunc(list, func(a, b refusals.Entry) int { return a.Time.Compare(b.Time) })
	return list, nil
}
