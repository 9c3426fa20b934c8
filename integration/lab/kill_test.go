//go:build lab

package lab_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
)

// recoveryLimit is how soon after kill -9 new work is done again.
const recoveryLimit = 5 * time.Second

// killed kills a component in the middle of traffic that must not notice, and hands over the moment.
func (w *world) killed(name string, recovered func(at time.Time)) {
	w.t.Helper()
	w.mustAsk("client", "http://server/")
	h := w.hold("client", "server:9090", 60*time.Second)
	w.awaitConnection("client", 9090)
	steady := make(chan summary, 1)
	go func() {
		s, err := w.load("client", "http://server/", "--rate", "50", "--duration", "4s")
		if err != nil {
			s.Texts = map[string]int{err.Error(): 1}
		}
		steady <- s
	}()
	time.Sleep(500 * time.Millisecond)
	at := time.Now()
	got, err := w.c.Kill(w.t.Context(), component(name), syscall.SIGKILL)
	if err != nil || len(got.PIDs) == 0 {
		w.t.Fatalf("kill %s: %+v %v", name, got, err)
	}
	recovered(at)
	if s := <-steady; s.good() != nil || s.Requests < 150 {
		w.t.Errorf("new connections while %s was dead: %v", name, s.good())
	}
	if !h.alive() {
		w.t.Errorf("an open connection died with %s: %+v %v", name, h.report, h.err)
	}
	h.cancel()
	<-h.done
}

// left is what remains of the limit.
func left(at time.Time) time.Duration { return recoveryLimit - time.Since(at) }

// TestKillAgent: without cni everything goes on; back, it enrols what was born meanwhile.
func TestKillAgent(t *testing.T) {
	w := newWorld(t, "kill-cni", true)
	proxy := "http://" + w.ztunnelIP("node-2") + ":15021/healthz/ready"
	seen := make(chan []fetched, 1)
	go func() { seen <- in[[]fetched](w, "node-1", "flips", flips{URL: proxy, Duration: 5 * time.Second}) }()
	time.Sleep(300 * time.Millisecond)
	w.killed("cni-node-2", func(at time.Time) {
		w.apply(w.pod("phoenix", "node-2") + w.service("phoenix"))
		w.label(w.podRef("server"), "touched", "yes")
		w.eventually(left(at), "a new pod is in the mesh 5 s after kill -9", func() error {
			if got := w.podObject("phoenix").Annotations[redirection]; got != "enabled" {
				return fmt.Errorf("redirection is %q", got)
			}
			return nil
		})
		w.ready()
		w.dark(w.wired(func() { w.mustAsk("client", "http://phoenix/") }, 9090))
	})
	// Its proxy said that it was not ready, and why, and then that it was again.
	answers := <-seen
	var said []string
	for _, a := range answers {
		said = append(said, fmt.Sprintf("%d %s", a.Status, strings.TrimSpace(a.Body)))
	}
	story := strings.Join(said, ", ")
	if !strings.HasPrefix(story, "200 ready, 500 not ready, pending: workload proxy manager") || !strings.HasSuffix(story, "200 ready") {
		t.Errorf("readiness of ztunnel: %s", story)
	}
	// The new agent knows the old one's pods: it can take them out.
	w.label(w.podRef("server"), modeLabel, "none")
	w.awaitRedirection("", "server")
	if tr := in[traces](w, "server", "traces", nil); !tr.empty() {
		t.Errorf("the agent that came back left in a pod of its predecessor: %+v", tr)
	}
}

// TestKillControlPlane: what was decided stays in force; back, it decides again.
func TestKillControlPlane(t *testing.T) {
	w := newWorld(t, "kill-istiod", true)
	policy := strings.ReplaceAll(denyRogue, "NS", w.ns)
	w.apply(policy)
	denied := func() error { return w.ask("client", "http://near/", "--count", "1").none() }
	w.eventually(10*time.Second, "the policy is in force", denied)
	w.killed("istiod-lite", func(at time.Time) {
		if err := denied(); err != nil {
			t.Errorf("the policy died with the control plane: %v", err)
		}
		w.remove(lab.Ref{Group: "security.istio.io", Kind: "AuthorizationPolicy", Namespace: w.ns, Name: "deny-client"})
		w.eventually(left(at), "a change is in force 5 s after kill -9", func() error { return w.ask("client", "http://near/", "--count", "1").good() })
	})
	// Certificates come from the same root as before.
	w.apply(w.pod("fresh", "node-2") + w.service("fresh"))
	w.ready()
	w.awaitRedirection("enabled", "fresh")
	w.dark(w.wired(func() { w.mustAsk("client", "http://fresh/") }))
}

// TestKillProxy: its connections go with it, its pods' next ones do not go around it.
func TestKillProxy(t *testing.T) {
	w := newWorld(t, "kill-ztunnel", true)
	w.mustAsk("client", "http://server/")
	s := w.wired(func() {
		at := time.Now()
		if _, err := w.c.Kill(t.Context(), component("ztunnel-node-1"), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.eventually(left(at), "new connections work 5 s after kill -9", func() error { return w.ask("client", "http://server/", "--count", "1", "--timeout", "1s").good() })
		w.mustAsk("client", "http://near/")
	})
	w.dark(s)
}
