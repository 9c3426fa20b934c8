package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/components"
	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/lab/proc"
	"github.com/marrowmesh/marrow/internal/lab/tokens"
)

// oneWorld holds one pod and one namespace.
type oneWorld struct {
	mu  sync.Mutex
	pod *corev1.Pod
	ns  *corev1.Namespace
}

func (o *oneWorld) PatchPod(_, _ string, _ types.UID, edit func(*corev1.Pod)) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	edit(o.pod)
	return nil
}
func (o *oneWorld) RemovePod(string, string, types.UID) error { return nil }
func (o *oneWorld) Sources(string) plan.Sources               { return plan.Sources{} }
func (o *oneWorld) Namespace(string) *corev1.Namespace {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ns
}

func (o *oneWorld) reason() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.pod.Status.Reason
}

func testWorker(t *testing.T) (*worker, *oneWorld) {
	t.Helper()
	dir, err := os.MkdirTemp("", "kubelet") //nolint:usetesting // a unix socket's path has room for 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	issuer, err := tokens.NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "shop", UID: "u1"}, Spec: corev1.PodSpec{ServiceAccountName: "web", NodeName: "node-1"}}
	world := &oneWorld{pod: p.DeepCopy(), ns: &corev1.Namespace{}}
	w := newWorker(Config{World: world, State: lab.State{Dir: dir}, Tokens: issuer, Mesh: true, Path: "/bin", Note: t.Logf}, p, func() {})
	node, err := fabric.PlanNode(1, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	w.node = &fabric.Node{Plan: node}
	w.netns, err = fabric.CurrentNetns("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.netns.Close() })
	w.setAddrs([]netip.Addr{netip.MustParseAddr("10.244.1.7"), netip.MustParseAddr("fd00:10:244:1::7")})
	return w, world
}

// agent is a small cni agent that answers as told.
func agent(t *testing.T, w *worker, answer func(cmdAdd) int) {
	t.Helper()
	socket := components.PluginSocket(w.cfg.State.Node("node-1"))
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		var req cmdAdd
		if r.URL.Path != "/cmdadd" || json.NewDecoder(r.Body).Decode(&req) != nil {
			rw.WriteHeader(http.StatusBadRequest)
			return
		}
		rw.WriteHeader(answer(req))
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
}

func TestEnrolledPodWaitsForAgent(t *testing.T) {
	w, world := testWorker(t)
	world.ns.Labels = map[string]string{plan.DataplaneLabel: "ambient"}
	// No agent yet: the pod must not start.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if w.enrol(ctx) {
		t.Fatal("an enrolled pod starts without an agent")
	}
	if world.reason() != "WaitingForMesh" {
		t.Errorf("its status says %q", world.reason())
	}
	var calls atomic.Int32
	agent(t, w, func(req cmdAdd) int {
		if req.PodName != "web-1" || req.PodNamespace != "shop" || req.Netns != w.netns.Path() || len(req.IPs) != 2 ||
			req.IPs[0].Address.String() != "10.244.1.7/32" || req.IPs[1].Address.String() != "fd00:10:244:1::7/128" || req.IPs[0].Gateway.String() != "10.244.1.1" {
			t.Errorf("the agent is told %+v", req)
		}
		if calls.Add(1) < 3 {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	if !w.enrol(t.Context()) || calls.Load() != 3 {
		t.Errorf("enrolled after %d calls, want 3", calls.Load())
	}
}

func TestOtherPodsDoNotWait(t *testing.T) {
	w, world := testWorker(t)
	if !w.enrol(t.Context()) {
		t.Error("a pod without label waits for an agent that is not there")
	}
	agent(t, w, func(cmdAdd) int {
		// The label goes while the agent thinks.
		world.mu.Lock()
		defer world.mu.Unlock()
		world.ns = &corev1.Namespace{}
		return http.StatusInternalServerError
	})
	world.ns.Labels = map[string]string{plan.DataplaneLabel: "ambient"}
	if !w.enrol(t.Context()) {
		t.Error("a pod whose label has gone waits for the agent")
	}
}

func TestStatus(t *testing.T) {
	p := &corev1.Pod{}
	up := state{name: "a", running: true, ready: true}
	starting := state{name: "a"}
	crashed := state{name: "a", restarts: 2, waiting: "CrashLoopBackOff", terminated: &corev1.ContainerStateTerminated{ExitCode: 1}}
	done := state{name: "a", done: true, terminated: &corev1.ContainerStateTerminated{}}
	failed := state{name: "a", done: true, terminated: &corev1.ContainerStateTerminated{ExitCode: 2}}
	for name, c := range map[string]struct {
		states []state
		ending bool
		phase  corev1.PodPhase
		ready  bool
	}{
		"network only":  {nil, false, corev1.PodPending, false},
		"starting":      {[]state{starting}, false, corev1.PodPending, false},
		"up":            {[]state{up}, false, corev1.PodRunning, true},
		"one of two up": {[]state{up, starting}, false, corev1.PodPending, false},
		"not ready":     {[]state{{name: "a", running: true}}, false, corev1.PodRunning, false},
		"ending":        {[]state{up}, true, corev1.PodRunning, false},
		"crashed":       {[]state{crashed}, false, corev1.PodRunning, false},
		"done":          {[]state{done}, false, corev1.PodSucceeded, false},
		"failed":        {[]state{done, failed}, false, corev1.PodFailed, false},
	} {
		s := statusOf(p, c.states, c.ending)
		p.Status = s
		if s.Phase != c.phase || plan.IsReady(p) != c.ready {
			t.Errorf("%s: phase %s ready %t, want %s %t", name, s.Phase, plan.IsReady(p), c.phase, c.ready)
		}
	}
	s := statusOf(p, []state{crashed}, false).ContainerStatuses[0]
	if s.RestartCount != 2 || s.State.Waiting.Reason != "CrashLoopBackOff" || s.LastTerminationState.Terminated.ExitCode != 1 {
		t.Errorf("%+v", s)
	}
	a, b := statusOf(p, []state{up}, false), statusOf(p, []state{up}, false)
	if !sameStatus(a, b) || sameStatus(a, statusOf(p, []state{crashed}, false)) {
		t.Error("statuses compare by their times")
	}
	a.Conditions[0].LastTransitionTime = metav1.NewTime(time.Unix(1, 0))
	keepTransitions(a.Conditions, b.Conditions)
	if b.Conditions[0].LastTransitionTime.Unix() != 1 {
		t.Error("an unchanged condition has a new time")
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 9 {
		got = append(got, b.next(time.Second))
	}
	if got[0] != 100*time.Millisecond || got[1] != 200*time.Millisecond || got[8] != maxWait {
		t.Errorf("waits %v", got)
	}
	if after := b.next(goodRun); after != firstWait {
		t.Errorf("after a good run %v", after)
	}
}

func TestRestarts(t *testing.T) {
	for _, c := range []struct {
		policy corev1.RestartPolicy
		code   int
		want   bool
	}{
		{corev1.RestartPolicyAlways, 0, true},
		{corev1.RestartPolicyOnFailure, 0, false},
		{corev1.RestartPolicyOnFailure, 1, true},
		{corev1.RestartPolicyNever, 1, false},
	} {
		if got := restarts(c.policy, proc.Status{Code: c.code}); got != c.want {
			t.Errorf("%s after %d: %t", c.policy, c.code, got)
		}
	}
}

func TestFilesAndVolumes(t *testing.T) {
	w, _ := testWorker(t)
	if err := os.MkdirAll(w.cfg.State.CA(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.cfg.State.CA(), "root-cert.pem"), []byte("PEM"), 0o644); err != nil {
		t.Fatal(err)
	}
	files, err := w.files()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for _, f := range files {
		have[f.Path] = string(f.Data)
	}
	if have[rootFile] != "PEM" || have[accountDir+"/namespace"] != "shop" || strings.Count(have[tokenFile], ".") != 2 || have[tokenFile] == have[accountDir+"/token"] {
		t.Errorf("files %v", have)
	}
	seconds := int64(60)
	w.pod.Spec.Volumes = []corev1.Volume{
		{Name: "cm", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
		{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "x", ExpirationSeconds: &seconds, Path: "t"}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}},
		}}}},
		{Name: "odd"},
	}
	src := plan.Sources{ConfigMaps: map[string]*corev1.ConfigMap{"conf": {Data: map[string]string{"../a": "1"}}}}
	c := &corev1.Container{Name: "c", VolumeMounts: []corev1.VolumeMount{{Name: "cm", MountPath: "/run/cm", ReadOnly: true}, {Name: "token", MountPath: "/run/t"}}}
	mounts, err := w.mounts(c, src)
	if err != nil || len(mounts) != 2 || !mounts[0].ReadOnly {
		t.Fatalf("%+v %v", mounts, err)
	}
	for path, want := range map[string]string{filepath.Join(mounts[0].Source, "a"): "1", filepath.Join(mounts[1].Source, "name"): "web-1"} {
		if raw, err := os.ReadFile(path); err != nil || string(raw) != want {
			t.Errorf("%s: %q %v", path, raw, err)
		}
	}
	for _, name := range []string{"odd", "absent"} {
		c.VolumeMounts = []corev1.VolumeMount{{Name: name, MountPath: "/run/x"}}
		if _, err := w.mounts(c, src); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.disconnectFiles(t)
}

// disconnectFiles checks that the pod's end takes its volumes away.
func (w *worker) disconnectFiles(t *testing.T) {
	t.Helper()
	w.pod.Spec.HostNetwork = true
	w.disconnect()
	if _, err := os.Stat(w.dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pod's directory is left: %v", err)
	}
}

func TestLogs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	l := newLogFile(path)
	for _, text := range []string{"one\n", "two\n", "three\n"} {
		if _, err := l.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	for tail, want := range map[int]string{0: "one\ntwo\nthree\n", 1: "three\n", 2: "two\nthree\n", 3: "one\ntwo\nthree\n", 9: "one\ntwo\nthree\n"} {
		var b bytes.Buffer
		if err := CopyLog(t.Context(), &b, path, false, tail); err != nil || b.String() != want {
			t.Errorf("tail %d: %q %v", tail, b.String(), err)
		}
	}
	big := bytes.Repeat([]byte("x"), maxLog-5)
	_, _ = l.Write(big)
	_, _ = l.Write([]byte("after\n"))
	l.close()
	if raw, err := os.ReadFile(path); err != nil || string(raw) != "after\n" {
		t.Errorf("%d bytes after the rotation: %v", len(raw), err)
	}
	if st, err := os.Stat(path + ".1"); err != nil || st.Size() > maxLog {
		t.Errorf("the rotated file: %v %v", st, err)
	}
}
