package app

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
)

func pod(name, sa, node string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "uid-" + "x"},
		Spec:       corev1.PodSpec{ServiceAccountName: sa, NodeName: node}, Status: corev1.PodStatus{Phase: phase},
	}
}

func event(p *corev1.Pod) source.Event { return source.Event{Key: manifest.KeyOf(p), Object: p} }

func TestPodIndexCounts(t *testing.T) {
	x := newPodIndex()
	x.apply([]source.Event{event(pod("a", "web", "node-1", corev1.PodRunning)), event(pod("b", "web", "node-1", corev1.PodRunning)), event(pod("c", "", "node-2", corev1.PodRunning))})
	if !x.OnNode("node-1", "shop", "web") || x.OnNode("node-2", "shop", "web") || !x.OnNode("node-2", "shop", "default") {
		t.Fatal("accounts are counted wrongly")
	}
	x.apply([]source.Event{{Key: manifest.KeyOf(pod("a", "", "", ""))}, event(pod("b", "web", "node-1", corev1.PodFailed))})
	if x.OnNode("node-1", "shop", "web") {
		t.Fatal("a pod that is gone and one that failed still vouch for an identity")
	}
	x.apply([]source.Event{event(pod("b", "web", "node-2", corev1.PodRunning))})
	if !x.OnNode("node-2", "shop", "web") {
		t.Fatal("a pod that came back elsewhere is not counted")
	}
	if _, _, _, ok := x.Pod("shop", "a"); ok {
		t.Fatal("a removed pod is still known")
	}
}
