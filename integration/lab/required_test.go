//go:build lab

package lab_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
)

// TestWaypointRequired is goal R8: what a waypoint's policy protects is reached through the waypoint or not at all, whether or not there is
// one, by clients of the mesh, by the pod's own address and from outside; and the refusal says why.
func TestWaypointRequired(t *testing.T) {
	w := newWorld(t, "required", true)
	service := lab.Ref{Kind: "Service", Namespace: w.ns, Name: "server"}
	gateway := lab.Ref{Group: "gateway.networking.k8s.io", Kind: "Gateway", Namespace: w.ns, Name: "guard"}
	pod := podURL(w.ip("server"))
	refused := func(what string) {
		t.Helper()
		mark := time.Now()
		for _, c := range [][2]string{{"client", "http://server/"}, {"client", pod}, {"near", pod}, {"rogue", "http://server/"}, {"rogue", pod}} {
			w.eventually(10*time.Second, what+": "+c[0]+" to "+c[1]+" is refused", func() error { return w.ask(c[0], c[1], "--count", "2").none() })
		}
		if err := w.logged("ztunnel-node-2", mark.Add(-10*time.Second), "marrow_waypoint_required_server"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		w.mustAsk("client", "http://near/")
	}
	w.mustAsk("client", "http://server/")
	w.label(service, "istio.io/use-waypoint", "guard")
	w.mustAsk("client", "http://server/") // without a policy nothing would be passed by
	w.apply(strings.ReplaceAll(`apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: NS}
spec:
  targetRefs: [{group: "", kind: Service, name: server}]
  rules:
    - to: [{operation: {methods: [GET]}}]
`, "NS", w.ns))
	refused("no such waypoint")
	told := here.must(t, "explain", "--lab", sharedName, "--from", w.ns+"/client", "--to", pod)
	if !strings.Contains(told, "marrow_waypoint_required_server") {
		t.Errorf("explain does not say why:\n%s", told)
	}

	w.waypoint("guard")
	wp := w.instance("guard")
	w.through(wp, "http://server/")
	if err := w.ask("client", "http://server/", "--count", "2", "--method", "DELETE").all("403"); err != nil {
		t.Errorf("what the policy refuses: %v", err)
	}
	for _, from := range []string{"client", "near", "rogue"} {
		if err := w.ask(from, pod, "--count", "2").none(); err != nil {
			t.Errorf("%s by the pod's address, past the waypoint: %v", from, err)
		}
	}
	if err := w.ask("rogue", "http://server/", "--count", "2").none(); err != nil {
		t.Errorf("from outside of the mesh, past the waypoint: %v", err)
	}

	w.remove(gateway)
	refused("the waypoint is gone")

	w.label(service, "policy.marrow.io/waypoint-optional", "true")
	w.eventually(10*time.Second, "the owner gives up the policy", func() error {
		return w.ask("client", "http://"+netip.AddrPortFrom(w.ip("server"), 8080).String()+"/", "--count", "2").good()
	})
	if err := w.ask("rogue", "http://server/", "--count", "2").good(); err != nil {
		t.Error(fmt.Errorf("the owner gave up the policy: %w", err))
	}
}
