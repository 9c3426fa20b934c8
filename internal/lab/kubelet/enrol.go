package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/lab/components"
	"github.com/marrowmesh/marrow/internal/lab/plan"
)

// cmdAdd is what the CNI plugin tells the agent about a new pod.
type cmdAdd struct {
	Netns        string
	PodName      string
	PodNamespace string
	IPs          []cmdAddIP
}

type cmdAddIP struct {
	Interface *int
	Address   net.IPNet
	Gateway   net.IP
}

// agentLimit is the plugin's HTTP time-out.
const agentLimit = 5 * time.Second

// enrol asks the node's agent about the pod, as the CNI plugin does when a
// sandbox is made, and reports whether the pod may start. A pod that its
// labels do not enrol starts whatever the answer; one that they enrol waits
// until the agent has done its work, because it must never be open first.
func (w *worker) enrol(ctx context.Context) bool {
	if w.pod.Spec.HostNetwork || !w.cfg.Mesh || w.isComponent() {
		return ctx.Err() == nil
	}
	socket := components.PluginSocket(w.cfg.State.Node(w.node.Name))
	said := ""
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := w.askAgent(ctx, socket)
		// The labels are looked at anew: they may have changed meanwhile.
		if err == nil || !plan.Enrolled(w.pod, w.cfg.World.Namespace(w.pod.Namespace)) {
			return ctx.Err() == nil
		}
		if text := err.Error(); text != said {
			w.cfg.Note("pod %s waits for the mesh: %v", w.name(), err)
			w.problem("WaitingForMesh", err)
			said = text
		}
		if !pause(ctx, wait) {
			return false
		}
	}
}

func (w *worker) askAgent(ctx context.Context, socket string) error {
	if _, err := os.Stat(socket); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no agent runs on node %s", w.node.Name)
	}
	body, err := json.Marshal(w.cmdAdd())
	if err != nil {
		return fmt.Errorf("encode the agent's request: %w", err)
	}
	client := &http.Client{Timeout: agentLimit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/cmdadd", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the agent of node %s: %w", w.node.Name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // only to say why
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent of node %s answered %d: %s", w.node.Name, resp.StatusCode, strings.TrimSpace(string(text)))
	}
	return nil
}

func (w *worker) cmdAdd() cmdAdd {
	req := cmdAdd{Netns: w.netns.Path(), PodName: w.pod.Name, PodNamespace: w.pod.Namespace}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.addrs {
		gateway := w.node.Gateway4()
		if a.Is6() {
			gateway = w.node.Gateway6()
		}
		req.IPs = append(req.IPs, cmdAddIP{Address: ipNet(a), Gateway: gateway.AsSlice()})
	}
	return req
}

// ipNet is a single address as the CNI types write it.
func ipNet(a netip.Addr) net.IPNet {
	return net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
