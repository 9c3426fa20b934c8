package nstest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/marrowmesh/marrow/internal/lab/sandbox"
)

const (
	// requireVar set to 1 turns the skips into failures.
	requireVar = "MARROW_REQUIRE_LAB"
	// refusedVar carries to Need why Main could not make a sandbox.
	refusedVar = "MARROW_LAB_REFUSED"
)

// Main runs m's tests inside a sandbox and returns the exit code:
//
//	func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }
//
// Where the host forbids a sandbox the tests run outside, and those that call
// Need are skipped. A program that is also a pod's init (package proc) passes
// its MaybeInit functions.
func Main(m *testing.M, maybeInit ...func()) int {
	sandbox.MaybeInit()
	for _, f := range maybeInit {
		f()
	}
	if _, inside := sandbox.Inside(); inside {
		return m.Run()
	}
	res, err := sandbox.Enter(context.Background(), sandbox.Config{
		Args:  os.Args[1:],
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err == nil {
		return res.ExitCode
	}
	if err := os.Setenv(refusedVar, err.Error()); err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	return m.Run()
}

// Need skips the test where there is no sandbox.
func Need(tb testing.TB) {
	tb.Helper()
	if _, inside := sandbox.Inside(); inside {
		return
	}
	decide(tb, lookup(refusedVar), lookup(requireVar) == "1")
}

// AsNobody runs the tests that match the pattern once more, by a process of an
// unprivileged user, which gets a sandbox of its own. All of them must pass.
func AsNobody(t *testing.T, pattern string) {
	t.Helper()
	Need(t)
	if box, _ := sandbox.Inside(); box.User {
		t.Skip("this run is unprivileged already")
	}
	const nobody = 65534
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.timeout=60s", "-test.run="+pattern)
	cmd.Args[0] = "unprivileged" // not the name by which this process knows that it is inside
	cmd.Dir = "/"
	cmd.Env = append(cmd.Environ(), "TMPDIR=/tmp", requireVar+"=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Errorf("as uid %d: %v\n%s", nobody, err, out)
	case bytes.Contains(out, []byte("this test needs namespaces")):
		decide(t, string(out), lookup(requireVar) == "1")
	case !bytes.Contains(out, []byte("--- PASS")):
		t.Errorf("no test matches %q:\n%s", pattern, out)
	}
}

func lookup(name string) string {
	value, _ := os.LookupEnv(name) //nolint:forbidigo // the testkit is no product room and has no configuration of its own
	return value
}

func decide(tb testing.TB, refused string, required bool) {
	tb.Helper()
	if refused == "" {
		refused = "TestMain does not call nstest.Main"
	}
	if required {
		tb.Fatalf("this test needs namespaces and %s=1 forbids to skip it: %s", requireVar, refused)
	}
	tb.Skipf("this test needs namespaces: %s", refused)
}
