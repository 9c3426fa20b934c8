package proc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/testkit/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m, MaybeInit)) }

// output is a writer that tests can read while the process writes.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
	got chan struct{}
}

func newOutput() *output { return &output{got: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.got <- struct{}{}:
	default:
	}
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// await waits until the output holds the text.
func (o *output) await(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for !strings.Contains(o.String(), text) {
		select {
		case <-o.got:
		case <-timeout:
			t.Fatalf("no %q in output %q", text, o.String())
		}
	}
}

func podNetns(t *testing.T) *fabric.Netns {
	t.Helper()
	nstest.Need(t)
	ns, err := fabric.NewNetns("test pod")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func shell(t *testing.T, script string) Spec {
	t.Helper()
	return Spec{Name: "test pod", Netns: podNetns(t), Argv: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "WHO=me"}}
}

// run starts the spec and waits for its end.
func run(t *testing.T, spec Spec) (string, Status) {
	t.Helper()
	out := newOutput()
	spec.Stdout, spec.Stderr = out, out
	p, err := Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	status, err := p.Wait(ctx)
	if err != nil {
		_ = p.Stop(t.Context(), 0)
		t.Fatalf("%v; output %q", err, out)
	}
	return out.String(), status
}

func TestOwnResolvConf(t *testing.T) {
	before, _ := os.ReadFile("/etc/resolv.conf")
	spec := shell(t, "cat /etc/resolv.conf")
	spec.ResolvConf = []byte("nameserver 10.96.0.10\n")
	got, status := run(t, spec)
	if got != "nameserver 10.96.0.10\n" || status.Code != 0 {
		t.Errorf("got %q, %v", got, status)
	}
	after, _ := os.ReadFile("/etc/resolv.conf")
	if !bytes.Equal(before, after) {
		t.Error("the host's /etc/resolv.conf changed")
	}
}

func TestView(t *testing.T) {
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "from-host"), []byte("h"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := shell(t, strings.Join([]string{
		"set -e",
		"cat /run/secrets/tokens/istio-token; echo",
		"cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo",
		"cat /var/run/ztunnel/from-host; echo",
		"echo p > /var/run/ztunnel/from-pod",
		"(echo x > /etc/app/ro/new) 2>/dev/null && echo writable || echo readonly",
		"cat /etc/app/conf.yaml; echo",
		"test -e /etc/passwd && echo etc-kept",
		"echo $WHO $$ $(ls /run | tr '\\n' ' ')",
		"ls -l /proc/self/ns/net >/dev/null && echo proc",
		"stat -c %a /run/secrets/tokens/istio-token",
	}, "\n"))
	spec.Files = []File{
		{Path: "/var/run/secrets/tokens/istio-token", Data: []byte("token"), Mode: 0o600},
		{Path: "/var/run/secrets/kubernetes.io/serviceaccount/namespace", Data: []byte("shop")},
		{Path: "/etc/app/conf.yaml", Data: []byte("a: b")},
	}
	spec.Mounts = []Mount{
		{Source: shared, Target: "/var/run/ztunnel"},
		{Target: "/etc/app"},
		{Source: shared, Target: "/etc/app/ro", ReadOnly: true},
	}
	got, status := run(t, spec)
	want := "token\nshop\nh\nreadonly\na: b\netc-kept\nme 1 secrets ztunnel\nproc\n600\n"
	if got != want || status.Code != 0 {
		t.Errorf("got %q, %v; want %q", got, status, want)
	}
	if raw, err := os.ReadFile(filepath.Join(shared, "from-pod")); err != nil || string(raw) != "p\n" {
		t.Errorf("the shared directory holds %q, %v", raw, err)
	}
	if _, err := os.Stat("/etc/app"); err == nil {
		t.Error("/etc/app was made on the host")
	}
}

func TestFileOutsideOwnMounts(t *testing.T) {
	spec := shell(t, "true")
	dir := t.TempDir()
	spec.Files = []File{{Path: filepath.Join(dir, "x"), Data: []byte("x")}}
	_, err := Start(spec)
	if err == nil || !strings.Contains(err.Error(), "outside /run") {
		t.Errorf("got %v, want a refusal", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "x")); err == nil {
		t.Error("a file was made on the host")
	}
}

func TestStartErrors(t *testing.T) {
	ns := podNetns(t)
	for name, c := range map[string]struct {
		spec Spec
		want string
	}{
		"no such command":   {Spec{Argv: []string{"no-such-program"}}, `command "no-such-program" is in no directory of PATH`},
		"not executable":    {Spec{Argv: []string{"/etc/passwd"}}, "not executable"},
		"a directory":       {Spec{Argv: []string{"/etc"}}, "is a directory"},
		"empty command":     {Spec{}, "empty command"},
		"no directory":      {Spec{Argv: []string{"sh"}, Dir: "/no/such"}, "working directory /no/such"},
		"bad environment":   {Spec{Argv: []string{"sh"}, Env: []string{"X"}}, `"X" is not NAME=value`},
		"no mount source":   {Spec{Argv: []string{"sh"}, Mounts: []Mount{{Source: "/no/such", Target: "/run/x"}}}, "mount source /no/such"},
		"no network at all": {Spec{Argv: []string{"sh"}, Netns: nil, Name: "lonely"}, "start lonely: no network namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.spec.Name == "" {
				c.spec.Name, c.spec.Netns = "shop/web app", ns
			}
			_, err := Start(c.spec)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.spec.Name) {
				t.Errorf("got %v, want %q and the name", err, c.want)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	if _, s := run(t, shell(t, "exit 7")); s.Code != 7 || s.Signal != 0 || s.String() != "exit status 7" {
		t.Errorf("exit 7: %v", s)
	}
	out := newOutput()
	spec := shell(t, "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done")
	spec.Stdout = out
	p, err := Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	out.await(t, "up")
	if err := p.Stop(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if s, ok := p.Status(); !ok || s.Code != 3 || !strings.Contains(out.String(), "bye") {
		t.Errorf("after SIGTERM: %v, %v, %q", s, ok, out)
	}
	out = newOutput()
	spec = shell(t, "trap '' TERM; echo up; while :; do sleep 0.05; done")
	spec.Stdout = out
	if p, err = Start(spec); err != nil {
		t.Fatal(err)
	}
	out.await(t, "up")
	if err := p.Stop(t.Context(), 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if s, _ := p.Status(); s.Signal != syscall.SIGKILL || s.Code != 137 {
		t.Errorf("after SIGKILL: %v", s)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("a signal to an ended process: %v", err)
	}
}

// TestStopDoesNotWaitInVain: a program without a handler would never notice.
func TestStopDoesNotWaitInVain(t *testing.T) {
	p, err := Start(shell(t, "sleep 1000; true"))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := p.Stop(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	for status, want := range map[string]bool{
		"": true, "SigBlk:\t0\nSigIgn:\t0\nSigCgt:\t0\n": false, "SigBlk:\t4000\nSigIgn:\t0\nSigCgt:\t0\n": true,
		"SigBlk:\t0\nSigIgn:\t0\nSigCgt:\tfffffffe7fc1feff\n": true, "SigCgt:\tx\n": true,
	} {
		if noticed(status, syscall.SIGTERM) != want {
			t.Errorf("%q: want %v", status, want)
		}
	}
}

// processesWith lists the pids whose command line holds the text.
func processesWith(t *testing.T, text string) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may just have ended
		if bytes.Contains(raw, []byte(text)) {
			out = append(out, pid)
		}
	}
	return out
}

func TestNothingOutlivesMain(t *testing.T) {
	for name, c := range map[string]struct {
		share  bool
		script string
	}{
		"own pid namespace": {false, "sleep 987654 & setsid sleep 987654 & (sleep 987654 &) ; sleep 0.1; echo up; wait"},
		"the lab's":         {true, "sleep 987654 & sleep 987654 & (sleep 987654 &) ; sleep 0.1; echo up; wait"},
	} {
		t.Run(name, func(t *testing.T) {
			out := newOutput()
			spec := shell(t, c.script)
			spec.Stdout, spec.ShareProc = out, c.share
			p, err := Start(spec)
			if err != nil {
				t.Fatal(err)
			}
			out.await(t, "up")
			ex, err := p.Exec([]string{"sleep", "987654"}, nil, nil, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(processesWith(t, "987654")); n < 4 {
				t.Fatalf("%d processes run, want at least 4", n)
			}
			if err := p.Stop(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			<-ex.Done()
			// Killed processes of a session are gone when init has reaped them.
			for range 100 {
				if len(processesWith(t, "987654")) == 0 {
					return
				}
				<-time.After(20 * time.Millisecond)
			}
			t.Errorf("left: %v", processesWith(t, "987654"))
		})
	}
}

func TestExec(t *testing.T) {
	out := newOutput()
	spec := shell(t, "echo up; exec sleep 1000")
	spec.Stdout = out
	spec.Files = []File{{Path: "/run/marker", Data: []byte("mine")}}
	spec.ResolvConf = []byte("nameserver 192.0.2.1\n")
	p, err := Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	out.await(t, "up")
	check := func(want string) {
		t.Helper()
		got := newOutput()
		ex, err := p.Exec([]string{"sh", "-c", "cat /run/marker /etc/resolv.conf; echo $WHO $MORE; readlink /proc/self/ns/net; exit 4"}, []string{"MORE=x"}, nil, got, got)
		if err != nil {
			t.Fatal(err)
		}
		<-ex.Done()
		if s, _ := ex.Status(); s.Code != 4 || !strings.HasPrefix(got.String(), want) {
			t.Errorf("got %q, %v; want %q", got, s, want)
		}
		var ns syscall.Stat_t
		if err := syscall.Fstat(spec.Netns.FD(), &ns); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(got.String(), fmt.Sprintf("net:[%d]", ns.Ino)) {
			t.Errorf("exec ran in another network namespace: %q, want inode %d", got, ns.Ino)
		}
	}
	const want = "minenameserver 192.0.2.1\nme x\n"
	check(want)
	if _, err := p.Exec([]string{"no-such-program"}, nil, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("exec of nothing: %v", err)
	}
	if err := p.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	check(want)
}

func TestShareProc(t *testing.T) {
	ns := podNetns(t)
	spec := shell(t, "readlink "+ns.Path()+" && readlink /proc/$$/ns/net")
	spec.ShareProc = true
	got, status := run(t, spec)
	if strings.Count(got, "net:[") != 2 || status.Code != 0 {
		t.Errorf("got %q, %v", got, status)
	}
}

func TestUnprivileged(t *testing.T) {
	nstest.AsNobody(t, "OwnResolvConf|View|Status|NothingOutlives|Exec|ShareProc")
}

func TestExecSharesRoot(t *testing.T) {
	// With /usr merged, programs run with /usr as their root directory.
	for _, path := range []string{"/usr/lib64/ld-linux-x86-64.so.2", "/usr/bin/sleep", "/usr/bin/sh"} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("%s is needed: %v", path, err)
		}
	}
	p, err := Start(Spec{Name: "test pod", Netns: podNetns(t), Argv: []string{"chroot", "/usr", "/bin/sleep", "60"}, Env: []string{"PATH=/usr/sbin:/usr/bin:/bin"}})
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() { _ = p.Signal(syscall.SIGKILL) })
	root := ""
	for end := time.Now().Add(10 * time.Second); root != "/usr" && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		root, _ = os.Readlink(fmt.Sprintf("/proc/%d/root", p.PID()))
	}
	stdin, err := os.Open(os.DevNull) // there is no /dev in /usr
	if err != nil {
		t.Fatalf("open %s: %v", os.DevNull, err)
	}
	defer func() { _ = stdin.Close() }()
	var out, errs bytes.Buffer
	e, err := p.Exec([]string{"sh", "-c", "test -d /share && test ! -e /usr && echo inside"}, nil, stdin, &out, &errs)
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	if status, err := e.Wait(t.Context()); err != nil || status.Code != 0 || out.String() != "inside\n" {
		t.Errorf("status %v, error %v, output %q, errors %q; want the command to see the process's root %s", status, err, out.String(), errs.String(), root)
	}
}
