package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/cni/internal/pods"
	"github.com/marrowmesh/marrow/cni/internal/source/file"
	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/testkit/nstest"
	"github.com/marrowmesh/marrow/internal/zds"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

// proxy is a node proxy that takes everything it is offered.
type proxy struct {
	mu     sync.Mutex
	pods   map[string]zds.Info
	listed int
	refuse error
}

func (p *proxy) Session(bool) {}

func (p *proxy) Add(_ context.Context, uid string, info zds.Info, fd int) error {
	ns, err := netsys.NetnsFromFD(fd)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != nil {
		return p.refuse
	}
	p.pods[uid] = info
	return nil
}

func (p *proxy) Keep(context.Context, string) error { return nil }

func (p *proxy) Del(_ context.Context, uid string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pods, uid)
	return nil
}

func (p *proxy) Snapshot(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listed++
	return nil
}

func (p *proxy) has(uid string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.pods[uid]
	return ok
}

// bench is a node with one pod, an object store and a place for sockets.
type bench struct {
	t     *testing.T
	dir   string
	store *filestore.Store
	pod   *netsys.Netns
}

func newBench(t *testing.T) *bench {
	t.Helper()
	nstest.Need(t)
	b := &bench{t: t, dir: t.TempDir(), pod: namespace(t, "10.1.2.3/24")}
	var err error
	if b.store, err = filestore.Open(filepath.Join(b.dir, "objects")); err != nil {
		t.Fatal(err)
	}
	if err := b.store.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}); err != nil {
		t.Fatal(err)
	}
	return b
}

func namespace(t *testing.T, address string) *netsys.Netns {
	t.Helper()
	ns := nstest.NewNetns(t)
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	lo, _ := h.LinkByName("lo")
	addr, _ := netlink.ParseAddr(address)
	if err := errors.Join(h.LinkSetUp(lo), h.AddrAdd(lo, addr)); err != nil {
		t.Fatal(err)
	}
	return ns
}

func (b *bench) path(ns *netsys.Netns) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD())
}

func (b *bench) putPod(name, path string, ip string) string {
	b.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", Annotations: map[string]string{file.AnnotationNetns: path}},
		Spec:       corev1.PodSpec{NodeName: "node-1", ServiceAccountName: "web", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if err := b.store.Put(p); err != nil {
		b.t.Fatal(err)
	}
	got, err := b.store.Get(key("Pod", "shop", name))
	if err != nil {
		b.t.Fatal(err)
	}
	p = got.(*corev1.Pod)
	if ip != "" {
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
		if err := b.store.PutStatus(p); err != nil {
			b.t.Fatal(err)
		}
	}
	return string(p.UID)
}

func key(kind, ns, name string) manifest.Key {
	return manifest.Key{Kind: kind, Namespace: ns, Name: name}
}

func (b *bench) label(mode string) {
	b.t.Helper()
	err := b.store.Patch(key("Namespace", "", "shop"), func(o manifest.Object) error {
		o.SetLabels(map[string]string{pods.LabelMode: mode})
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// start runs an agent until stop.
func (b *bench) start() (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, System{Log: io.Discard, Conf: conf.FromMap(map[string]string{
			"NODE_NAME": "node-1", "MARROW_CNI_SOURCE": "file:" + filepath.Join(b.dir, "objects"),
			"ZTUNNEL_UDS_ADDRESS":      filepath.Join(b.dir, "z.sock"),
			"MARROW_CNI_PLUGIN_SOCKET": filepath.Join(b.dir, "p.sock"),
			"MARROW_CNI_READY_ADDR":    "127.0.0.1:8000",
			"AMBIENT_ENABLED":          "true",
		})})
	}()
	b.eventually("agent is ready", func() bool {
		resp, err := http.Get("http://127.0.0.1:8000/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == 200
	})
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("agent: %v", err)
		}
	}
}

func (b *bench) connect(p *proxy) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- zds.NewClient(obs.Discard()).Run(ctx, filepath.Join(b.dir, "z.sock"), p) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("proxy: %v", err)
		}
	}
}

func (b *bench) eventually(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	b.t.Fatalf("never: %s", what)
}

func (b *bench) note(name string) string {
	o, err := b.store.Get(key("Pod", "shop", name))
	if err != nil {
		return err.Error()
	}
	return o.GetAnnotations()[pods.AnnotationRedirection]
}

func (b *bench) tables() []string {
	b.t.Helper()
	names, err := b.pod.Tables()
	if err != nil {
		b.t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func TestAgentEndToEnd(t *testing.T) {
	b := newBench(t)
	if lo, err := netlink.LinkByName("lo"); err == nil {
		_ = netlink.LinkSetUp(lo)
	}
	uid := b.putPod("web", b.path(b.pod), "10.1.2.3")
	stop := b.start()
	p := &proxy{pods: map[string]zds.Info{}}
	disconnect := b.connect(p)
	b.eventually("snapshot", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.listed > 0 })
	if len(b.tables()) != 0 {
		t.Fatal("a pod without label is redirected")
	}
	b.label("ambient")
	b.eventually("enabled", func() bool { return b.note("web") == "enabled" })
	if !p.has(uid) || p.pods[uid] != (zds.Info{Name: "web", Namespace: "shop", ServiceAccount: "web"}) {
		t.Errorf("proxy has %v", p.pods)
	}
	if got := b.tables(); len(got) != 2 {
		t.Errorf("tables %v", got)
	}
	// The agent ends: the pod stays as it is, and so it is after a restart.
	stop()
	if got := b.tables(); len(got) != 2 || b.note("web") != "enabled" {
		t.Errorf("TestEndLeavesPods: tables %v, annotation %q", got, b.note("web"))
	}
	disconnect()
	stop = b.start()
	if b.note("web") != "enabled" {
		t.Errorf("TestRestartKeepsPods: annotation %q", b.note("web"))
	}
	p2 := &proxy{pods: map[string]zds.Info{}}
	disconnect = b.connect(p2)
	b.eventually("new proxy has the pod", func() bool { return p2.has(uid) })
	// Un-enrolling leaves nothing.
	b.label("none")
	b.eventually("removed", func() bool { return b.note("web") == "" && !p2.has(uid) })
	if got := b.tables(); len(got) != 0 {
		t.Errorf("tables left: %v", got)
	}
	// And in again, then deleted.
	b.label("ambient")
	b.eventually("enabled again", func() bool { return b.note("web") == "enabled" && p2.has(uid) })
	if err := b.store.Delete(key("Pod", "shop", "web")); err != nil {
		t.Fatal(err)
	}
	b.eventually("proxy forgot it", func() bool { return !p2.has(uid) })
	disconnect()
	stop()
}

func TestForeignNamespaceIsRefused(t *testing.T) {
	b := newBench(t)
	if lo, err := netlink.LinkByName("lo"); err == nil {
		_ = netlink.LinkSetUp(lo)
	}
	b.label("ambient")
	other := namespace(t, "10.9.9.9/24")
	b.putPod("liar", b.path(other), "10.1.2.3")
	b.putPod("host", "/proc/self/ns/net", "127.0.0.1")
	b.putPod("nothing", "/dev/null", "10.1.2.3")
	good := b.putPod("good", b.path(b.pod), "10.1.2.3")
	stop := b.start()
	p := &proxy{pods: map[string]zds.Info{}}
	disconnect := b.connect(p)
	b.eventually("the good pod is served", func() bool { return p.has(good) && b.note("good") == "enabled" })
	if len(p.pods) != 1 {
		t.Errorf("proxy got %v", p.pods)
	}
	if names, _ := other.Tables(); len(names) != 0 {
		t.Errorf("rules in a foreign namespace: %v", names)
	}
	resp, err := http.Get("http://127.0.0.1:15000/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	dump, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	for _, reason := range []string{"it is not the pod's", "is the node's own", "not a network namespace"} {
		if !strings.Contains(string(dump), reason) {
			t.Errorf("the dump does not say %q:\n%s", reason, dump)
		}
	}
	disconnect()
	stop()
}

func TestPluginAsksForNewPod(t *testing.T) {
	b := newBench(t)
	if lo, err := netlink.LinkByName("lo"); err == nil {
		_ = netlink.LinkSetUp(lo)
	}
	stop := b.start()
	p := &proxy{pods: map[string]zds.Info{}, refuse: errors.New("failure to start proxy")}
	disconnect := b.connect(p)
	uid := b.putPod("web", "", "") // its object knows neither address nor namespace yet
	ask := func() (int, string) {
		body, _ := json.Marshal(map[string]any{
			"Netns": b.path(b.pod), "PodName": "web", "PodNamespace": "shop",
			"IPs": []any{map[string]any{"Address": net.IPNet{IP: netip.MustParseAddr("10.1.2.3").AsSlice(), Mask: net.CIDRMask(32, 32)}}},
		})
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(b.dir, "p.sock"))
		}}}
		resp, err := client.Post("http://agent/cmdadd", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	if code, text := ask(); code != 500 || !strings.Contains(text, "not to be enrolled") {
		t.Errorf("pod without label: %d %s", code, text)
	}
	b.label("ambient")
	b.eventually("the label is known", func() bool {
		code, text := ask()
		return code == 500 && strings.Contains(text, "failure to start proxy")
	})
	b.eventually("pending", func() bool { return b.note("web") == "pending" })
	p.mu.Lock()
	p.refuse = nil
	p.mu.Unlock()
	b.eventually("enrolled", func() bool { code, _ := ask(); return code == 200 })
	if !p.has(uid) || b.note("web") != "enabled" {
		t.Errorf("TestRetryUntilAccepted: proxy has it: %v, annotation %q", p.has(uid), b.note("web"))
	}
	disconnect()
	stop()
}
