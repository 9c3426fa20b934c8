package account

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// burn uses CPU of this process and of nobody else.
func burn(t *testing.T, d time.Duration) {
	t.Helper()
	begin, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for {
		now, err := CPU(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now-begin >= d {
			return
		}
	}
}

func TestUsageSeesWork(t *testing.T) {
	machine, err := ReadMachine()
	if err != nil {
		t.Fatal(err)
	}
	before, err := Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	burn(t, 50*time.Millisecond)
	for range 100 {
		if _, err := os.ReadFile("/proc/self/stat"); err != nil {
			t.Fatal(err)
		}
	}
	after, err := Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	used := after.Sub(before)
	if used.CPU < 50*time.Millisecond || used.CPU > time.Second {
		t.Errorf("50 ms of work are %v", used.CPU)
	}
	if used.ReadCalls < 100 {
		t.Errorf("%d reads seen, at least 100 made", used.ReadCalls)
	}
	later, err := ReadMachine()
	if err != nil {
		t.Fatal(err)
	}
	if busy := later.Busy(machine); busy < 20*time.Millisecond {
		t.Errorf("the machine was busy for %v meanwhile", busy)
	}
	m, err := ReadMemory(os.Getpid())
	if err != nil || m.Anon < 1<<20 || m.RSS < m.Anon {
		t.Errorf("memory %+v, %v", m, err)
	}
	if k, err := ReadKernel(); err != nil || k.Slab == 0 {
		t.Errorf("kernel memory %+v, %v", k, err)
	}
	env, err := Environ(os.Getpid())
	if err != nil || len(env) == 0 || Program(os.Getpid()) == "" {
		t.Errorf("environment %v, %v", env, err)
	}
}

func TestTree(t *testing.T) {
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	table, err := ReadTable()
	if err != nil {
		t.Fatal(err)
	}
	tree := table.Tree(os.Getpid())
	if !tree[child.Process.Pid] || tree[os.Getppid()] {
		t.Errorf("the tree of %d is %v; child %d, parent %d", os.Getpid(), tree, child.Process.Pid, os.Getppid())
	}
}

func TestForeign(t *testing.T) {
	const ms = time.Millisecond
	before := Table{
		1: {PID: 1, CPU: 10 * ms}, 5: {PID: 5, Parent: 1, CPU: 100 * ms}, 6: {PID: 6, Parent: 5, CPU: 300 * ms},
		8: {PID: 8, Parent: 1, CPU: 50 * ms}, 2: {PID: 2, Kernel: true},
	}
	after := Table{
		1: {PID: 1, CPU: 10 * ms},
		// 6 went on for 20 ms and ended; 7 came and went with 5 ms.
		5: {PID: 5, Parent: 1, CPU: 130 * ms, Reaped: 325 * ms},
		8: {PID: 8, Parent: 1, CPU: 950 * ms}, 2: {PID: 2, Kernel: true, CPU: 40 * ms},
	}
	if got := after.Foreign(before, map[int]bool{8: true}); got != 55*ms {
		t.Errorf("strangers used %v, want 55ms", got)
	}
}

func TestParse(t *testing.T) {
	p, ok := parseProcess("42 (a ) (b) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 20 30 20 0 1 0 9")
	if !ok || p.PID != 42 || p.Parent != 7 || p.CPU != 2*time.Second || p.Reaped != 500*time.Millisecond || p.Kernel {
		t.Errorf("%+v %v", p, ok)
	}
	if _, ok := parseProcess("nothing"); ok {
		t.Error("nonsense is a process")
	}
	at := time.Unix(100, 0)
	a, err := parseStat(at, "cpu  1 2 3 100 10 5 6 20 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 1 1 1 1 1 1 1 1 1 1\n")
	if err != nil {
		t.Fatal(err)
	}
	b, err := parseStat(at.Add(time.Second), "cpu  1 2 3 150 20 5 6 40 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 1 1 1 1 1 1 1 1 1 1\n")
	if err != nil {
		t.Fatal(err)
	}
	if busy := b.Busy(a); busy != 1200*time.Millisecond {
		t.Errorf("busy %v", busy)
	}
	if s := b.Stolen(a); s != 0.1 {
		t.Errorf("stolen %v", s)
	}
	if _, err := parseStat(at, "intr 1"); err == nil {
		t.Error("a machine without CPUs")
	}
}

func TestCalibrator(t *testing.T) {
	c := NewCalibrator()
	if r := c.Ratio(); r < 1 || r > 100 {
		t.Errorf("ratio %v", r)
	}
}
