package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
)

func client() lab.Target { return lab.Target{Namespace: "shop", Name: "client"} }

// run executes the pods' program in the client pod.
func run(t *testing.T, l *lab.Lab, args ...string) lab.Output {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := l.Run(ctx, client(), append([]string{self(t), "pod"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually tries again for some seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 15 s", what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

func TestLab(t *testing.T) {
	l := up(t, lab.Options{Name: "t1", Zones: []string{"r1/z1"}})
	apply(t, l, shop)
	t.Run("service", func(t *testing.T) { testService(t, l) })
	t.Run("exec", func(t *testing.T) { testExec(t, l) })
	t.Run("logs", func(t *testing.T) { testLogs(t, l) })
	t.Run("label and apply", func(t *testing.T) { testLabel(t, l) })
	t.Run("refusals", func(t *testing.T) { testRefusals(t, l) })
	t.Run("restart", func(t *testing.T) { testRestart(t, l) })
	t.Run("record", func(t *testing.T) { testRecord(t, l) })
	t.Run("rollout", func(t *testing.T) { testRollout(t, l) })
	t.Run("delete", func(t *testing.T) { testDelete(t, l) })
}

func testService(t *testing.T, l *lab.Lab) {
	seen := map[string]bool{}
	eventually(t, "both pods of the Service answer", func() bool {
		out := run(t, l, "get", "http://web.shop/")
		seen[string(out.Stdout)] = out.Exit == 0
		return len(seen) == 2
	})
	nodes, err := lab.Get[*corev1.Node](t.Context(), l.Client, "", "node-1")
	if err != nil || nodes[0].Labels[corev1.LabelTopologyZone] != "z1" || nodes[0].Labels[corev1.LabelTopologyRegion] != "r1" {
		t.Errorf("node-1: %v %v", nodes, err)
	}
	pods, err := lab.Get[*corev1.Pod](t.Context(), l.Client, "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	placed := map[string]int{}
	for _, p := range pods {
		if p.Labels["app"] == "web" {
			placed[p.Spec.NodeName]++
		}
		if p.Annotations["lab.marrowmesh.io/netns"] == "" {
			t.Errorf("pod %s has no netns annotation", p.Name)
		}
	}
	if placed["node-1"] != 1 || placed["node-2"] != 1 {
		t.Errorf("the Deployment's pods are on %v, want one on each node", placed)
	}
	if out := run(t, l, "lookup", "nobody.shop"); out.Exit != 3 {
		t.Errorf("an unknown name resolves to %s", out.Stdout)
	}
}

func testExec(t *testing.T, l *lab.Lab) {
	out, err := l.RunInput(t.Context(), client(), []byte("through and back"), "cat")
	if err != nil || string(out.Stdout) != "through and back" {
		t.Errorf("cat: %q %v", out.Stdout, err)
	}
	out, err = l.Run(t.Context(), client(), "sh", "-c", "echo out; echo err >&2; echo $NODE $ADDRESS; exit 7")
	if err != nil || out.Exit != 7 || !strings.HasPrefix(string(out.Stdout), "out\nnode-1 10.244.1.") || string(out.Stderr) != "err\n" {
		t.Errorf("sh: %+v %v", out, err)
	}
	if _, err := l.Run(t.Context(), lab.Target{Name: "nobody"}, "true"); err == nil || !strings.Contains(err.Error(), "shop/client") {
		t.Errorf("an unknown pod: %v", err)
	}
	if _, err := l.Run(t.Context(), client(), "no-such-program"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("an unknown program: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := l.Exec(ctx, lab.ExecRequest{Target: client(), Command: []string{"sleep", "300"}}, lab.Stdio{}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command whose caller leaves: %v", err)
	}
	out, err = l.Run(t.Context(), lab.Target{Name: "node-2"}, "cat", "/proc/net/dev")
	if err != nil || !bytes.Contains(out.Stdout, []byte("eth0")) {
		t.Errorf("in the node's namespace: %+v %v", out, err)
	}
	token, err := l.Run(t.Context(), client(), "cat", "/var/run/secrets/tokens/istio-token")
	if err != nil || strings.Count(string(token.Stdout), ".") != 2 || bytes.ContainsAny(token.Stdout, "\n ") {
		t.Errorf("token %q %v", token.Stdout, err)
	}
}

func testLogs(t *testing.T, l *lab.Lab) {
	var b bytes.Buffer
	if err := l.Logs(t.Context(), &b, client(), false, 0); err != nil || b.String() != "serving as client\n" {
		t.Errorf("logs: %q %v", b.String(), err)
	}
	b.Reset()
	if err := l.Logs(t.Context(), &b, lab.Target{Name: "lab"}, false, 0); err != nil || !strings.Contains(b.String(), "building 2 nodes") {
		t.Errorf("the lab's own log: %q %v", b.String(), err)
	}
}

func testLabel(t *testing.T, l *lab.Lab) {
	ref := lab.Ref{Kind: "Namespace", Name: "shop"}
	set := lab.LabelRequest{Ref: ref, Set: map[string]string{"istio.io/dataplane-mode": "ambient"}}
	if ch, err := l.Label(t.Context(), set); err != nil || ch.Action != "labeled" {
		t.Errorf("label: %+v %v", ch, err)
	}
	if ch, err := l.Label(t.Context(), set); err != nil || ch.Action != "unchanged" {
		t.Errorf("label again: %+v %v", ch, err)
	}
	// What the manifest does not speak of stays.
	changes, err := l.Apply(t.Context(), "again", []byte(strings.ReplaceAll(shop, "SELF", self(t))))
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range changes {
		if ch.Action != "unchanged" {
			t.Errorf("the same manifest again: %s %s", ch.Ref, ch.Action)
		}
	}
	ns, err := lab.Get[*corev1.Namespace](t.Context(), l.Client, "", "shop")
	if err != nil || ns[0].Labels["istio.io/dataplane-mode"] != "ambient" {
		t.Errorf("the label went with an apply: %v %v", ns, err)
	}
	if _, err := l.Label(t.Context(), lab.LabelRequest{Ref: ref, Remove: []string{"istio.io/dataplane-mode"}}); err != nil {
		t.Error(err)
	}
	if _, err := l.Label(t.Context(), lab.LabelRequest{Ref: lab.Ref{Kind: "Namespace", Name: "nope"}}); err == nil {
		t.Error("a label on nothing is no error")
	}
}

func testRefusals(t *testing.T, l *lab.Lab) {
	const good = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: good, namespace: shop}\n---\n"
	for name, c := range map[string]struct{ yaml, want string }{
		"unknown field":     {"apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: shop}\nspec: {contaners: []}\n", "spec.contaners"},
		"malformed":         {"apiVersion: v1\nkind: [\n", "bad.yaml"},
		"unknown namespace": {"apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: x, namespace: nope}\n", `"nope" does not exist`},
		"no command":        {"apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: shop}\nspec: {containers: [{name: a, image: x}]}\n", "spec.containers[0].command"},
		"changed pod":       {"apiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: shop}\nspec: {containers: [{name: a, image: x, command: [x]}]}\n", "cannot change"},
	} {
		if _, err := l.Apply(t.Context(), "bad.yaml", []byte(good+c.yaml)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if objects, err := lab.Get[*corev1.ServiceAccount](t.Context(), l.Client, "shop", "good"); err == nil {
		t.Errorf("TestApplyRefusesWhole: an object beside a refused one was stored: %v", objects)
	}
	if err := l.WaitReady(t.Context(), 5*time.Second); err != nil {
		t.Error(err)
	}
}

func testRestart(t *testing.T, l *lab.Lab) {
	if _, err := l.Kill(t.Context(), client(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the killed pod is back", func() bool {
		pods, err := lab.Get[*corev1.Pod](t.Context(), l.Client, "shop", "client")
		if err != nil {
			t.Fatal(err)
		}
		s := pods[0].Status.ContainerStatuses
		return len(s) == 1 && s[0].RestartCount == 1 && s[0].Ready
	})
	eventually(t, "it serves again", func() bool { return run(t, l, "get", "http://127.0.0.1:8080/").Exit == 0 })
}

func testRecord(t *testing.T, l *lab.Lab) {
	rec, err := l.Record(t.Context(), client(), "")
	if err != nil {
		t.Fatal(err)
	}
	run(t, l, "get", "http://web.shop/")
	done, err := l.StopRecording(t.Context(), rec.ID)
	if err != nil || done.Packets < 5 || done.Dropped != 0 {
		t.Errorf("recording: %+v %v", done, err)
	}
	raw, err := os.ReadFile(done.Path)
	if err != nil || !bytes.Contains(raw, []byte("GET / HTTP/1.1")) {
		t.Errorf("%d bytes, without the request: %v", len(raw), err)
	}
	if _, err := l.StopRecording(t.Context(), rec.ID); err == nil {
		t.Error("a recording ends twice")
	}
}

func testRollout(t *testing.T, l *lab.Lab) {
	req := lab.LabelRequest{Ref: lab.Ref{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: "web"}, Set: map[string]string{"rolled": "yes"}, Template: true}
	if _, err := l.Label(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	failures := make(chan string, 1)
	go func() {
		defer close(failures)
		for {
			select {
			case <-stop:
				return
			default:
			}
			out, err := l.Run(context.Background(), client(), self(t), "pod", "get", "http://web.shop/")
			if err != nil || out.Exit != 0 {
				failures <- fmt.Sprintf("%s %v", out.Stderr, err)
				return
			}
		}
	}()
	if err := l.WaitReady(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	close(stop)
	if text, failed := <-failures; failed {
		t.Errorf("a request failed during the rollout: %s", text)
	}
	pods, err := lab.Get[*corev1.Pod](t.Context(), l.Client, "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		if p.Labels["app"] == "web" && p.Labels["rolled"] != "yes" {
			t.Errorf("pod %s is of the old template", p.Name)
		}
	}
}

func testDelete(t *testing.T, l *lab.Lab) {
	if _, err := l.Delete(t.Context(), true, lab.Ref{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	pods, err := lab.Get[*corev1.Pod](t.Context(), l.Client, "shop", "")
	if err != nil || len(pods) != 1 {
		t.Errorf("pods after the Deployment's deletion: %d %v", len(pods), err)
	}
	if out := run(t, l, "get", "http://web.shop/"); out.Exit == 0 {
		t.Error("a Service without pods answers")
	}
	if _, err := l.Delete(t.Context(), true, lab.Ref{Kind: "Namespace", Name: "shop"}); err != nil {
		t.Fatal(err)
	}
	left, err := lab.Get[*appsv1.Deployment](t.Context(), l.Client, "shop", "")
	if err != nil || len(left) != 0 {
		t.Errorf("left of the namespace: %v %v", left, err)
	}
	if _, err := l.Delete(t.Context(), false, lab.Ref{Kind: "Node", Name: "node-1"}); err == nil {
		t.Error("a node can be deleted")
	}
}

// traces are the marks of a lab on the machine.
type traces struct {
	// Processes by id and start time. Numbers of processes and of namespaces
	// are used again, by other labs of this machine too, so neither says
	// anything without the start time.
	processes map[string]string
	links     []string
	mounts    string
}

// stat reads a process's parent and start time.
func stat(pid string) (parent, start string, ok bool) {
	raw, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return "", "", false
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	return fields[1], fields[19], true
}

// tracesOf collects the processes below pid, and those that share a network
// namespace with one of them.
func tracesOf(t *testing.T, pid int) traces {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	children, starts, netns := map[string][]string{}, map[string]string{}, map[string][]string{}
	for _, path := range paths {
		child := filepath.Base(path)
		parent, start, ok := stat(child)
		if !ok {
			continue // it has ended meanwhile
		}
		children[parent] = append(children[parent], child)
		starts[child] = start
		if link, err := os.Readlink(path + "/ns/net"); err == nil {
			netns[link] = append(netns[link], child)
		}
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tr := host(t)
	tr.processes = map[string]string{}
	queue := []string{fmt.Sprint(pid)}
	for len(queue) > 0 {
		p := queue[0]
		queue = append(queue[1:], children[p]...)
		tr.processes[p] = starts[p]
		if link, err := os.Readlink("/proc/" + p + "/ns/net"); err == nil && link != own {
			for _, other := range netns[link] {
				tr.processes[other] = starts[other]
			}
		}
	}
	return tr
}

func host(t *testing.T) traces {
	t.Helper()
	var tr traces
	ifs, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ifs {
		tr.links = append(tr.links, i.Name)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	tr.mounts = string(mounts)
	return tr
}

func TestLabLeavesNothing(t *testing.T) {
	for _, how := range []string{"down", "kill -9", "kill -9 detached"} {
		t.Run(how, func(t *testing.T) {
			before := host(t)
			l := up(t, lab.Options{Name: "t2", Detach: how == "kill -9 detached", User: how == "kill -9 detached"})
			apply(t, l, shop)
			during := tracesOf(t, l.PID)
			if len(during.processes) < 5 {
				t.Fatalf("only %d processes of the lab were found", len(during.processes))
			}
			if how != "down" {
				if err := syscall.Kill(l.PID, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the lab's lock is free", func() bool { return !l.State.Running() })
				if _, err := lab.Connect(t.Context(), filepath.Dir(l.State.Dir), "t2"); !errors.Is(err, lab.ErrNoLab) {
					t.Errorf("connect to a killed lab: %v", err)
				}
			}
			if err := l.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Dir(l.State.Dir)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the lab's directory is still there: %v", err)
			}
			after := host(t)
			if !slices.Equal(before.links, after.links) || strings.Contains(after.mounts, l.State.Dir) {
				t.Errorf("links before %v, after %v; mounts:\n%s", before.links, after.links, after.mounts)
			}
			gone(t, during)
		})
	}
}

// gone checks that no process of the lab lives, and so that nobody holds one of
// its namespaces.
func gone(t *testing.T, during traces) {
	t.Helper()
	for pid, start := range during.processes {
		_, now, ok := stat(pid)
		if !ok || now != start {
			continue
		}
		// A process that waits for its parent to look has no namespace left.
		if link, err := os.Readlink("/proc/" + pid + "/ns/net"); err == nil {
			t.Errorf("process %s of the lab lives in %s", pid, link)
		}
	}
}

func TestStaleAndRunning(t *testing.T) {
	l := up(t, lab.Options{Name: "t3", Nodes: 1})
	root := filepath.Dir(l.State.Dir)
	if _, err := lab.Up(t.Context(), lab.Options{Name: "t3", Nodes: 1, Root: root, NoMesh: true}); !errors.Is(err, lab.ErrRunning) {
		t.Fatalf("a second lab of the name: %v", err)
	}
	if err := syscall.Kill(l.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lab is gone", func() bool { return !l.State.Running() })
	again := up(t, lab.Options{Name: "t3", Nodes: 1, Root: root})
	labs, err := lab.List(root)
	if err != nil || len(labs) != 1 || !labs[0].Running || labs[0].PID != again.PID {
		t.Errorf("labs %+v %v, want pid %d", labs, err, again.PID)
	}
}
