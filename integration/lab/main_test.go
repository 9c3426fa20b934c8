//go:build lab

package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
)

// place is where this run keeps its programs and labs.
type place struct {
	dir  string // everything below is in it
	bin  string // a private copy of the programs: who runs them belongs to this run
	labs string // MARROW_LAB_DIR
	tmp  string // TMPDIR of the programs
}

var here place

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == insideVerb {
		os.Exit(inside(os.Args[2:]))
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	p, err := prepare()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	here = p
	defer os.RemoveAll(p.dir)
	os.Setenv(lab.RootVariable, p.labs)
	code := m.Run()
	if err := shared.down(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// prepare copies the programs; the path of a control socket has to be short.
func prepare() (place, error) {
	dir, err := os.MkdirTemp("/tmp", "mi-")
	if err != nil {
		return place{}, err
	}
	p := place{dir: dir, bin: filepath.Join(dir, "bin"), labs: filepath.Join(dir, "labs"), tmp: filepath.Join(dir, "tmp")}
	from := os.Getenv("MARROW_BIN_DIR")
	if from == "" {
		from = "../../bin"
	}
	for _, d := range []string{p.bin, p.tmp} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return p, err
		}
	}
	for _, name := range []string{"ztunnel", "waypoint", "istiod-lite", "cni", "marrow"} {
		if err := copyProgram(filepath.Join(from, name), filepath.Join(p.bin, name)); err != nil {
			return p, errors.Join(fmt.Errorf("run `make build`, or name the programs' directory by MARROW_BIN_DIR: %w", err), os.RemoveAll(dir))
		}
	}
	// A user without rights runs them too.
	return p, errors.Join(os.Chmod(dir, 0o755), os.Chmod(p.tmp, 0o777))
}

// apart is a place of its own for one test, below this one. Its programs have paths of their own, so that whatever runs
// them belongs to this test and to nobody beside it.
func (p place) apart(t *testing.T) place {
	t.Helper()
	dir, err := os.MkdirTemp(p.dir, "t-") //nolint:usetesting // all of a lab's files lie below one place
	if err != nil {
		t.Fatal(err)
	}
	q := place{dir: dir, bin: filepath.Join(dir, "bin"), labs: filepath.Join(dir, "labs"), tmp: filepath.Join(dir, "tmp")}
	for _, d := range []string{q.bin, q.tmp} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	programs, err := filepath.Glob(filepath.Join(p.bin, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range programs {
		if err := os.Link(from, filepath.Join(q.bin, filepath.Base(from))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(dir, 0o777), os.Chmod(q.tmp, 0o777)); err != nil {
		t.Fatal(err)
	}
	return q
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// result is how a program ended.
type result struct {
	stdout, stderr string
	exit           int
}

// forbidden says that the host does not let this user make namespaces.
func (r result) forbidden() bool {
	return r.exit != 0 && strings.Contains(r.stderr, "sandbox: cannot ")
}

// skipOrFail is for a host that forbids what a test needs.
func skipOrFail(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("MARROW_REQUIRE_LAB") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// command prepares the built marrow with this place's environment.
func (p place) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "marrow"), args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+p.tmp, lab.RootVariable+"="+p.labs)
	// A demo that is interrupted takes its lab down.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

func finish(cmd *exec.Cmd) result {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	r := result{stdout: out.String(), stderr: errs.String(), exit: cmd.ProcessState.ExitCode()}
	if err != nil && r.exit == 0 {
		r.exit = -1
		r.stderr += err.Error()
	}
	return r
}

// marrow runs the command line to its end.
func (p place) marrow(t *testing.T, limit time.Duration, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return finish(p.command(ctx, args...))
}

// marrowQuiet is for clean-ups, where the test's context has ended.
func (p place) marrowQuiet(args ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = finish(p.command(ctx, args...))
}

// must fails the test when the command does.
func (p place) must(t *testing.T, args ...string) string {
	t.Helper()
	r := p.marrow(t, 90*time.Second, args...)
	if r.exit != 0 {
		if r.forbidden() {
			skipOrFail(t, r.stderr)
		}
		t.Fatalf("marrow %s: status %d\n%s", strings.Join(args, " "), r.exit, tail(r.stderr, 4000))
	}
	return r.stdout
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// sharedLab is the lab of the package, started by the first test that needs it.
type sharedLab struct {
	once   sync.Once
	client *lab.Client
	result result
	err    error
}

var shared sharedLab

const sharedName = "shared"

func (s *sharedLab) start() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if s.result = finish(here.command(ctx, "lab", "up", "--detach", "--name", sharedName)); s.result.exit != 0 {
		s.err = fmt.Errorf("lab up: status %d\n%s", s.result.exit, s.result.stderr)
		return
	}
	s.client, s.err = lab.Connect(ctx, here.labs, sharedName)
}

func (s *sharedLab) down() error {
	if s.client == nil {
		return nil
	}
	s.client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if r := finish(here.command(ctx, "lab", "down", sharedName)); r.exit != 0 {
		return fmt.Errorf("lab down: status %d\n%s", r.exit, r.stderr)
	}
	return nil
}

// theLab is the package's lab, running.
func theLab(t *testing.T) *lab.Client {
	t.Helper()
	shared.once.Do(shared.start)
	if shared.err != nil {
		if shared.result.forbidden() {
			skipOrFail(t, shared.result.stderr)
		}
		t.Fatal(shared.err)
	}
	return shared.client
}
