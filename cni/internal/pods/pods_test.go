package pods

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/marrowmesh/marrow/cni/internal/redirect"
	"github.com/marrowmesh/marrow/internal/netsys/ruleset"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/zds"
)

func TestJudge(t *testing.T) {
	ambient, none := map[string]string{LabelMode: "ambient"}, map[string]string{LabelMode: "none"}
	sel := Selection{SystemNamespace: "istio-system", ExcludeNamespaces: []string{"kube-system"}}
	for name, tc := range map[string]struct {
		pod   Pod
		space map[string]string
		want  bool
	}{
		"namespace says so":       {Pod{}, ambient, true},
		"pod says so":             {Pod{Labels: ambient}, nil, true},
		"pod opts out":            {Pod{Labels: none}, ambient, false},
		"pod opts in":             {Pod{Labels: ambient}, none, true},
		"nobody says so":          {Pod{}, nil, false},
		"other word":              {Pod{Labels: map[string]string{LabelMode: "x"}}, ambient, true},
		"other word, no space":    {Pod{Labels: map[string]string{LabelMode: "x"}}, nil, false},
		"host network":            {Pod{HostNetwork: true, Labels: ambient}, ambient, false},
		"sidecar":                 {Pod{Annotations: map[string]string{"sidecar.istio.io/status": "{}"}}, ambient, false},
		"ended":                   {Pod{Ended: true}, ambient, false},
		"excluded namespace":      {Pod{Namespace: "kube-system", Labels: ambient}, ambient, false},
		"node proxy":              {Pod{Namespace: "istio-system", Labels: map[string]string{"app": "ztunnel", LabelMode: "ambient"}}, ambient, false},
		"node proxy's name alone": {Pod{Namespace: "x", Labels: map[string]string{"app": "ztunnel"}}, ambient, true},
	} {
		if got, why := sel.Judge(tc.pod, tc.space); got != tc.want || why == "" {
			t.Errorf("%s: %v (%s), want %v", name, got, why, tc.want)
		}
	}
}

// world is everything around a Manager, with behaviour, writing down what
// happens in order.
type world struct {
	mu      sync.Mutex
	events  []string
	batches chan Batch
	refuse  map[string]error // proxy's answer by uid
	hang    map[string]bool  // the proxy never answers for these
	addrs   map[string][]netip.Addr
	m       *Manager
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf(format, args...))
}

func (w *world) seen() string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	s := strings.Join(w.events, "\n")
	w.events = nil
	return s
}

func (w *world) Watch(context.Context) (<-chan Batch, error) { return w.batches, nil }

func (w *world) Annotate(_ context.Context, p Pod, state string) error {
	w.note("annotate %s %q", p.Name, state)
	return nil
}

func (w *world) Add(ctx context.Context, uid string, _ zds.Info, _ int) error {
	w.mu.Lock()
	err, hang := w.refuse[uid], w.hang[uid]
	w.mu.Unlock()
	w.note("proxy add %s", uid)
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (w *world) Del(_ context.Context, uid string) error { w.note("proxy del %s", uid); return nil }

type space struct {
	w    *world
	path string
}

func (s space) Addrs() ([]netip.Addr, error) { return s.w.addrs[s.path], nil }
func (s space) Apply(ruleset.Set) error      { s.w.note("rules in %s", s.path); return nil }
func (s space) Undo(ruleset.Set) error       { s.w.note("rules out %s", s.path); return nil }
func (s space) DupFD() (int, error)          { return 3, nil }
func (s space) Close() error                 { return nil }

var ip1 = netip.MustParseAddr("10.0.0.1")

func run1(t *testing.T, fn func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			batches: make(chan Batch), refuse: map[string]error{}, hang: map[string]bool{},
			addrs: map[string][]netip.Addr{"/ns/a": {ip1}, "/ns/b": {netip.MustParseAddr("10.0.0.2")}},
		}
		w.m = New(Config{
			Source: w, Proxy: w, Log: obs.Discard(), Selection: Selection{},
			Redirect: redirect.Options{Probe4: netip.MustParseAddr("169.254.7.127")},
			Open:     func(path string) (Namespace, error) { return space{w, path}, nil },
			Probes: func(list []redirect.Enrolled) error {
				w.note("probes %v", list)
				return nil
			},
			CloseFD: func(int) {},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.m.Run(ctx) }()
		fn(t, w)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func podA(note string) *Pod {
	p := &Pod{UID: "a", Name: "a", Namespace: "shop", IPs: []netip.Addr{ip1}, Netns: "/ns/a"}
	if note != "" {
		p.Annotations = map[string]string{AnnotationRedirection: note}
	}
	return p
}

func podB() *Pod {
	return &Pod{UID: "b", Name: "b", Namespace: "shop", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Netns: "/ns/b"}
}

func labelled(mode string) map[string]map[string]string {
	return map[string]map[string]string{"shop": {LabelMode: mode}}
}

func want(t *testing.T, got string, lines ...string) {
	t.Helper()
	if got != strings.Join(lines, "\n") {
		t.Errorf("happened\n  %s\nwant\n  %s", strings.ReplaceAll(got, "\n", "\n  "), strings.Join(lines, "\n  "))
	}
}

func TestEnrolmentOrder(t *testing.T) {
	run1(t, func(t *testing.T, w *world) {
		w.batches <- Batch{}
		w.batches <- Batch{Pods: map[string]*Pod{"a": podA("")}, Namespaces: labelled("")}
		want(t, w.seen(), "probes []")
		w.batches <- Batch{Namespaces: labelled("ambient")}
		want(t, w.seen(), "rules in /ns/a", "proxy add a", "probes [{10.0.0.1 a}]", `annotate a "enabled"`)
		w.batches <- Batch{Pods: map[string]*Pod{"a": podA("enabled")}} // the echo of our own annotation
		want(t, w.seen(), "")
	})
}

func TestRemovalOrder(t *testing.T) {
	run1(t, func(t *testing.T, w *world) {
		w.batches <- Batch{Pods: map[string]*Pod{"a": podA("")}, Namespaces: labelled("ambient")}
		_ = w.seen()
		w.batches <- Batch{Namespaces: labelled("none")}
		want(t, w.seen(), "probes []", "rules out /ns/a", "proxy del a", `annotate a ""`)
		// Deleted pods keep their rules to the end.
		w.batches <- Batch{Namespaces: labelled("ambient")}
		_ = w.seen()
		w.batches <- Batch{Pods: map[string]*Pod{"a": nil}}
		want(t, w.seen(), "probes []", "proxy del a")
		if left := w.m.Dump(); len(left) != 0 {
			t.Errorf("remembered: %+v", left)
		}
	})
}

func TestRetryUntilAccepted(t *testing.T) {
	run1(t, func(t *testing.T, w *world) {
		w.refuse["a"] = zds.ErrNoProxy
		w.batches <- Batch{Pods: map[string]*Pod{"a": podA("")}, Namespaces: labelled("ambient")}
		want(t, w.seen(), "probes []", "rules in /ns/a", "proxy add a", `annotate a "pending"`)
		time.Sleep(5*time.Millisecond + 10*time.Millisecond + 20*time.Millisecond)
		want(t, w.seen(), "proxy add a", "proxy add a", "proxy add a")
		time.Sleep(time.Minute)
		if tries := strings.Count(w.seen(), "proxy add a"); tries < 15 || tries > 25 {
			t.Errorf("%d tries in a minute", tries)
		}
		w.mu.Lock()
		w.refuse["a"] = nil
		w.mu.Unlock()
		w.m.Poke() // a proxy came
		want(t, w.seen(), "proxy add a", "probes [{10.0.0.1 a}]", `annotate a "enabled"`)
	})
}

func TestPodsAreIndependent(t *testing.T) {
	run1(t, func(t *testing.T, w *world) {
		w.hang["a"] = true
		w.batches <- Batch{Pods: map[string]*Pod{"a": podA(""), "b": podB()}, Namespaces: labelled("ambient")}
		if got := w.seen(); !strings.Contains(got, `annotate b "enabled"`) || strings.Contains(got, "annotate a") {
			t.Errorf("happened:\n%s", got)
		}
	})
}

func TestRestartKeepsPods(t *testing.T) {
	run1(t, func(t *testing.T, w *world) {
		w.refuse["a"] = zds.ErrNoProxy // not connected yet
		listed := make(chan []zds.Entry, 1)
		go func() { listed <- w.m.Snapshot(t.Context()) }()
		synctest.Wait()
		if len(listed) > 0 {
			t.Fatal("a snapshot before the first look at the source")
		}
		w.batches <- Batch{Pods: map[string]*Pod{"a": podA("enabled"), "b": podB()}, Namespaces: labelled("ambient")}
		snapshot := <-listed
		if !slices.ContainsFunc(snapshot, func(e zds.Entry) bool { return e.UID == "a" }) {
			t.Errorf("snapshot %+v lacks the enrolled pod", snapshot)
		}
		got := w.seen()
		if !strings.HasPrefix(got, "probes [{10.0.0.1 a}]") || strings.Contains(got, "annotate a") {
			t.Errorf("an enrolled pod lost its state:\n%s", got)
		}
	})
}

func TestUnwantedAfterRestart(t *testing.T) {
	run1(t, func(t *testing.T, w *world) {
		w.batches <- Batch{Pods: map[string]*Pod{"a": podA("enabled")}, Namespaces: labelled("")}
		want(t, w.seen(), "probes []", "rules out /ns/a", "proxy del a", `annotate a ""`)
	})
}

// TestLeftoversOfAKilledAgent: rules without an annotation, in a pod whose
// label went meanwhile, are taken out at the start; pods that come later have
// none.
func TestLeftoversOfAKilledAgent(t *testing.T) {
	run1(t, func(t *testing.T, w *world) {
		w.batches <- Batch{Pods: map[string]*Pod{"a": podA("")}, Namespaces: labelled("")}
		want(t, w.seen(), "probes []", "rules out /ns/a")
		w.batches <- Batch{Pods: map[string]*Pod{"a": podA(""), "b": podB()}}
		want(t, w.seen(), "")
	})
}

func TestForeignAddress(t *testing.T) {
	run1(t, func(t *testing.T, w *world) {
		p := podA("")
		p.Netns = "/ns/b"
		w.batches <- Batch{Pods: map[string]*Pod{"a": p}, Namespaces: labelled("ambient")}
		want(t, w.seen(), "probes []")
		if d := w.m.Dump(); len(d) != 1 || !strings.Contains(d[0].Error, "not the pod's") {
			t.Errorf("%+v", d)
		}
	})
}

func TestEnrolWaits(t *testing.T) {
	run1(t, func(t *testing.T, w *world) {
		if err := w.m.Enrol(t.Context(), Request{Name: "x", Namespace: "shop"}); !errors.Is(err, ErrUnknownPod) {
			t.Errorf("unknown pod: %v", err)
		}
		bare := &Pod{UID: "a", Name: "a", Namespace: "shop"}
		w.batches <- Batch{Pods: map[string]*Pod{"a": bare}, Namespaces: labelled("")}
		req := Request{Name: "a", Namespace: "shop", Netns: "/ns/a", IPs: []netip.Addr{ip1}}
		if err := w.m.Enrol(t.Context(), req); !errors.Is(err, ErrNotEligible) {
			t.Errorf("without label: %v", err)
		}
		w.batches <- Batch{Namespaces: labelled("ambient")}
		_ = w.seen()
		if err := w.m.Enrol(t.Context(), req); err != nil {
			t.Errorf("with label: %v", err)
		}
		// The plugin comes again with another namespace for the same pod.
		w.addrs["/ns/new"] = []netip.Addr{ip1}
		req.Netns = "/ns/new"
		if err := w.m.Enrol(t.Context(), req); err != nil {
			t.Error(err)
		}
		if got := w.seen(); !strings.Contains(got, "rules in /ns/new\nproxy add a") {
			t.Errorf("happened:\n%s", got)
		}
	})
}
