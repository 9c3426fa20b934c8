package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is what the test binary does inside a sandbox, by its first
// argument.
func program(box *Box, args []string) int {
	switch args[0] {
	case "facts":
		links, _ := net.Interfaces()
		host, _ := os.Hostname()
		self, _ := os.Readlink("/proc/self")
		fmt.Printf("pid=%d uid=%d links=%d lo=%v host=%s user=%v procself=%v\n",
			os.Getpid(), os.Geteuid(), len(links), links[0].Flags&net.FlagUp != 0, host, box.User, self == strconv.Itoa(os.Getpid()) == box.Proc)
		return 7
	case "ready":
		if err := box.Ready(); err != nil {
			return 1
		}
		time.Sleep(time.Hour) // a select without cases is a deadlock to a program without cgo
	case "fail":
		box.Fail(errors.New("no nodes"))
		return 1
	case "silent":
		return 9
	case "family":
		// Children, grandchildren and one that left its session.
		for range 3 {
			cmd := exec.Command("sh", "-c", "sleep 876543 & setsid sleep 876543 & exec sleep 876543")
			if err := cmd.Start(); err != nil {
				return 1
			}
		}
		fmt.Println("up")
		time.Sleep(time.Hour) // a select without cases is a deadlock to a program without cgo
	case "orphans":
		return orphans()
	case "signal":
		got := make(chan os.Signal, 8)
		signal.Notify(got, syscall.SIGTERM, syscall.SIGUSR1)
		fmt.Println("up")
		fmt.Println(<-got)
		return 3
	case "mount":
		if err := syscall.Mount("tmpfs", args[1], "tmpfs", 0, ""); err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	case "enter":
		// Enters once more and stays in front of it, to be killed.
		_, err := Enter(context.Background(), Config{Args: []string{"family"}, Stdout: os.Stdout})
		fmt.Println(err)
		return 1
	}
	return 99
}

// orphans makes processes whose parents end before them, beside own children
// whose exit codes it checks.
func orphans() int {
	for i := range 20 {
		cmd := exec.Command("sh", "-c", fmt.Sprintf("(sleep 0.01 &) ; exit %d", i))
		err := cmd.Run()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != i {
			fmt.Println("child", i, err)
			return 1
		}
	}
	for range 200 {
		zombies, living := 0, 0
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, file := range stats {
			raw, _ := os.ReadFile(file)
			switch {
			case bytes.Contains(raw, []byte(") Z ")):
				zombies++
			case bytes.Contains(raw, []byte("(sleep)")):
				living++
			}
		}
		if zombies == 0 && living == 0 {
			return 0
		}
		<-time.After(20 * time.Millisecond)
	}
	return 2
}

func TestMain(m *testing.M) {
	MaybeInit()
	if box, inside := Inside(); inside {
		os.Exit(program(box, os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "enter" {
		os.Exit(program(nil, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// need skips where the host forbids a sandbox, as package nstest does, which
// cannot be used here: these tests are about what it builds upon.
func need(t *testing.T) { t.Helper(); needs(t, false) }

// needUser skips where no user namespace can be made, as in a chroot.
func needUser(t *testing.T) { t.Helper(); needs(t, true) }

func needs(t *testing.T, user bool) {
	t.Helper()
	res, err := Enter(t.Context(), Config{Args: []string{"silent"}, ForceUser: user})
	if res.ExitCode == 9 {
		return
	}
	if v, _ := os.LookupEnv("MARROW_REQUIRE_LAB"); v == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// enter runs the program inside and returns what it wrote.
func enter(t *testing.T, cfg Config) (string, Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if cfg.Detach {
		// Its output has no end that could be waited for.
		res, err := Enter(ctx, cfg)
		return "", res, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cfg.Stdout, cfg.Stderr = w, w
	text := make(chan string, 1)
	go func() {
		raw, _ := io.ReadAll(r)
		text <- string(raw)
	}()
	res, err := Enter(ctx, cfg)
	w.Close()
	return <-text, res, err
}

func TestForeground(t *testing.T) {
	need(t)
	for name, force := range map[string]bool{"as it is": false, "with a user namespace": true} {
		t.Run(name, func(t *testing.T) {
			if force {
				needUser(t)
			}
			out, res, err := enter(t, Config{Args: []string{"facts"}, Hostname: "lab-x", ForceUser: force})
			want := fmt.Sprintf("uid=0 links=1 lo=true host=lab-x user=%v procself=true\n", force || !canDoWithoutUser())
			if pid, rest, _ := strings.Cut(out, " "); rest != want || pid == "pid=1" || res.ExitCode != 7 || err != nil {
				t.Errorf("got %q, %+v, %v; want %q and exit code 7", out, res, err, want)
			}
		})
	}
}

func TestSignalsReachTheProgram(t *testing.T) {
	need(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pid := make(chan int, 1)
	type outcome struct {
		Result
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		res, err := Enter(t.Context(), Config{Args: []string{"signal"}, Stdout: w, Started: func(p int) { pid <- p }})
		w.Close()
		ended <- outcome{res, err}
	}()
	lines := bufio.NewScanner(r)
	lines.Scan()
	if err := syscall.Kill(<-pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	if got := lines.Text(); got != syscall.SIGUSR1.String() {
		t.Errorf("got %q", got)
	}
	if res := <-ended; res.ExitCode != 3 || res.err != nil {
		t.Errorf("%+v", res)
	}
}

func TestDetach(t *testing.T) {
	need(t)
	_, res, err := enter(t, Config{Args: []string{"ready"}, Detach: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(res.PID, syscall.SIGKILL); err != nil {
		t.Errorf("the sandbox does not run: %v", err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(res.PID, &ws, 0, nil); err != nil {
		t.Error(err)
	}
	_, _, err = enter(t, Config{Args: []string{"fail"}, Detach: true})
	if _, ok := errors.AsType[*StartError](err); !ok || err.Error() != "no nodes" {
		t.Errorf("fail: %v", err)
	}
	_, _, err = enter(t, Config{Args: []string{"silent"}, Detach: true})
	if err == nil || !strings.Contains(err.Error(), "ended with status 9 before it was ready") {
		t.Errorf("silent: %v", err)
	}
	_, _, err = enter(t, Config{Args: []string{"family"}, Detach: true, ReadyTimeout: 50 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "not ready within 50ms") {
		t.Errorf("late: %v", err)
	}
	awaitGone(t)
}

// family lists the processes of the "family" program, anywhere.
func family(t *testing.T) []string {
	t.Helper()
	var out []string
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if raw, _ := os.ReadFile(f); bytes.Contains(raw, []byte("876543")) {
			out = append(out, f)
		}
	}
	return out
}

func awaitGone(t *testing.T) {
	t.Helper()
	for range 200 {
		if len(family(t)) == 0 {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Errorf("left: %v", family(t))
}

func TestKillLeavesNothing(t *testing.T) {
	need(t)
	for _, victim := range []string{"pid 1", "the program inside", "the caller"} {
		t.Run(victim, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd := exec.Command("/proc/self/exe", "enter")
			cmd.Stdout = w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			up := bufio.NewScanner(r)
			up.Scan()
			for range 200 {
				if len(family(t)) >= 9 {
					break
				}
				<-time.After(20 * time.Millisecond)
			}
			pid := cmd.Process.Pid
			if victim != "the caller" {
				pid = childOf(t, pid)
			}
			if victim == "the program inside" {
				pid = childOf(t, pid)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			awaitGone(t)
		})
	}
}

// childOf is the only child of a process, whichever thread made it.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		raw, _ := os.ReadFile(f)
		if kids := strings.Fields(string(raw)); len(kids) > 0 {
			child, err := strconv.Atoi(kids[0])
			if err != nil {
				t.Fatal(err)
			}
			return child
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

func TestOrphansAreReaped(t *testing.T) {
	need(t)
	if out, res, err := enter(t, Config{Args: []string{"orphans"}}); res.ExitCode != 0 || err != nil {
		t.Errorf("%q, %+v, %v", out, res, err)
	}
}

func TestMountsStayInside(t *testing.T) {
	need(t)
	dir := t.TempDir()
	before, _ := os.ReadFile("/proc/self/mountinfo")
	if out, res, err := enter(t, Config{Args: []string{"mount", dir}}); res.ExitCode != 0 || err != nil {
		t.Errorf("%q, %+v, %v", out, res, err)
	}
	after, _ := os.ReadFile("/proc/self/mountinfo")
	if bytes.Contains(after, []byte(dir)) || bytes.Count(after, []byte("\n")) > bytes.Count(before, []byte("\n")) {
		t.Errorf("the host got a mount:\n%s", after)
	}
}

// TestInsideChroot: / is no mount point there. Inside of one already, the
// other tests show the same.
func TestInsideChroot(t *testing.T) {
	needUser(t)
	if os.Geteuid() != 0 {
		t.Skip("only root may chroot")
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "test"), exe, 0o755); err != nil {
		t.Fatal(err)
	}
	// The mount of /proc in the chroot must not be the host's business either.
	// The test binary may be linked to the host's libraries.
	sh := fmt.Sprintf("cd %s && mount -t proc proc proc && "+
		"for d in dev lib lib64 usr; do if [ -e /$d ]; then mkdir $d && mount --bind /$d $d; fi; done; "+
		"exec chroot . /test -test.run=TestForeground/as_it_is -test.v", root)
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "sh", "-c", sh)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestForeground")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestUnprivileged runs the tests again as nobody.
func TestUnprivileged(t *testing.T) {
	needUser(t)
	if os.Geteuid() != 0 {
		t.Skip("this run is unprivileged already")
	}
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=Foreground|Detach|KillLeaves|Orphans|Signals|MountsStay")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Env = append(cmd.Environ(), "TMPDIR=/tmp")
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("--- SKIP")) || !bytes.Contains(out, []byte("--- PASS: TestKillLeavesNothing")) {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestForbiddenSaysWhatToDo(t *testing.T) {
	for want, settings := range map[string]map[string]string{
		"": {"user.max_user_namespaces": "1000", "kernel.unprivileged_userns_clone": "1"},
		"sysctl -w kernel.unprivileged_userns_clone=1":             {"kernel.unprivileged_userns_clone": "0"},
		"sysctl -w user.max_user_namespaces=15000":                 {"user.max_user_namespaces": "0"},
		"sysctl -w kernel.apparmor_restrict_unprivileged_userns=0": {"kernel.apparmor_restrict_unprivileged_userns": "1"},
	} {
		got := blocked(func(name string) (string, bool) {
			v, ok := settings[name]
			return v, ok
		})
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%v: got %q", settings, got)
		}
	}
	for errno, want := range map[syscall.Errno]string{
		syscall.EPERM: "--privileged", syscall.ENOSPC: "user.max_net_namespaces", syscall.EINVAL: "CONFIG_USER_NS", syscall.EIO: "input/output",
	} {
		err := forbidden("try", false, errno)
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", errno, err)
		}
	}
}
