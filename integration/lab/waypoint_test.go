//go:build lab

package lab_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
)

const gatewayName = "gateway.networking.k8s.io/gateway-name"

// waypoint makes one by the user's own command and waits until it runs.
func (w *world) waypoint(name string, flags ...string) {
	w.t.Helper()
	here.must(w.t, append([]string{"waypoint", "apply", "--lab", sharedName, "-n", w.ns, "--name", name, "--wait"}, flags...)...)
}

// instance is the name of a waypoint's pod.
func (w *world) instance(name string) *corev1.Pod {
	w.t.Helper()
	pods, err := lab.Get[*corev1.Pod](w.t.Context(), w.c, w.ns, "")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range pods {
		if p.Labels[gatewayName] == name && isReady(p) {
			return p
		}
	}
	w.t.Fatalf("waypoint %s has no ready pod", name)
	return nil
}

// called wants every answer to have seen its request come from one of pod's addresses.
func called(s summary, pod *corev1.Pod) error {
	if err := s.good(); err != nil {
		return err
	}
	for remote := range s.Remotes {
		ip := netip.MustParseAddr(remote).Unmap().String()
		if !slices.ContainsFunc(pod.Status.PodIPs, func(p corev1.PodIP) bool { return p.IP == ip }) {
			return fmt.Errorf("was called from %v, want %s at %v", slices.Sorted(maps.Keys(s.Remotes)), pod.Name, pod.Status.PodIPs)
		}
	}
	return nil
}

// from asks url until the application sees the requests come from that pod, then asks again for good.
func (w *world) through(pod *corev1.Pod, url string, flags ...string) {
	w.t.Helper()
	w.eventually(10*time.Second, url+" by "+pod.Name, func() error {
		return called(w.ask("client", url, append([]string{"--count", "2"}, flags...)...), pod)
	})
	if err := called(w.ask("client", url, append([]string{"--count", "10"}, flags...)...), pod); err != nil {
		w.t.Errorf("%s: %v", url, err)
	}
}

// lines exchanges lines with a TCP service.
func (w *world) lines(from, addr string) {
	w.t.Helper()
	h := w.hold(from, addr, 400*time.Millisecond)
	h.survived(w.t, 5)
}

// podURL is the application at a pod's own address.
func podURL(ip netip.Addr) string { return "http://" + netip.AddrPortFrom(ip, 8080).String() + "/" }

// TestWaypointPerService: one Service's traffic goes through the waypoint, everything else past it.
func TestWaypointPerService(t *testing.T) {
	w := newWorld(t, "per-service", true)
	client := w.podObject("client")
	w.waypoint("for-server", "--service", "server")
	wp := w.instance("for-server")
	s := w.wired(func() {
		w.through(wp, "http://server/")
		w.through(wp, "http://server/", "--h2c")
		w.through(wp, "http://server/", "--keepalive")
		w.through(client, "http://near/")
		w.through(client, podURL(w.ip("server")))
		w.lines("client", "server:9090")
		w.lines("client", "near:9090")
	})
	w.dark(s)
	m := w.scrape(wp.Status.PodIP)
	if got := m.sum("istio_tcp_connections_opened_total", map[string]string{"destination_service_name": "server", "reporter": "waypoint"}); got != 1 {
		t.Errorf("the waypoint counts %v TCP connections to server, want 1", got)
	}
	if got := m.sum("istio_requests_total", map[string]string{"destination_service_name": "near"}); got != 0 {
		t.Errorf("the waypoint counts %v requests to near, which is not behind it", got)
	}
	// The same, foretold by the proxies themselves.
	told := here.must(t, "explain", "--lab", sharedName, "--from", w.ns+"/client", "--to", "http://server/x", "-H", "a: b")
	for _, part := range []string{"its waypoint is " + w.ns + "/for-server", spiffe(w.ns, "client") + " dialled", "takes it", "=> forward", w.ip("server").String() + ":8080"} {
		if !strings.Contains(told, part) {
			t.Errorf("explain does not say %q:\n%s", part, told)
		}
	}
	if told := here.must(t, "explain", "--lab", sharedName, "--from", w.ns+"/client", "--to", "http://near/"); !strings.Contains(told, "it has no waypoint") {
		t.Errorf("explain of what has no waypoint:\n%s", told)
	}
	// Taking the label away leads the traffic past it again.
	w.label(lab.Ref{Kind: "Service", Namespace: w.ns, Name: "server"}, "istio.io/use-waypoint", "")
	w.through(client, "http://server/")
}

// TestWaypointPerNamespace: with --for all both Services and pods' addresses lead through it, on one node and over two.
func TestWaypointPerNamespace(t *testing.T) {
	w := newWorld(t, "per-namespace", true)
	w.waypoint("all", "--for", "all", "--enroll-namespace")
	wp := w.instance("all")
	s := w.wired(func() {
		for _, pod := range []string{"server", "near"} {
			w.through(wp, "http://"+pod+"/")
			w.through(wp, "http://"+pod+"/", "--h2c")
			w.through(wp, podURL(w.ip(pod)))
			w.lines("client", pod+":9090")
			w.lines("client", netip.AddrPortFrom(w.ip(pod), 9090).String())
			if ip6, ok := w.ip6(pod); ok {
				w.through(wp, podURL(ip6))
			}
		}
	})
	w.dark(s)
	// What is in no mesh is not led: it cannot be.
	if err := called(w.ask("rogue", "http://server/", "--count", "3"), w.podObject("rogue")); err != nil {
		t.Errorf("from beside the mesh: %v", err)
	}
}

// TestWaypointPerAccount: with --for workload the pods of one service account are behind it, by their own addresses only.
func TestWaypointPerAccount(t *testing.T) {
	w := newWorld(t, "per-account", true)
	client := w.podObject("client")
	here.must(t, "waypoint", "apply", "--lab", sharedName, "-n", w.ns, "--service-account", "near", "--for", "workload", "--wait")
	wp := w.instance("waypoint-near")
	w.dark(w.wired(func() {
		w.through(wp, podURL(w.ip("near")))
		w.through(client, "http://near/")
		w.through(client, podURL(w.ip("server")))
		w.through(client, "http://server/")
	}))
}

// TestIPv6: pods talk over IPv6 in the mesh as they do over IPv4.
func TestIPv6(t *testing.T) {
	w := newWorld(t, "six", true)
	client := w.podObject("client")
	info, err := w.c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !info.IPv6 {
		t.Skip("this host has no IPv6")
	}
	w.dark(w.wired(func() {
		for _, pod := range []string{"server", "near"} {
			ip6, ok := w.ip6(pod)
			if !ok {
				t.Fatalf("pod %s has no IPv6 address in a lab that has", pod)
			}
			w.through(client, podURL(ip6))
			w.lines("client", netip.AddrPortFrom(ip6, 9090).String())
		}
	}))
}

// TestDeadWaypoint: while the waypoint is away its services are too; nothing goes around it.
func TestDeadWaypoint(t *testing.T) {
	w := newWorld(t, "dead-waypoint", true)
	w.waypoint("wp", "--service", "server")
	wp := w.instance("wp")
	w.through(wp, "http://server/")
	kill := func(sig syscall.Signal) {
		t.Helper()
		if _, err := w.c.Kill(t.Context(), w.target(wp.Name), sig); err != nil {
			t.Fatal(err)
		}
	}
	w.undisturbedBy("near", func() {
		kill(syscall.SIGSTOP)
		s := w.ask("client", "http://server/", "--count", "3", "--timeout", "700ms")
		kill(syscall.SIGCONT)
		if s.Status["200"] > 0 {
			t.Errorf("a waypoint that does not answer was bypassed: %v from %v", s.Status, s.Remotes)
		}
		w.eventually(5*time.Second, "the waypoint goes on", func() error { return called(w.ask("client", "http://server/", "--count", "3"), wp) })

		during := make(chan summary, 1)
		go func() {
			s, err := w.load("client", "http://server/", "--rate", "100", "--duration", "2500ms", "--timeout", "2s")
			if err != nil {
				s.Texts = map[string]int{err.Error(): 1}
			}
			during <- s
		}()
		time.Sleep(700 * time.Millisecond)
		kill(syscall.SIGKILL)
		killed := time.Now()
		got := <-during
		if got.Status["200"] == got.Requests || got.Requests < 150 {
			t.Errorf("nobody noticed that the waypoint was killed: %+v", got)
		}
		for remote := range got.Remotes {
			if netip.MustParseAddr(remote).Unmap().String() != wp.Status.PodIP {
				t.Errorf("while the waypoint was dead server was called from %s", remote)
			}
		}
		w.eventually(5*time.Second-time.Since(killed), "the waypoint is back 5 s after kill -9", func() error {
			return called(w.ask("client", "http://server/", "--count", "3"), wp)
		})
	})
}

// undisturbedBy is undisturbed for another service than server.
func (w *world) undisturbedBy(service string, what func()) {
	w.t.Helper()
	h := w.hold("client", service+":9090", 60*time.Second)
	w.awaitConnection("client", 9090)
	what()
	if !h.alive() {
		w.t.Errorf("an open connection to %s died of it: %+v %v", service, h.report, h.err)
	}
	h.cancel()
	<-h.done
	w.mustAsk("client", "http://"+service+"/")
}

// TestWaypointsApart: a waypoint's token opens its own configuration and no other's, whatever it calls itself.
func TestWaypointsApart(t *testing.T) {
	w := newWorld(t, "apart", true)
	w.waypoint("first", "--service", "server")
	w.waypoint("second", "--service", "near")
	first, second := w.instance("first"), w.instance("second")
	node := func(p *corev1.Pod) string {
		return "waypoint~" + p.Status.PodIP + "~" + p.Name + "." + w.ns + "~" + w.ns + ".svc.cluster.local"
	}
	holds := func(d discovered, service string) bool {
		return strings.Contains(strings.Join(d.Names, " ")+d.Bodies, service+"."+w.ns+".svc")
	}
	for _, kind := range []string{listenerType, clusterType} {
		own := in[discovered](w, first.Name, "discover", discoverArgs{Token: "pod", NodeID: node(first), Type: kind})
		if own.Code != "OK" || !holds(own, "server") || holds(own, "near") {
			t.Errorf("%s: the first waypoint's own: %s %s %v", kind, own.Code, own.Message, own.Names)
		}
		other := in[discovered](w, first.Name, "discover", discoverArgs{Token: "pod", NodeID: node(second), Type: kind})
		if holds(other, "near") {
			t.Errorf("%s: the first waypoint reads the second's by calling itself so: %v", kind, other.Names)
		}
		liar := discoverArgs{Token: "pod", NodeID: node(second), Metadata: map[string]any{"SERVICE_ACCOUNT": "second"}, Type: kind}
		if got := in[discovered](w, first.Name, "discover", liar); got.Code == "OK" {
			t.Errorf("%s: metadata of another account: %v", kind, got.Names)
		}
	}
	mine := in[signed](w, first.Name, "csr", csrArgs{Token: "pod", Identity: spiffe(w.ns, "second")})
	if mine.Code == "OK" && slices.Contains(mine.URIs, spiffe(w.ns, "second")) {
		t.Error("the first waypoint got the second's certificate")
	}
}
