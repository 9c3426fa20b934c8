package cluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/kubelet"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/manifest"
)

// applier puts users' objects into the store as `kubectl apply` would.
type applier struct {
	world *world

	mu sync.Mutex
	// last holds the label and annotation names that the last apply of an
	// object gave, so that one taken out of the manifest goes, and one that
	// somebody else set stays.
	last map[manifest.Key]given
}

type given struct{ labels, annotations []string }

func newApplier(w *world) *applier {
	return &applier{world: w, last: map[manifest.Key]given{}}
}

// apply stores all objects or, when one is refused, none.
func (a *applier) apply(objects []manifest.Object) ([]lab.Change, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.check(objects); err != nil {
		return nil, err
	}
	// Namespaces first, Services before what may want to resolve them.
	order := slices.Clone(objects)
	slices.SortStableFunc(order, func(x, y manifest.Object) int { return rank(x) - rank(y) })
	var out []lab.Change
	for _, o := range order {
		change, err := a.one(o)
		if err != nil {
			return out, err
		}
		out = append(out, change)
	}
	return out, nil
}

func rank(o manifest.Object) int {
	switch o.(type) {
	case *corev1.Namespace:
		return 0
	case *corev1.ServiceAccount, *corev1.ConfigMap, *corev1.Secret:
		return 1
	case *corev1.Service:
		return 2
	case *corev1.Pod, *appsv1.Deployment:
		return 4
	default:
		return 3 // policies and routes hold before what they govern runs
	}
}

// check refuses what the lab cannot take, before anything is stored.
func (a *applier) check(objects []manifest.Object) error {
	arriving := map[string]bool{}
	for _, o := range objects {
		if ns, ok := o.(*corev1.Namespace); ok {
			arriving[ns.Name] = true
		}
	}
	var errs []error
	for _, o := range objects {
		k := manifest.KeyOf(o)
		if manifest.Namespaced(k.Group, k.Kind) {
			if o.GetNamespace() == "" {
				o.SetNamespace(metav1.NamespaceDefault)
			}
			ns := a.world.Namespace(o.GetNamespace())
			switch {
			case ns == nil && !arriving[o.GetNamespace()]:
				errs = append(errs, fmt.Errorf("%s: metadata.namespace %q does not exist; apply a Namespace of that name with it", k, o.GetNamespace()))
			case ns != nil && ns.DeletionTimestamp != nil:
				errs = append(errs, fmt.Errorf("%s: namespace %q is being deleted; try again when it is gone", k, o.GetNamespace()))
			}
		}
		errs = append(errs, a.checkOne(o))
	}
	return errors.Join(errs...)
}

func (a *applier) checkOne(o manifest.Object) error {
	where := lab.RefOf(manifest.KeyOf(o)).String()
	switch t := o.(type) {
	case *corev1.Pod:
		plan.DefaultPod(t)
		return errors.Join(plan.CheckPod(where, &t.Spec), a.checkPodChange(t))
	case *appsv1.Deployment:
		return errors.Join(plan.CheckPod(where+": spec.template", &t.Spec.Template.Spec), plan.CheckDeployment(t))
	case *corev1.Node:
		if _, ok := a.world.get(manifest.KeyOf(o)); !ok {
			return fmt.Errorf("%s: the lab makes its nodes itself; start it with --nodes", where)
		}
	case *appsv1.DaemonSet, *appsv1.ReplicaSet:
		return fmt.Errorf("%s: the lab runs Pods and Deployments; write one of these", where)
	}
	return nil
}

// checkPodChange refuses another spec for a pod that exists.
func (a *applier) checkPodChange(p *corev1.Pod) error {
	o, ok := a.world.get(manifest.KeyOf(p))
	if !ok {
		return nil
	}
	old, ok := o.(*corev1.Pod)
	if !ok || old.DeletionTimestamp != nil {
		return fmt.Errorf("pod %s/%s is ending; apply it again when it is gone", p.Namespace, p.Name)
	}
	if p.Spec.NodeName == "" {
		p.Spec.NodeName = old.Spec.NodeName
	}
	if !equality.Semantic.DeepEqual(old.Spec, p.Spec) {
		return fmt.Errorf("pod %s/%s: the spec of a running pod cannot change; delete the pod first, or use a Deployment", p.Namespace, p.Name)
	}
	return nil
}

// one stores one object over what is there.
func (a *applier) one(o manifest.Object) (lab.Change, error) {
	k := manifest.KeyOf(o)
	change := lab.Change{Ref: lab.RefOf(k), Action: "created"}
	now := given{labels: slices.Collect(maps.Keys(o.GetLabels())), annotations: slices.Collect(maps.Keys(o.GetAnnotations()))}
	before := uint64(0)
	if old, ok := a.world.get(k); ok {
		change.Action = "configured"
		before = version(old)
		a.takeOver(k, old, o)
	} else {
		anew(o)
	}
	if ns, ok := o.(*corev1.Namespace); ok {
		if ns.Labels == nil {
			ns.Labels = map[string]string{}
		}
		ns.Labels[corev1.LabelMetadataName] = ns.Name
	}
	o.SetResourceVersion("")
	if err := a.world.put(o); err != nil {
		return change, fmt.Errorf("store %s: %w", lab.RefOf(k), err)
	}
	if before != 0 && version(o) == before {
		change.Action = "unchanged"
	}
	a.last[k] = now
	return change, nil
}

// anew takes out of a new object what no manifest decides in a cluster either. A uid names the pod to every component, and
// its directory; the age decides between policies; a status with an address would make the pod pass for the one there.
func anew(o manifest.Object) {
	o.SetUID("")
	o.SetGeneration(0)
	o.SetCreationTimestamp(metav1.Time{})
	o.SetDeletionTimestamp(nil)
	switch o := o.(type) {
	case *corev1.Pod:
		o.Status = corev1.PodStatus{}
		delete(o.Annotations, kubelet.NetnsAnnotation)
	case *gatewayv1.Gateway:
		o.Status = gatewayv1.GatewayStatus{}
	}
}

// takeOver keeps of the stored object what the manifest does not decide.
func (a *applier) takeOver(k manifest.Key, old, o manifest.Object) {
	last := a.last[k]
	o.SetLabels(merge(old.GetLabels(), o.GetLabels(), last.labels))
	o.SetAnnotations(merge(old.GetAnnotations(), o.GetAnnotations(), last.annotations))
	if len(o.GetOwnerReferences()) == 0 {
		o.SetOwnerReferences(old.GetOwnerReferences())
	}
	o.SetDeletionTimestamp(old.GetDeletionTimestamp())
	switch now := o.(type) {
	case *corev1.Service:
		was, ok := old.(*corev1.Service)
		if !ok || now.Spec.Type == corev1.ServiceTypeExternalName || now.Spec.ClusterIP == corev1.ClusterIPNone {
			return
		}
		if now.Spec.ClusterIP == "" && was.Spec.ClusterIP != corev1.ClusterIPNone {
			now.Spec.ClusterIP, now.Spec.ClusterIPs = was.Spec.ClusterIP, was.Spec.ClusterIPs
		}
		if len(now.Spec.IPFamilies) == 0 && now.Spec.IPFamilyPolicy == nil {
			now.Spec.IPFamilies, now.Spec.IPFamilyPolicy = was.Spec.IPFamilies, was.Spec.IPFamilyPolicy
		}
		plan.DefaultService(now)
	case *corev1.Node:
		if was, ok := old.(*corev1.Node); ok {
			now.Spec.PodCIDR, now.Spec.PodCIDRs = was.Spec.PodCIDR, was.Spec.PodCIDRs
		}
	case *appsv1.Deployment:
		// replicas that the manifest leaves out stay as somebody scaled them.
		if was, ok := old.(*appsv1.Deployment); ok && now.Spec.Replicas == nil {
			now.Spec.Replicas = was.Spec.Replicas
		}
	}
}

// merge is what `kubectl apply` does with a map: the manifest's entries win,
// entries of the last manifest that are gone go, others' entries stay.
func merge(old, now map[string]string, last []string) map[string]string {
	out := maps.Clone(old)
	if out == nil {
		out = map[string]string{}
	}
	for _, k := range last {
		delete(out, k)
	}
	maps.Copy(out, now)
	if len(out) == 0 {
		return nil
	}
	return out
}

// label changes labels or annotations of an object.
func (a *applier) label(r lab.LabelRequest) (lab.Change, error) {
	k := r.Ref.Key()
	change := lab.Change{Ref: r.Ref, Action: "unchanged"}
	old, ok := a.world.get(k)
	if !ok {
		return change, fmt.Errorf("%s does not exist", r.Ref)
	}
	before := version(old)
	err := a.world.patch(k, func(o manifest.Object) error {
		if r.Template {
			d, ok := o.(*appsv1.Deployment)
			if !ok {
				return fmt.Errorf("%s has no pod template", r.Ref)
			}
			d.Spec.Template.Labels = edit(d.Spec.Template.Labels, r)
			return manifest.Validate(o)
		}
		if r.Annotations {
			o.SetAnnotations(edit(o.GetAnnotations(), r))
			return manifest.Validate(o)
		}
		o.SetLabels(edit(o.GetLabels(), r))
		// What cannot be read back would not even let its label be taken away again.
		return manifest.Validate(o)
	})
	if err != nil {
		return change, err
	}
	if now, ok := a.world.get(k); ok && version(now) != before {
		change.Action = "labeled"
	}
	return change, nil
}

func edit(in map[string]string, r lab.LabelRequest) map[string]string {
	out := maps.Clone(in)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, r.Set)
	for _, k := range r.Remove {
		delete(out, k)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// remove deletes objects: pods and what makes pods end gracefully.
func (a *applier) remove(refs []lab.Ref) ([]lab.Change, error) {
	var out []lab.Change
	var errs []error
	for _, ref := range refs {
		change := lab.Change{Ref: ref, Action: "deleted"}
		o, ok := a.world.get(ref.Key())
		switch {
		case !ok:
			change.Action = "not found"
		case protected(o):
			errs = append(errs, fmt.Errorf("%s belongs to the lab; end the lab with `marrow lab down`", ref))
			continue
		default:
			errs = append(errs, a.removeOne(o))
		}
		a.mu.Lock()
		delete(a.last, ref.Key())
		a.mu.Unlock()
		out = append(out, change)
	}
	return out, errors.Join(errs...)
}

func protected(o manifest.Object) bool {
	switch t := o.(type) {
	case *corev1.Node:
		return true
	case *corev1.Namespace:
		return slices.Contains(baseNamespaces(), t.Name)
	}
	return false
}

func (a *applier) removeOne(o manifest.Object) error {
	switch t := o.(type) {
	case *corev1.Pod:
		return markPod(a.world, t, nil)
	case *corev1.Namespace:
		return a.removeNamespace(t)
	default:
		return a.world.remove(manifest.KeyOf(o))
	}
}

// removeNamespace marks the namespace and its pods; the controller removes it
// with the last of them. Everything else in it goes at once.
func (a *applier) removeNamespace(ns *corev1.Namespace) error {
	errs := []error{a.world.patch(manifest.KeyOf(ns), func(o manifest.Object) error {
		now := metav1.Now()
		o.SetDeletionTimestamp(&now)
		return nil
	})}
	for _, o := range a.world.list() {
		if o.GetNamespace() != ns.Name {
			continue
		}
		if p, ok := o.(*corev1.Pod); ok {
			errs = append(errs, markPod(a.world, p, nil))
			continue
		}
		errs = append(errs, a.world.remove(manifest.KeyOf(o)))
	}
	return errors.Join(errs...)
}
