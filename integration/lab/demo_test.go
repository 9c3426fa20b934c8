//go:build lab

package lab_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// story is the demo's report.
type story struct {
	Steps []struct {
		ID, Title, Expected, Observed string
		OK                            bool
		Seconds                       float64
	}
}

func checkStory(t *testing.T, r result) {
	t.Helper()
	var s story
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		t.Fatalf("no report: %v: %q\n%s", err, tail(r.stdout, 500), tail(r.stderr, 4000))
	}
	ids := ""
	for _, step := range s.Steps {
		ids += step.ID
		if !step.OK {
			t.Errorf("(%s) %s: expected %s; observed %s", step.ID, step.Title, step.Expected, step.Observed)
		}
		if step.Title == "" || step.Expected == "" || step.Observed == "" || step.Seconds <= 0 {
			t.Errorf("step %q is told by halves: %+v", step.ID, step)
		}
	}
	if ids != "abcdefghij" {
		t.Errorf("steps %q, want a to j in order", ids)
	}
	if r.exit != 0 {
		t.Errorf("status %d\n%s", r.exit, tail(r.stderr, 4000))
	}
}

// TestDemo plays the demo as a newcomer does, and counts what it leaves.
func TestDemo(t *testing.T) {
	p := here.apart(t)
	before := take(t, p)
	// What runs in the middle proves that the inventory would see what is left.
	over, seen := make(chan struct{}), make(chan inventory, 1)
	go func() {
		most := inventory{}
		for {
			select {
			case <-over:
				seen <- most
				return
			case <-time.After(2 * time.Second):
				if now := take(t, p); len(now) > len(most) {
					most = now
				}
			}
		}
	}()
	r := p.marrow(t, 2*time.Minute, "demo", "--once", "--json", "--name", "demo")
	close(over)
	if r.forbidden() {
		skipOrFail(t, r.stderr)
	}
	middle := <-seen
	checkStory(t, r)
	before.nothingSince(t, p)
	if middle.count("process") < 8 || middle.count("network namespace") < 8 || middle.count("file") <= before.count("file") {
		t.Errorf("the inventory is blind: in the middle of the demo it saw %d processes, %d network namespaces, %d files",
			middle.count("process"), middle.count("network namespace"), middle.count("file"))
	}
}

// TestDemoWithoutRoot does the same as a user without any right, in a user namespace.
func TestDemoWithoutRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("this run is without root anyway")
	}
	const nobody = 65534
	p := here.apart(t)
	home := filepath.Join(p.dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	p.labs = filepath.Join(home, "labs")
	before := take(t, p)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := p.command(ctx, "demo", "--once", "--json", "--name", "demo")
	cmd.Dir = home
	for _, kv := range cmd.Environ() {
		if !strings.HasPrefix(kv, "HOME=") && !strings.HasPrefix(kv, "XDG_RUNTIME_DIR=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "HOME="+home, "XDG_RUNTIME_DIR="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	r := finish(cmd)
	if r.forbidden() {
		skipOrFail(t, r.stderr)
	}
	checkStory(t, r)
	before.nothingSince(t, p)
}
