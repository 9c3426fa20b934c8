package kubelet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/lab/tokens"
	"github.com/marrowmesh/marrow/internal/run"
)

// World is what the kubelet reads and writes of the store.
type World interface {
	PatchPod(namespace, name string, uid types.UID, edit func(*corev1.Pod)) error
	RemovePod(namespace, name string, uid types.UID) error
	Namespace(name string) *corev1.Namespace
	Sources(namespace string) plan.Sources
}

// Config says where the kubelet works.
type Config struct {
	World    World
	Fabric   *fabric.Fabric
	Tokens   *tokens.Issuer
	State    lab.State
	Waypoint []string // the command behind the waypoint's image
	Path     string   // PATH of the containers
	Mesh     bool     // an agent runs on every node
	// Note is told what a user may want to know; never nil.
	Note func(format string, args ...any)
}

// Kubelet runs the pods of all nodes.
type Kubelet struct {
	cfg   Config
	group *run.Group

	mu   sync.Mutex
	pods map[types.UID]*worker
	// ending makes new pods impossible once Stop has begun.
	ending bool
}

// New makes a kubelet without pods; it ends with ctx.
func New(ctx context.Context, cfg Config) *Kubelet {
	return &Kubelet{cfg: cfg, group: run.NewGroup(ctx), pods: map[types.UID]*worker{}}
}

// Sync tells the kubelet the pods that should be: new ones are started, those
// marked for deletion or absent are ended.
func (k *Kubelet) Sync(pods []*corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	wanted := map[types.UID]bool{}
	for _, p := range pods {
		if p.Spec.NodeName == "" {
			continue
		}
		wanted[p.UID] = true
		w, ok := k.pods[p.UID]
		switch {
		case !ok && !k.ending:
			k.start(p)
		case ok && p.DeletionTimestamp != nil:
			w.finish(graceOf(p))
		}
	}
	for uid, w := range k.pods {
		if !wanted[uid] {
			w.finish(graceOf(w.pod))
		}
	}
}

// start makes a pod's worker. Callers hold mu.
func (k *Kubelet) start(p *corev1.Pod) {
	ctx, cancel := context.WithCancel(k.group.Context())
	w := newWorker(k.cfg, p.DeepCopy(), cancel)
	if p.DeletionTimestamp != nil {
		w.finish(graceOf(p))
	}
	k.pods[p.UID] = w
	k.group.Go("pod "+w.name(), func(context.Context) error {
		w.run(ctx)
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.pods, p.UID)
		return nil
	})
}

func graceOf(p *corev1.Pod) time.Duration {
	seconds := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if p.Spec.TerminationGracePeriodSeconds != nil {
		seconds = *p.Spec.TerminationGracePeriodSeconds
	}
	if p.DeletionGracePeriodSeconds != nil {
		seconds = *p.DeletionGracePeriodSeconds
	}
	return time.Duration(seconds) * time.Second
}

// Stop ends all pods: applications first, the mesh's own pods after them,
// because connections end through the mesh. Each has at most the grace of its
// kind; that of the mesh can be short, since nobody is left to drain for.
func (k *Kubelet) Stop(grace, lastGrace time.Duration, last func(*corev1.Pod) bool) {
	k.mu.Lock()
	k.ending = true
	k.mu.Unlock()
	for _, mesh := range []bool{false, true} {
		if mesh {
			grace = lastGrace
		}
		var waiting []*worker
		k.mu.Lock()
		for _, w := range k.pods {
			if mesh || !last(w.pod) {
				w.finish(min(grace, graceOf(w.pod)))
				waiting = append(waiting, w)
			}
		}
		k.mu.Unlock()
		for _, w := range waiting {
			<-w.ended
		}
	}
}

// Wait returns when every worker has ended. Call Stop first.
func (k *Kubelet) Wait() error {
	k.group.Stop()
	return k.group.Wait()
}

// Alive lists the pods that have a worker, "ns/name", sorted.
func (k *Kubelet) Alive() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for _, w := range k.pods {
		out = append(out, w.name())
	}
	slices.Sort(out)
	return out
}

// worker finds the worker of a pod.
func (k *Kubelet) worker(p *corev1.Pod) (*worker, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w, ok := k.pods[p.UID]
	if !ok {
		return nil, fmt.Errorf("pod %s/%s does not run (phase %s)", p.Namespace, p.Name, phaseOf(p))
	}
	return w, nil
}

func phaseOf(p *corev1.Pod) string {
	if p.Status.Phase == "" {
		return "unknown"
	}
	return string(p.Status.Phase)
}

// container finds a running pod's container; no name means the first.
func (k *Kubelet) container(p *corev1.Pod, name string) (*container, error) {
	w, err := k.worker(p)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for _, c := range w.containers {
		if name == "" || c.spec.Name == name {
			return c, nil
		}
		names = append(names, c.spec.Name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("pod %s/%s has no running container yet", p.Namespace, p.Name)
	}
	return nil, fmt.Errorf("pod %s/%s has no container %q; it has %s", p.Namespace, p.Name, name, strings.Join(names, ", "))
}
