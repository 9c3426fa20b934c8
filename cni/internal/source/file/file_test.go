package file

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/cni/internal/pods"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/internal/obs"
)

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", Annotations: map[string]string{AnnotationNetns: "/ns"}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		Status:     corev1.PodStatus{PodIP: "10.0.0.1"},
	}
}

type bench struct {
	*Source
	t       *testing.T
	batches <-chan pods.Batch
}

func open(t *testing.T) bench {
	t.Helper()
	s, err := Open(t.TempDir(), "n1", obs.Discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ch, err := s.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		for range ch {
		}
	})
	return bench{s, t, ch}
}

func (b bench) next() pods.Batch {
	b.t.Helper()
	select {
	case x := <-b.batches:
		return x
	case <-time.After(10 * time.Second):
		b.t.Fatal("no batch")
	}
	return pods.Batch{}
}

func (b bench) put(p *corev1.Pod) string {
	b.t.Helper()
	if err := b.store.Put(p); err != nil {
		b.t.Fatal(err)
	}
	o, err := b.store.Get(manifest.KeyOf(p))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(o.GetUID())
}

func TestRecreatedPod(t *testing.T) {
	b := open(t)
	b.next()
	b.put(pod("elsewhere", "n2"))
	first := b.put(pod("a", "n1"))
	got := b.next()
	for len(got.Pods) == 0 {
		got = b.next()
	}
	p := got.Pods[first]
	if len(got.Pods) != 1 || p == nil || p.ServiceAccount != "default" || p.Netns != "/ns" || len(p.IPs) != 1 {
		t.Fatalf("batch %+v", got)
	}
	if err := b.store.Delete(manifest.Key{Kind: "Pod", Namespace: "shop", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	second := b.put(pod("a", "n1"))
	if first == second {
		t.Fatal("the store gave the same uid again")
	}
	gone, there := false, false
	for !gone || !there {
		for uid, p := range b.next().Pods {
			gone = gone || uid == first && p == nil
			there = there || uid == second && p != nil
		}
	}
}

func TestNamespaces(t *testing.T) {
	b := open(t)
	b.next()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"a": "b"}}}
	if err := b.store.Put(ns); err != nil {
		t.Fatal(err)
	}
	if got := b.next().Namespaces["shop"]; got["a"] != "b" {
		t.Errorf("%v", got)
	}
	if err := b.store.Delete(manifest.KeyOf(ns)); err != nil {
		t.Fatal(err)
	}
	if got, ok := b.next().Namespaces["shop"]; !ok || got != nil {
		t.Errorf("%v %v", got, ok)
	}
}

func TestAnnotateChecksUID(t *testing.T) {
	b := open(t)
	uid := b.put(pod("a", "n1"))
	note := func() string {
		o, err := b.store.Get(manifest.Key{Kind: "Pod", Namespace: "shop", Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		return o.GetAnnotations()[pods.AnnotationRedirection]
	}
	for _, p := range []pods.Pod{{UID: "other", Name: "a", Namespace: "shop"}, {UID: uid, Name: "gone", Namespace: "shop"}} {
		if err := b.Annotate(t.Context(), p, "enabled"); err != nil || note() != "" {
			t.Errorf("%v: %v, annotation %q", p, err, note())
		}
	}
	right := pods.Pod{UID: uid, Name: "a", Namespace: "shop"}
	for _, state := range []string{"pending", "enabled", "enabled", ""} {
		if err := b.Annotate(t.Context(), right, state); err != nil || note() != state {
			t.Errorf("%v, annotation %q, want %q", err, note(), state)
		}
	}
}
