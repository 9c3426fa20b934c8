//go:build lab

package lab_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
)

const smallWorld = `apiVersion: v1
kind: Namespace
metadata: {name: small, labels: {istio.io/dataplane-mode: ambient}}
` + podYAML + serviceYAML

// upIn starts a small lab in p and returns its client.
func upIn(t *testing.T, p place, name string) *lab.Client {
	t.Helper()
	file := filepath.Join(p.dir, "bin", name+".yaml")
	yaml := strings.NewReplacer("NAME", "app", "NS", "small", "NODE", "node-1", "MARKER", "marker-"+name, "LABELS", "").Replace(smallWorld)
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	p.must(t, "lab", "up", "--detach", "--name", name, "-f", file)
	c, err := lab.Connect(t.Context(), p.labs, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		p.marrowQuiet("lab", "down", name) // whatever failed, nothing is to stay
	})
	return c
}

// kill9 kills the lab's first process and waits until it is gone.
func kill9(t *testing.T, c *lab.Client) {
	t.Helper()
	pid := c.State.Info().PID
	if pid <= 1 {
		t.Fatalf("the lab's process is %d", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the lab is dead", func() error {
		if c.State.Running() {
			return lab.ErrRunning
		}
		return nil
	})
}

// askApp asks the lab's only application and returns its marker.
func askApp(t *testing.T, c *lab.Client) string {
	t.Helper()
	w := &world{t: t, c: c, ns: "small", marker: "asking"}
	out, err := c.Run(t.Context(), w.target("app"), "marrow", "app", "client", "--json", "--url", "http://app/", "--count", "3")
	if err != nil {
		t.Fatal(err)
	}
	var s summary
	if err := json.Unmarshal(out.Stdout, &s); err != nil {
		t.Fatalf("%v: %s%s", err, out.Stdout, out.Stderr)
	}
	if err := s.good(); err != nil {
		t.Error(err)
	}
	pods, err := lab.Get[*corev1.Pod](t.Context(), c, "small", "app")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(pods[0].Spec.Containers[0].Args, " ")
}

// TestDownAfterKill9: neither `down` nor another `up` needs the lab's help.
func TestDownAfterKill9(t *testing.T) {
	p := here.apart(t)
	before := take(t, p)
	one, two := upIn(t, p, "one"), upIn(t, p, "two")

	// Side by side, with the same addresses and names.
	if a, b := askApp(t, one), askApp(t, two); !strings.Contains(a, "marker-one") || !strings.Contains(b, "marker-two") {
		t.Errorf("the labs are mixed up: %q %q", a, b)
	}
	started := one.State.Info().PID
	kill9(t, one)
	if out := p.must(t, "lab", "list"); !strings.Contains(out, "stale") {
		t.Errorf("list does not tell a killed lab:\n%s", out)
	}
	askApp(t, two)

	// Another lab over the remains of the killed one.
	one = upIn(t, p, "one")
	askApp(t, one)
	if pid := one.State.Info().PID; pid == started {
		t.Errorf("the new lab has the old one's process %d", pid)
	}
	kill9(t, one)
	p.must(t, "lab", "down", "one")
	askApp(t, two)
	p.must(t, "lab", "down", "two")
	if r := p.marrow(t, 10*time.Second, "lab", "down", "two"); r.exit == 0 || !strings.Contains(r.stderr, "no such lab") {
		t.Errorf("a second down: status %d, %s", r.exit, r.stderr)
	}
	before.nothingSince(t, p)
}
