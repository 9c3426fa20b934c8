package cluster

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/plan"
)

// postForward takes the bytes of one connection to a Service or pod. The lab itself is the client, outside of every pod.
func (c *cluster) postForward(w http.ResponseWriter, r *http.Request) error {
	var req lab.ForwardRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	if r.Header.Get("Upgrade") != lab.ForwardProtocol {
		return &status{code: http.StatusUpgradeRequired, err: fmt.Errorf("forward needs Upgrade: %s", lab.ForwardProtocol)}
	}
	addr, err := c.forwardAddress(req)
	if err != nil {
		return err
	}
	const limit = 10 * time.Second
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	up, err := c.fabric.Netns().DialContext(ctx, "tcp", addr.String())
	cancel()
	if err != nil {
		return bad(fmt.Errorf("connect to %s: %w", addr, err))
	}
	defer func() { _ = up.Close() }()
	conn, early, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Time{})
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+lab.ForwardProtocol+"\r\n\r\n"); err != nil {
		return nil // the client has left
	}
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(up, early) // what was read too early comes first
		closeWrite(up)
	})
	_, _ = io.Copy(conn, up)
	closeWrite(conn)
	both.Wait()
	return nil
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

func (c *cluster) forwardAddress(req lab.ForwardRequest) (netip.AddrPort, error) {
	none := netip.AddrPort{}
	if req.Port < 1 || req.Port > 65535 {
		return none, bad(fmt.Errorf("%d is no port", req.Port))
	}
	if name, ok := strings.CutPrefix(req.Target.Name, "svc/"); ok {
		for _, s := range c.world.snapshot().services {
			if s.Name != name || req.Target.Namespace != "" && s.Namespace != req.Target.Namespace {
				continue
			}
			for _, p := range s.Spec.Ports {
				if int(p.Port) == req.Port {
					for _, a := range plan.Addresses(s) {
						return netip.AddrPortFrom(a, uint16(req.Port)), nil
					}
				}
			}
			return none, bad(fmt.Errorf("service %s/%s has no address with port %s", s.Namespace, s.Name, strconv.Itoa(req.Port)))
		}
		return none, notFound(fmt.Errorf("there is no service %q in namespace %q", name, req.Target.Namespace))
	}
	p, err := c.pod(req.Target)
	if err != nil {
		return none, err
	}
	for _, a := range plan.PodAddresses(p) {
		return netip.AddrPortFrom(a, uint16(req.Port)), nil
	}
	return none, bad(fmt.Errorf("pod %s/%s has no address yet", p.Namespace, p.Name))
}
