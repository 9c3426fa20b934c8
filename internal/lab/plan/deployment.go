package plan

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// HashLabel carries the hash of the pod template on a Deployment's pods.
const HashLabel = "pod-template-hash"

// safe holds the letters that Kubernetes uses in generated names: no vowels,
// so that no words come out, and no digits that look like letters.
const safe = "bcdfghjklmnpqrstvwxz2456789"

// Rollout is what brings a Deployment one step further.
type Rollout struct {
	Create []*corev1.Pod
	Delete []*corev1.Pod
	Status appsv1.DeploymentStatus
}

// Hash names a pod template: equal templates have equal hashes.
func Hash(t *corev1.PodTemplateSpec) string {
	raw, err := json.Marshal(t)
	if err != nil {
		// A decoded template is always encodable; a constant keeps the
		// function total.
		return "unhashed"
	}
	h := fnv.New64a()
	_, _ = h.Write(raw)
	return encode(h.Sum64(), 10)
}

// encode writes n in the safe alphabet with the given number of letters.
func encode(n uint64, letters int) string {
	out := make([]byte, letters)
	for i := range out {
		out[i] = safe[n%uint64(len(safe))]
		n /= uint64(len(safe))
	}
	return string(out)
}

// Suffix is a pod name's last part out of a random number.
func Suffix(random uint64) string { return encode(random, 5) }

// Owns reports whether the pod was made for the Deployment.
func Owns(d *appsv1.Deployment, p *corev1.Pod) bool {
	name, ok := OwnerDeployment(p)
	return ok && p.Namespace == d.Namespace && name == d.Name
}

// OwnerDeployment is the name of the Deployment that the pod was made for.
func OwnerDeployment(p *corev1.Pod) (string, bool) {
	for _, o := range p.OwnerReferences {
		if o.Kind != "ReplicaSet" || o.Controller == nil || !*o.Controller {
			continue
		}
		if name, ok := strings.CutSuffix(o.Name, "-"+p.Labels[HashLabel]); ok {
			return name, true
		}
	}
	return "", false
}

// Replicas is the number of pods the Deployment asks for; unset means one.
func Replicas(d *appsv1.Deployment) int {
	if d.Spec.Replicas == nil {
		return 1
	}
	return int(*d.Spec.Replicas)
}

// Deploy decides the next step of a Deployment. pods are all pods of its
// namespace; suffix makes the last part of a new pod's name.
func Deploy(d *appsv1.Deployment, pods []*corev1.Pod, suffix func() string) Rollout {
	hash := Hash(&d.Spec.Template)
	var current, old []*corev1.Pod
	for _, p := range pods {
		switch {
		case !Owns(d, p) || p.DeletionTimestamp != nil:
		case p.Labels[HashLabel] == hash:
			current = append(current, p)
		default:
			old = append(old, p)
		}
	}
	want := Replicas(d)
	surge, unavailable := limits(d, want)
	r := Rollout{Status: status(d, current, old)}

	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType && len(old) > 0 {
		r.Delete = old
		return r
	}
	create := min(want-len(current), want+surge-len(current)-len(old))
	for range create {
		r.Create = append(r.Create, newPod(d, hash, suffix()))
	}
	if extra := len(current) - want; extra > 0 {
		r.Delete = append(r.Delete, leastUseful(current)[:extra]...)
	}
	// Old pods that are not ready serve nobody and go at once; ready ones go
	// as far as enough others are ready.
	spare := countReady(current) + countReady(old) - (want - unavailable)
	for _, p := range leastUseful(old) {
		switch {
		case !IsReady(p):
			r.Delete = append(r.Delete, p)
		case spare > 0:
			r.Delete = append(r.Delete, p)
			spare--
		}
	}
	return r
}

// limits are the strategy's numbers, Kubernetes' defaults when unset: a
// quarter more (rounded up) and a quarter less (rounded down).
func limits(d *appsv1.Deployment, want int) (surge, unavailable int) {
	s, u := intstr.FromString("25%"), intstr.FromString("25%")
	if ru := d.Spec.Strategy.RollingUpdate; ru != nil {
		if ru.MaxSurge != nil {
			s = *ru.MaxSurge
		}
		if ru.MaxUnavailable != nil {
			u = *ru.MaxUnavailable
		}
	}
	surge, errS := intstr.GetScaledValueFromIntOrPercent(&s, want, true)
	unavailable, errU := intstr.GetScaledValueFromIntOrPercent(&u, want, false)
	if errS != nil || errU != nil || (surge == 0 && unavailable == 0) {
		return 1, 0 // a rollout must be able to move
	}
	return surge, unavailable
}

// leastUseful orders pods by how little is lost with them: not ready first,
// then the youngest.
func leastUseful(pods []*corev1.Pod) []*corev1.Pod {
	out := slices.Clone(pods)
	slices.SortStableFunc(out, func(a, b *corev1.Pod) int {
		if ra, rb := IsReady(a), IsReady(b); ra != rb {
			if rb {
				return -1
			}
			return 1
		}
		if c := b.CreationTimestamp.Compare(a.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

func countReady(pods []*corev1.Pod) int {
	n := 0
	for _, p := range pods {
		if IsReady(p) {
			n++
		}
	}
	return n
}

func status(d *appsv1.Deployment, current, old []*corev1.Pod) appsv1.DeploymentStatus {
	ready := int32(countReady(current) + countReady(old))
	s := appsv1.DeploymentStatus{
		ObservedGeneration:  d.Generation,
		Replicas:            int32(len(current) + len(old)),
		UpdatedReplicas:     int32(len(current)),
		ReadyReplicas:       ready,
		AvailableReplicas:   ready,
		UnavailableReplicas: max(0, int32(Replicas(d))-ready),
	}
	available := corev1.ConditionFalse
	if int(ready) >= Replicas(d) {
		available = corev1.ConditionTrue
	}
	s.Conditions = []appsv1.DeploymentCondition{{
		Type: appsv1.DeploymentAvailable, Status: available, Reason: "MinimumReplicasAvailable",
		Message: fmt.Sprintf("%d of %d replicas are ready", ready, Replicas(d)),
	}}
	if available == corev1.ConditionFalse {
		s.Conditions[0].Reason = "MinimumReplicasUnavailable"
	}
	return s
}

// newPod is a pod of the Deployment's template, named and owned as a
// ReplicaSet's pod is, because WDS derives the workload's name from that.
func newPod(d *appsv1.Deployment, hash, suffix string) *corev1.Pod {
	t := d.Spec.Template.DeepCopy()
	labels := maps.Clone(t.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[HashLabel] = hash
	yes := true
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name:         d.Name + "-" + hash + "-" + suffix,
			GenerateName: d.Name + "-" + hash + "-",
			Namespace:    d.Namespace,
			Labels:       labels,
			Annotations:  maps.Clone(t.Annotations),
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: d.Name + "-" + hash,
				// The lab keeps no ReplicaSet objects; the reference is what
				// readers derive the workload from.
				UID: types.UID(string(d.UID) + "-" + hash), Controller: &yes, BlockOwnerDeletion: &yes,
			}},
		},
		Spec: t.Spec,
	}
	DefaultPod(p)
	return p
}

// Orphans are the pods whose Deployment is gone.
func Orphans(deployments []*appsv1.Deployment, pods []*corev1.Pod) []*corev1.Pod {
	type name struct{ namespace, name string }
	alive := map[name]bool{}
	for _, d := range deployments {
		alive[name{d.Namespace, d.Name}] = true
	}
	var out []*corev1.Pod
	for _, p := range pods {
		owner, ok := OwnerDeployment(p)
		if ok && p.DeletionTimestamp == nil && !alive[name{p.Namespace, owner}] {
			out = append(out, p)
		}
	}
	return out
}

// CheckDeployment refuses what would never settle.
func CheckDeployment(d *appsv1.Deployment) error {
	if d.Spec.Selector == nil {
		return fmt.Errorf("deployment %s/%s: spec.selector is missing; it must match the template's labels", d.Namespace, d.Name)
	}
	sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		return fmt.Errorf("deployment %s/%s: spec.selector: %w", d.Namespace, d.Name, err)
	}
	if sel.Empty() || !sel.Matches(labelSet(d.Spec.Template.Labels)) {
		return fmt.Errorf("deployment %s/%s: spec.selector %q does not match spec.template.metadata.labels %v", d.Namespace, d.Name, sel, d.Spec.Template.Labels)
	}
	return nil
}
