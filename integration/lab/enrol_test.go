//go:build lab

package lab_test

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
)

// wired runs traffic under a wiretap: what the requests did, and what the wire showed of them.
func (w *world) wired(traffic func(), except ...uint16) sight {
	w.t.Helper()
	tap := w.tap()
	traffic()
	return tap.stop(w.marker, except...)
}

// dark wants traffic in tunnels only; open wants it in clear text.
func (w *world) dark(s sight) {
	w.t.Helper()
	if s.marked != 0 || s.tunnels == 0 {
		w.t.Errorf("in the mesh: %d packets in tunnels, clear text %d times: %v", s.tunnels, s.marked, s.where)
	}
}

// within wants traffic that no wire sees: from one pod to another through the
// proxy that serves both.
func (w *world) within(s sight) {
	w.t.Helper()
	if s.marked != 0 || s.tunnels != 0 {
		w.t.Errorf("in the mesh, on one node: %d packets in tunnels, clear text %d times: %v", s.tunnels, s.marked, s.where)
	}
}

func (w *world) open(s sight) {
	w.t.Helper()
	if s.marked == 0 {
		w.t.Errorf("out of the mesh the wire should show the text; %d packets, %d in tunnels", s.packets, s.tunnels)
	}
}

// traffic asks over both nodes and on one, by Service and by pod address.
func (w *world) traffic() {
	w.t.Helper()
	w.mustAsk("client", "http://server/")
	w.mustAsk("client", "http://near/")
	w.mustAsk("client", fmt.Sprintf("http://%s:8080/", w.ip("server")))
	w.mustAsk("client", fmt.Sprintf("http://%s:8080/", w.ip("near")))
}

// TestEnrolUnderTraffic takes running pods into the mesh and out of it, again and again, while they talk.
func TestEnrolUnderTraffic(t *testing.T) {
	w := newWorld(t, "enrol", false)
	pods := []string{"client", "server", "near"}
	clean := map[string]traces{}
	for _, pod := range pods {
		clean[pod] = in[traces](w, pod, "traces", nil)
		if !clean[pod].empty() {
			t.Fatalf("pod %s has rules before it ever was in the mesh: %+v", pod, clean[pod])
		}
	}
	w.open(w.wired(w.traffic))
	old := w.hold("client", "server:9090", 60*time.Second)
	w.awaitConnection("client", 9090)
	// New connections all the while, from and to pods that change. One that falls into the moment of the change may be
	// refused or cut, as the order of the changes demands (rules before the proxy's listeners, and away before them):
	// never may many, and never may a change leave the pod without network.
	steady := make(chan summary, 1)
	go func() {
		s, err := w.load("client", "http://server/", "--rate", "40", "--duration", "12s")
		if err != nil {
			s.Texts = map[string]int{err.Error(): 1}
		}
		steady <- s
	}()
	for round := range 2 {
		w.label(w.namespaceRef(), modeLabel, "ambient")
		w.awaitRedirection("enabled", pods...)
		if tr := in[traces](w, "server", "traces", nil); tr.empty() {
			t.Fatal("an enrolled pod shows no rule: the look for traces is blind")
		}
		time.Sleep(300 * time.Millisecond) // steady requests that began before
		w.dark(w.wired(w.traffic, 9090))   // the old connection stays as it is
		if !old.alive() {
			t.Errorf("round %d: the connection from before enrolment is dead: %+v %v", round, old.report, old.err)
		}
		inside := w.hold("client", "server:9090", 60*time.Second)
		time.Sleep(400 * time.Millisecond)
		if !inside.alive() {
			t.Errorf("round %d: a connection in the mesh died young: %+v %v", round, inside.report, inside.err)
		}
		w.label(w.namespaceRef(), modeLabel, "")
		w.awaitRedirection("", pods...)
		w.open(w.wired(w.traffic))
		for _, pod := range pods {
			if tr := in[traces](w, pod, "traces", nil); !tr.empty() {
				t.Errorf("round %d: un-enrolment left in pod %s: %+v", round, pod, tr)
			}
			for key := range w.podObject(pod).Annotations {
				if strings.Contains(key, "istio.io") {
					t.Errorf("round %d: un-enrolment left the annotation %s on pod %s", round, key, pod)
				}
			}
		}
		// The proxy that carried it is gone: its ends are told so, instead of waiting for each other.
		select {
		case <-inside.done:
		case <-time.After(3 * time.Second):
			t.Errorf("round %d: a connection of the mesh hangs after un-enrolment", round)
		}
		inside.cancel()
		<-inside.done
	}
	if s := <-steady; s.Requests < 200 || s.Errors > s.Requests/20 || s.Status["200"]+s.Errors != s.Requests {
		t.Errorf("new connections while pods changed: %v", s.good())
	}
	old.cancel()
	<-old.done
}

// awaitConnection waits until a process of the pod has a TCP connection to that port.
func (w *world) awaitConnection(pod string, port int) {
	w.t.Helper()
	established := fmt.Sprintf(":%04X 01 ", port) // of the remote address and the state
	w.eventually(5*time.Second, "a connection is open", func() error {
		out, err := w.c.Run(w.t.Context(), w.target(pod), "cat", "/proc/net/tcp", "/proc/net/tcp6")
		if err == nil && !strings.Contains(string(out.Stdout), established) {
			err = fmt.Errorf("no connection to port %d", port)
		}
		return err
	})
}

// TestOptOut: the pod's own label wins over its namespace's.
func TestOptOut(t *testing.T) {
	w := newWorld(t, "opt-out", true)
	if got := w.podObject("rogue").Annotations[redirection]; got != "" {
		t.Errorf("a pod labelled none has redirection %q", got)
	}
	if tr := in[traces](w, "rogue", "traces", nil); !tr.empty() {
		t.Errorf("a pod labelled none has rules: %+v", tr)
	}
	w.open(w.wired(func() { w.mustAsk("rogue", "http://near/") }))
	w.label(w.podRef("near"), modeLabel, "none")
	w.awaitRedirection("", "near")
	w.open(w.wired(func() { w.mustAsk("client", "http://near/") }))
	w.label(w.podRef("near"), modeLabel, "")
	w.awaitRedirection("enabled", "near")
	w.within(w.wired(func() { w.mustAsk("client", "http://near/") }))
	// And the other way round: a single pod of a namespace that is not in the mesh.
	w.label(w.namespaceRef(), modeLabel, "")
	w.awaitRedirection("", "client", "server", "near")
	for _, pod := range []string{"client", "near"} {
		w.label(w.podRef(pod), modeLabel, "ambient")
	}
	w.awaitRedirection("enabled", "client", "near")
	w.within(w.wired(func() { w.mustAsk("client", "http://near/") }))
}

// eager is a pod whose first act is to speak to server, before any probe or control loop.
func (w *world) eager(name, node string) string {
	w.t.Helper()
	yaml := strings.NewReplacer(
		"command: [marrow, app, serve]", "command: [marrow, app, client]",
		`args: ["--name=`+name+`", "--marker=`+w.marker+`", "--listen=:8080", "--tcp=:9090"]`,
		`args: ["--url=`+podURL(w.ip("server"))+`", "--marker=`+w.marker+`", "--count=20", "--each", "--timeout=10s"]`,
		"      ports: [{containerPort: 8080}, {containerPort: 9090}]\n      readinessProbe:\n        httpGet: {path: /healthz, port: 8080}\n        periodSeconds: 1\n", "",
		"  terminationGracePeriodSeconds: 1\n", "  terminationGracePeriodSeconds: 1\n  restartPolicy: Never\n",
	).Replace(w.pod(name, node))
	if !strings.Contains(yaml, "--count=20") || strings.Contains(yaml, "readinessProbe") {
		w.t.Fatalf("the pod is not eager:\n%s", yaml)
	}
	return yaml
}

func (w *world) said(pod string) string {
	w.t.Helper()
	var log strings.Builder
	if err := w.c.Logs(w.t.Context(), &log, w.target(pod), false, 0); err != nil {
		return ""
	}
	return log.String()
}

// served waits until an eager pod has ended and wants all its requests answered.
func (w *world) served(name string) {
	w.t.Helper()
	w.eventually(20*time.Second, name+" is done", func() error {
		if phase := w.podObject(name).Status.Phase; phase != "Succeeded" {
			return fmt.Errorf("phase %s", phase)
		}
		return nil
	})
	if log := w.said(name); strings.Count(log, `"status":200`) != 20 || strings.Contains(log, `"error"`) {
		w.t.Errorf("%s: not all of 20 requests were answered: %s", name, firstLine([]byte(log)))
	}
}

// TestBornEnrolled: a pod that is created in the mesh sends its very first connection through it, and does not start
// while nobody can take it in.
func TestBornEnrolled(t *testing.T) {
	w := newWorld(t, "born", true)
	tap := w.tap()
	w.apply(w.eager("eager-1", "node-1") + w.eager("eager-2", "node-2"))
	w.served("eager-1")
	w.served("eager-2")
	agent := func(sig syscall.Signal) {
		t.Helper()
		if _, err := w.c.Kill(t.Context(), component("cni-node-2"), sig); err != nil {
			t.Fatal(err)
		}
	}
	agent(syscall.SIGSTOP)
	defer agent(syscall.SIGCONT)
	w.apply(w.eager("eager-3", "node-2"))
	time.Sleep(1200 * time.Millisecond)
	if log := w.said("eager-3"); log != "" {
		t.Errorf("a pod started while the agent of its node was stopped: %s", firstLine([]byte(log)))
	}
	agent(syscall.SIGCONT)
	w.served("eager-3")
	w.dark(tap.stop(w.marker))
}

const strict = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: NS}
spec: {mtls: {mode: STRICT}}
`

// TestProbesUnderStrict: the kubelet has no identity, and its probes are answered all the same; nobody else is.
func TestProbesUnderStrict(t *testing.T) {
	w := newWorld(t, "probes", true)
	w.apply(strings.ReplaceAll(strict, "NS", w.ns))
	w.eventually(10*time.Second, "a pod without mesh is refused", func() error { return w.ask("rogue", "http://server/", "--count", "3").none() })
	w.mustAsk("client", "http://server/")
	// A new pod becomes ready by HTTP, TCP and exec-free probes alike.
	w.apply(strings.Replace(w.pod("late", "node-2"), "        httpGet: {path: /healthz, port: 8080}", "        tcpSocket: {port: 9090}", 1))
	w.apply(w.pod("later", "node-1"))
	w.ready()
	w.awaitRedirection("enabled", "late", "later")
	// Ready pods stay ready over several probes.
	var unready []string
	for range 8 {
		time.Sleep(400 * time.Millisecond)
		for _, pod := range []string{"server", "late", "later"} {
			if !isReady(w.podObject(pod)) && !slices.Contains(unready, pod) {
				unready = append(unready, pod)
			}
		}
	}
	if len(unready) > 0 {
		t.Errorf("under STRICT the probes of %v fail", unready)
	}
	// The node itself, as another user than the kubelet would be, has no way in.
	if end := in[rawEnd](w, "node-1", "raw", rawSend{Dst: w.ip("server").String() + ":8080", Data: []byte("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")}); strings.Contains(string(end.Received), "200 OK") {
		t.Errorf("a process on another node reads from a STRICT pod: %q", firstLine(end.Received))
	}
	w.remove(lab.Ref{Group: "security.istio.io", Kind: "PeerAuthentication", Namespace: w.ns, Name: "default"})
	w.eventually(10*time.Second, "the policy is gone", func() error { return w.ask("rogue", "http://server/", "--count", "3").good() })
}
