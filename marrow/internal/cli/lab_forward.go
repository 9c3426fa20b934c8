package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/marrowmesh/marrow/internal/lab"
)

func forwardCommand(t *target) *cobra.Command {
	var namespace, address string
	c := &cobra.Command{
		Use: "forward POD|svc/NAME [LOCAL:]PORT...", Short: "Give ports of a Service or pod an address on this host", Args: cobra.MinimumNArgs(2),
		Long: `Listen on this host's loopback and take every connection to a port of a
Service or pod in the lab, until interrupted. LOCAL 0 lets the kernel choose;
without LOCAL it is PORT itself. One line says where each port is reached.`,
		Example: "  marrow lab forward svc/shop-istio 8443:443 8080:80 -n shop\n  curl --cacert ca.pem --resolve shop.example.com:8443:127.0.0.1 https://shop.example.com:8443/",
		RunE: func(c *cobra.Command, args []string) error {
			tg := lab.Target{Namespace: namespace, Name: args[0]}
			if !strings.HasPrefix(args[0], "svc/") {
				tg = targetOf(args[0], namespace)
			}
			var pairs [][2]int
			for _, a := range args[1:] {
				p, err := portPair(a)
				if err != nil {
					return usage(c, "%v", err)
				}
				pairs = append(pairs, p)
			}
			return t.with(c, func(ctx context.Context, client *lab.Client) error {
				return forwardAll(ctx, c, client, tg, address, pairs)
			})
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace")
	c.Flags().StringVar(&address, "address", "127.0.0.1", "address of this host to listen at")
	return c
}

func portPair(s string) (p [2]int, err error) {
	local, port, two := strings.Cut(s, ":")
	if !two {
		port = local
	}
	for i, text := range []string{local, port} {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || i == 1 && n == 0 {
			return p, fmt.Errorf("%q is no [LOCAL:]PORT", s)
		}
		p[i] = int(n)
	}
	return p, nil
}

func forwardAll(ctx context.Context, c *cobra.Command, client *lab.Client, tg lab.Target, address string, pairs [][2]int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(pairs))
	var lc net.ListenConfig
	for _, p := range pairs {
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(p[0])))
		if err != nil {
			return fmt.Errorf("listen for port %d: %w; give another as LOCAL:%d", p[1], err, p[1])
		}
		_, _ = fmt.Fprintf(c.OutOrStdout(), "%s -> %s port %d\n", l.Addr(), tg, p[1])
		go func() {
			ended <- client.Forward(ctx, l, lab.ForwardRequest{Target: tg, Port: p[1]}, func(err error) {
				_, _ = fmt.Fprintln(c.ErrOrStderr(), err)
			})
		}()
	}
	err := <-ended
	cancel()
	for range len(pairs) - 1 {
		err = errors.Join(err, <-ended)
	}
	return err
}
