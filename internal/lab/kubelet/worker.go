package kubelet

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/lab/proc"
	"github.com/marrowmesh/marrow/internal/run"
)

// NetnsAnnotation names the pod's network namespace for every process of the
// lab.
const NetnsAnnotation = "lab.marrowmesh.io/netns"

// worker is one pod's life.
type worker struct {
	cfg    Config
	pod    *corev1.Pod // as first seen; the spec of a pod does not change
	cancel context.CancelFunc
	ended  chan struct{}

	mu         sync.Mutex
	grace      time.Duration
	finishing  bool
	addrs      []netip.Addr
	containers []*container
	scheduled  metav1.Time
	reported   *corev1.PodStatus

	// reporting keeps status writes in order.
	reporting sync.Mutex

	netns *fabric.Netns
	node  *fabric.Node
}

func newWorker(cfg Config, p *corev1.Pod, cancel context.CancelFunc) *worker {
	return &worker{cfg: cfg, pod: p, cancel: cancel, ended: make(chan struct{}), scheduled: metav1.Now()}
}

func (w *worker) name() string { return w.pod.Namespace + "/" + w.pod.Name }

// finish asks the pod to end; a later call may only shorten the grace.
func (w *worker) finish(grace time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.finishing && grace >= w.grace {
		return
	}
	w.finishing, w.grace = true, grace
	w.cancel()
}

// run is the whole life. It returns when nothing of the pod is left.
func (w *worker) run(ctx context.Context) {
	defer close(w.ended)
	defer w.cancel()
	if w.connect(ctx) {
		w.report()
		if w.enrol(ctx) && w.initialize(ctx) {
			w.contain(ctx)
		}
	}
	<-ctx.Done()
	w.disconnect()
	if err := w.cfg.World.RemovePod(w.pod.Namespace, w.pod.Name, w.pod.UID); err != nil {
		w.cfg.Note("pod %s: remove its object: %v", w.name(), err)
	}
}

// connect gives the pod its network; it tries until it has one or ctx ends.
func (w *worker) connect(ctx context.Context) bool {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := w.network()
		if err == nil {
			return true
		}
		w.cfg.Note("pod %s: %v", w.name(), err)
		w.problem("NetworkNotReady", err)
		if !pause(ctx, wait) {
			return false
		}
	}
}

func (w *worker) network() error {
	node, ok := w.cfg.Fabric.Node(w.pod.Spec.NodeName)
	if !ok {
		return fmt.Errorf("spec.nodeName %q: the lab has no such node", w.pod.Spec.NodeName)
	}
	w.node = node
	if w.pod.Spec.HostNetwork {
		w.netns = node.Netns()
		w.setAddrs(nodeAddrs(w.cfg.Fabric, node))
		return nil
	}
	pn, err := w.cfg.Fabric.AddPod(node.Name, string(w.pod.UID))
	if err != nil {
		return err
	}
	w.netns = pn.Netns()
	w.setAddrs(pn.Addrs())
	return nil
}

func nodeAddrs(f *fabric.Fabric, n *fabric.Node) []netip.Addr {
	if f.IPv6() {
		return []netip.Addr{n.IP4(), n.IP6()}
	}
	return []netip.Addr{n.IP4()}
}

func (w *worker) setAddrs(addrs []netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.addrs = addrs
	// Environments are resolved from the pod as it will be reported.
	w.pod.Status.PodIP = addrs[0].String()
	w.pod.Status.PodIPs = nil
	for _, a := range addrs {
		w.pod.Status.PodIPs = append(w.pod.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	w.pod.Status.HostIP = w.node.IP4().String()
	w.pod.Status.HostIPs = []corev1.HostIP{{IP: w.pod.Status.HostIP}}
}

// disconnect takes network and files away.
func (w *worker) disconnect() {
	if w.netns != nil && !w.pod.Spec.HostNetwork {
		if err := w.cfg.Fabric.RemovePod(string(w.pod.UID)); err != nil {
			w.cfg.Note("pod %s: %v", w.name(), err)
		}
	}
	if err := os.RemoveAll(w.dir()); err != nil {
		w.cfg.Note("pod %s: %v", w.name(), err)
	}
}

// dir holds the pod's volumes, host side.
func (w *worker) dir() string {
	return filepath.Join(w.cfg.State.Dir, "pods", string(w.pod.UID))
}

// initialize runs the init containers one after the other.
func (w *worker) initialize(ctx context.Context) bool {
	for i := range w.pod.Spec.InitContainers {
		c := newContainer(w, &w.pod.Spec.InitContainers[i], true)
		for wait := time.Second; ; wait = min(2*wait, 10*time.Second) {
			status, err := c.once(ctx)
			if err == nil && status.Code == 0 {
				break
			}
			if ctx.Err() != nil {
				return false
			}
			if err == nil {
				err = fmt.Errorf("init container %s: %s", c.spec.Name, status)
			}
			w.cfg.Note("pod %s: %v", w.name(), err)
			w.problem("InitError", err)
			if !pause(ctx, wait) {
				return false
			}
		}
	}
	return ctx.Err() == nil
}

// contain runs the containers until ctx ends and they with it.
func (w *worker) contain(ctx context.Context) {
	// Not a child of ctx: containers end by their own grace period.
	g := run.NewGroup(context.WithoutCancel(ctx))
	w.mu.Lock()
	for i := range w.pod.Spec.Containers {
		w.containers = append(w.containers, newContainer(w, &w.pod.Spec.Containers[i], false))
	}
	list := slices.Clone(w.containers)
	w.mu.Unlock()
	for _, c := range list {
		g.Go(c.spec.Name, func(context.Context) error {
			c.run(ctx)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		w.cfg.Note("pod %s: %v", w.name(), err)
	}
}

// graceLeft is how long a container of an ending pod may take.
func (w *worker) graceLeft() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.grace
}

// problem shows in the pod's status why it does not get on.
func (w *worker) problem(reason string, err error) {
	w.reporting.Lock()
	defer w.reporting.Unlock()
	perr := w.cfg.World.PatchPod(w.pod.Namespace, w.pod.Name, w.pod.UID, func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodPending
		p.Status.Reason = reason
		p.Status.Message = err.Error()
	})
	if perr != nil && !w.isFinishing() {
		w.cfg.Note("pod %s: %v", w.name(), perr)
	}
}

func (w *worker) isFinishing() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.finishing
}

// report writes the pod's status if it has changed.
func (w *worker) report() {
	w.reporting.Lock()
	defer w.reporting.Unlock()
	status := w.status()
	if w.reported != nil && sameStatus(*w.reported, status) {
		return
	}
	err := w.cfg.World.PatchPod(w.pod.Namespace, w.pod.Name, w.pod.UID, func(p *corev1.Pod) {
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		if !p.Spec.HostNetwork {
			p.Annotations[NetnsAnnotation] = w.netns.Path()
		}
		keepTransitions(p.Status.Conditions, status.Conditions)
		p.Status = status
	})
	if err != nil {
		if !w.isFinishing() {
			w.cfg.Note("pod %s: write its status: %v", w.name(), err)
		}
		return
	}
	w.reported = &status
}

// status is the pod's status now.
func (w *worker) status() corev1.PodStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	var states []state
	for _, c := range w.containers {
		states = append(states, c.snapshot())
	}
	s := statusOf(w.pod, states, w.finishing)
	s.PodIP, s.PodIPs = w.pod.Status.PodIP, w.pod.Status.PodIPs
	s.HostIP, s.HostIPs = w.pod.Status.HostIP, w.pod.Status.HostIPs
	start := w.scheduled
	s.StartTime = &start
	return s
}

// pause waits; it reports false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

var _ proc.Netns = (*fabric.Netns)(nil)
