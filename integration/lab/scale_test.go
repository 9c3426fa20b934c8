//go:build lab

package lab_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/marrowmesh/marrow/internal/lab"
)

// replicas sets how many pods a waypoint has, as an autoscaler does, and waits for them.
func (w *world) replicas(name string, n int32) {
	w.t.Helper()
	list, err := lab.Get[*appsv1.Deployment](w.t.Context(), w.c, w.ns, name)
	if err != nil || len(list) != 1 {
		w.t.Fatalf("%d deployments called %s, %v", len(list), name, err)
	}
	d := list[0]
	d.Spec.Replicas = &n
	raw, err := yaml.Marshal(d)
	if err != nil {
		w.t.Fatal(err)
	}
	w.apply(string(raw))
	w.proxies(name, int(n))
}

// proxies waits until a waypoint has n ready pods and no other, and returns their names.
func (w *world) proxies(name string, n int) []string {
	w.t.Helper()
	var names []string
	w.eventually(40*time.Second, fmt.Sprintf("%s has %d pods", name, n), func() error {
		pods, err := lab.Get[*corev1.Pod](w.t.Context(), w.c, w.ns, "")
		if err != nil {
			return err
		}
		names = nil
		for _, p := range pods {
			if p.Labels[gatewayName] != name {
				continue
			}
			if !isReady(p) || p.DeletionTimestamp != nil {
				return fmt.Errorf("%s is %s", p.Name, p.Status.Phase)
			}
			names = append(names, p.Name)
		}
		if len(names) != n {
			return fmt.Errorf("there are %d", len(names))
		}
		return nil
	})
	return names
}

// near are the addresses of a waypoint's pods on the client's node, which here is a zone.
func (w *world) near(name string) []string {
	w.t.Helper()
	pods, err := lab.Get[*corev1.Pod](w.t.Context(), w.c, w.ns, "")
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, p := range pods {
		if p.Labels[gatewayName] == name && p.Spec.NodeName == w.podObject("client").Spec.NodeName {
			out = append(out, p.Status.PodIP)
		}
	}
	slices.Sort(out)
	return out
}

// TestWaypointScales: connections spread evenly over a waypoint's pods in the client's zone, the control plane leaves the number of pods to
// whoever sets it, and replacing the pods one after the other under 500 requests a second costs no request.
func TestWaypointScales(t *testing.T) {
	w := newWorld(t, "scales", true)
	w.waypoint("many", "--service", "server")
	w.replicas("many", 10)
	near := w.near("many")
	if len(near) < 4 {
		t.Fatalf("only %v of 10 pods are on the client's node", near)
	}
	used := func(s summary) (counts []int, addresses []string) {
		for a, n := range s.Remotes {
			counts, addresses = append(counts, n), append(addresses, netip.MustParseAddr(a).Unmap().String())
		}
		slices.Sort(counts)
		slices.Sort(addresses)
		return counts, addresses
	}
	w.eventually(20*time.Second, "all near ones are used", func() error {
		if _, got := used(w.ask("client", "http://server/", "--count", "80")); !slices.Equal(got, near) {
			return fmt.Errorf("%v, want %v", got, near)
		}
		return nil
	})
	// Some 600 connections for each, with a deviation of 22: 1.3 is more than three of them.
	counts, addresses := used(w.mustAsk("client", "http://server/", "--count", "3000"))
	t.Logf("3000 connections, %d pods, %d of them near: %v", 10, len(near), counts)
	if !slices.Equal(addresses, near) || float64(counts[len(counts)-1]) > 1.3*float64(counts[0]) {
		t.Errorf("connections to %v: %v, want the near ones %v and none with 1.3 times another's", addresses, counts, near)
	}

	w.replicas("many", 4)
	during := make(chan summary, 1)
	go func() {
		s, err := w.load("client", "http://server/", "--rate", "500", "--duration", "30s", "--timeout", "4s")
		if err != nil {
			s.Texts = map[string]int{err.Error(): 1}
		}
		during <- s
	}()
	for _, pod := range w.proxies("many", 4) {
		w.remove(w.podRef(pod))
		w.proxies("many", 4)
	}
	got := <-during
	t.Logf("while four pods were replaced: %d requests, %d errors, %v, slowest %v, by %d pods", got.Requests, got.Errors, got.Status, got.Max, len(got.Remotes))
	if err := got.good(); err != nil {
		t.Error(err)
	}
	if len(got.Remotes) < 3 || got.Requests < 30*250 {
		t.Errorf("%d requests by %d pods say little", got.Requests, len(got.Remotes))
	}
}
