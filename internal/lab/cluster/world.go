package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/manifest"
)

// world is the store as the lab knows it: what the store's notices said, and
// at once what the lab itself has written. Without the latter a reconciler
// would see the past and do its work twice.
type world struct {
	store   *filestore.Store
	changed chan struct{} // holds one token while somebody should look

	mu      sync.Mutex
	objects map[manifest.Key]manifest.Object
	// gone holds the uids of deleted objects, so that a late notice does not
	// bring them back. Uids are never used again.
	gone map[types.UID]bool
	// revision counts changes; waiters compare it.
	revision uint64
	waiters  []chan struct{}
}

func newWorld(store *filestore.Store) *world {
	return &world{
		store: store, changed: make(chan struct{}, 1),
		objects: map[manifest.Key]manifest.Object{}, gone: map[types.UID]bool{},
	}
}

func version(o manifest.Object) uint64 {
	// The store counts its writes; anything else is older than all.
	n, _ := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	return n
}

// observe takes in a batch of the store's notices. It returns the errors of
// files that cannot be read.
func (w *world) observe(batch []filestore.Event) error {
	var errs []error
	w.mu.Lock()
	for _, e := range batch {
		switch {
		case e.Err != nil:
			errs = append(errs, e.Err)
		case e.Object == nil:
			w.forget(e.Key)
		default:
			w.keep(e.Object)
		}
	}
	w.mu.Unlock()
	w.wake()
	return errors.Join(errs...)
}

// keep takes an object in unless a newer one is known. Callers hold mu.
func (w *world) keep(o manifest.Object) {
	if w.gone[o.GetUID()] {
		return
	}
	k := manifest.KeyOf(o)
	if old, ok := w.objects[k]; ok && old.GetUID() == o.GetUID() && version(old) > version(o) {
		return
	}
	w.objects[k] = o
	w.revision++
}

func (w *world) forget(k manifest.Key) {
	if o, ok := w.objects[k]; ok {
		w.gone[o.GetUID()] = true
		delete(w.objects, k)
		w.revision++
	}
}

// wake tells the controller and everybody who waits that something changed.
func (w *world) wake() {
	select {
	case w.changed <- struct{}{}:
	default: // a token is there already
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.waiters {
		close(c)
	}
	w.waiters = nil
}

// next is closed at the next change.
func (w *world) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := make(chan struct{})
	w.waiters = append(w.waiters, c)
	return c
}

// get answers with the stored object itself: callers must not change it.
func (w *world) get(k manifest.Key) (manifest.Object, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o, ok := w.objects[k]
	return o, ok
}

// list answers with all objects in the order of their keys.
func (w *world) list() []manifest.Object {
	w.mu.Lock()
	out := slices.Collect(maps.Values(w.objects))
	w.mu.Unlock()
	slices.SortFunc(out, func(a, b manifest.Object) int {
		return cmp.Compare(manifest.KeyOf(a).String(), manifest.KeyOf(b).String())
	})
	return out
}

// snapshot is what the reconcilers look at, once per round.
type snapshot struct {
	namespaces  map[string]*corev1.Namespace
	deployments []*appsv1.Deployment
	pods        []*corev1.Pod
	services    []*corev1.Service
	nodes       []plan.Node
}

func (w *world) snapshot() snapshot {
	s := snapshot{namespaces: map[string]*corev1.Namespace{}}
	for _, o := range w.list() {
		switch t := o.(type) {
		case *corev1.Namespace:
			s.namespaces[t.Name] = t
		case *appsv1.Deployment:
			s.deployments = append(s.deployments, t)
		case *corev1.Pod:
			s.pods = append(s.pods, t)
		case *corev1.Service:
			s.services = append(s.services, t)
		case *corev1.Node:
			s.nodes = append(s.nodes, plan.Node{Name: t.Name, Labels: t.Labels, Unschedulable: t.Spec.Unschedulable})
		}
	}
	return s
}

// put creates or replaces an object.
func (w *world) put(o manifest.Object) error {
	if err := w.store.Put(o); err != nil {
		return err
	}
	return w.took(o)
}

func (w *world) took(o manifest.Object) error {
	c, ok := o.DeepCopyObject().(manifest.Object)
	if !ok {
		return fmt.Errorf("%s has no deep copy", manifest.KeyOf(o))
	}
	w.mu.Lock()
	w.keep(c)
	w.mu.Unlock()
	w.wake()
	return nil
}

// patch changes an object under the store's lock.
func (w *world) patch(k manifest.Key, edit func(manifest.Object) error) error {
	var after manifest.Object
	err := w.store.Patch(k, func(o manifest.Object) error {
		after = o
		return edit(o)
	})
	if err != nil {
		return err
	}
	return w.took(after)
}

// remove deletes an object; one that is gone already is no error.
func (w *world) remove(k manifest.Key) error {
	if err := w.store.Delete(k); err != nil && !errors.Is(err, filestore.ErrNotFound) {
		return err
	}
	w.mu.Lock()
	w.forgetAll(k)
	w.mu.Unlock()
	w.wake()
	return nil
}

// forgetAll forgets an object and what the store deletes with it: objects that
// it owns, directly or not. Callers hold mu.
func (w *world) forgetAll(k manifest.Key) {
	o, ok := w.objects[k]
	if !ok {
		return
	}
	w.forget(k)
	for child, c := range w.objects {
		owned := func(r metav1.OwnerReference) bool { return r.UID == o.GetUID() }
		if o.GetUID() != "" && slices.ContainsFunc(c.GetOwnerReferences(), owned) {
			w.forgetAll(child)
		}
	}
}

// Namespace finds a namespace for the kubelet.
func (w *world) Namespace(name string) *corev1.Namespace {
	o, ok := w.get(manifest.Key{Kind: "Namespace", Name: name})
	if !ok {
		return nil
	}
	ns, _ := o.(*corev1.Namespace)
	return ns
}

// Sources are the ConfigMaps and Secrets of a namespace.
func (w *world) Sources(namespace string) plan.Sources {
	src := plan.Sources{ConfigMaps: map[string]*corev1.ConfigMap{}, Secrets: map[string]*corev1.Secret{}}
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, o := range w.objects {
		if k.Namespace != namespace {
			continue
		}
		switch t := o.(type) {
		case *corev1.ConfigMap:
			src.ConfigMaps[t.Name] = t
		case *corev1.Secret:
			src.Secrets[t.Name] = t
		}
	}
	return src
}

func podKey(namespace, name string) manifest.Key {
	return manifest.Key{Kind: "Pod", Namespace: namespace, Name: name}
}

// PatchPod changes a pod, if it is still the one of that uid.
func (w *world) PatchPod(namespace, name string, uid types.UID, edit func(*corev1.Pod)) error {
	return w.patch(podKey(namespace, name), func(o manifest.Object) error {
		p, ok := o.(*corev1.Pod)
		if !ok || p.UID != uid {
			return fmt.Errorf("pod %s/%s (%s): %w", namespace, name, uid, filestore.ErrNotFound)
		}
		edit(p)
		return nil
	})
}

// RemovePod deletes a pod's object when its processes have ended, if it is
// still the one of that uid.
func (w *world) RemovePod(namespace, name string, uid types.UID) error {
	o, ok := w.get(podKey(namespace, name))
	if !ok || o.GetUID() != uid {
		return nil
	}
	return w.remove(podKey(namespace, name))
}
