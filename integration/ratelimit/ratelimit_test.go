//go:build lab

package ratelimit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// file is the absolute path of a file that make builds.
func file(t *testing.T, name, how string) string {
	t.Helper()
	path, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make %s`", err, how)
	}
	return path
}

// lab is a running lab of the demo's shop.
type lab struct {
	t    *testing.T
	bin  string
	name string
}

func (l *lab) run(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.t.Context()), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.bin, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil && strings.Contains(errs.String(), "sandbox: cannot ") && os.Getenv("MARROW_REQUIRE_LAB") != "1" {
		l.t.Skip(errs.String())
	}
	if err != nil {
		err = fmt.Errorf("marrow %s: %w\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), err
}

func (l *lab) must(args ...string) string {
	l.t.Helper()
	out, err := l.run(2*time.Minute, append([]string{"--lab", l.name}, args...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// service is a Deployment of the real server with its Service.
const service = `
apiVersion: v1
kind: Service
metadata: {name: ratelimit, namespace: shop}
spec:
  selector: {app: ratelimit}
  ports: [{name: grpc, port: 8081, targetPort: 8081}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ratelimit, namespace: shop, labels: {app: ratelimit}}
spec:
  replicas: 1
  selector: {matchLabels: {app: ratelimit}}
  template:
    metadata: {labels: {app: ratelimit}}
    spec:
      containers:
      - name: server
        image: ratelimit
        command: [%q, "8081"]
        ports: [{name: grpc, containerPort: 8081}]
        readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}
`

// policy has a window that no test outlasts, but for the moment at which an hour begins.
const policy = `
apiVersion: policy.marrow.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: catalog, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: catalog}]
  service: {name: ratelimit, port: 8081, timeout: 5s, failure: deny}
  rules:
  - {name: each, scope: global, key: {type: identity}, limit: {requests: 50, per: 1d}}
`

type report struct {
	Requests, Errors int
	Status           map[string]int
}

func (l *lab) ask(pod string, args ...string) (r report) {
	l.t.Helper()
	base := []string{"lab", "exec", pod, "-n", "shop", "--", "marrow", "app", "client", "--json", "--url", "http://catalog/"}
	if err := json.Unmarshal([]byte(l.must(append(base, args...)...)), &r); err != nil {
		l.t.Fatal(err)
	}
	return r
}

// TestRealService: each identity gets its 50 requests of the day from the service, and no more.
func TestRealService(t *testing.T) {
	server := file(t, "../../build/ratelimit", "ratelimit")
	l := &lab{t: t, bin: file(t, "../../bin/marrow", "build"), name: fmt.Sprintf("ratelimit-%d", os.Getpid())}
	if _, err := l.run(3*time.Minute, "lab", "up", "--name", l.name, "--detach", "-f", "../../manifests/samples/shop"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := l.run(time.Minute, "lab", "down", l.name); err != nil {
			t.Errorf("%v", err)
		}
	})
	apply := func(text string) {
		path := filepath.Join(t.TempDir(), "objects.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		l.must("lab", "apply", "-f", path)
	}
	l.must("lab", "label", "ns", "shop", "istio.io/dataplane-mode=ambient")
	l.must("waypoint", "apply", "-n", "shop", "--service-account", "catalog", "--wait")
	apply(fmt.Sprintf(service, server))
	apply(policy)
	// Until the policy and the server are there, requests pass uncounted or are refused; then the service says 429 at last.
	deadline := time.Now().Add(time.Minute)
	for r := (report{}); r.Status["429"] == 0; {
		if r = l.ask("load", "--count", "20"); time.Now().After(deadline) {
			t.Fatalf("never refused: %+v\n%s", r, l.must("lab", "get", "pods", "-n", "shop"))
		}
	}
	if r := l.ask("load", "--count", "20"); r.Errors != 0 || r.Status["429"] != 20 {
		t.Errorf("after the limit: %+v", r)
	}
	// Another identity has its own limit,.
	if r := l.ask("web", "--count", "200"); r.Errors != 0 || r.Status["200"] != 50 || r.Status["429"] != 150 {
		t.Errorf("another client: %+v", r)
	}
	if got := l.must("lab", "get", "ratelimitpolicies", "-n", "shop", "-o", "yaml"); strings.Count(got, `status: "True"`) != 2 {
		t.Errorf("conditions: %s", got)
	}
}
