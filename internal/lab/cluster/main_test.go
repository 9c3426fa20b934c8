package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/cluster"
	"github.com/marrowmesh/marrow/internal/lab/proc"
	"github.com/marrowmesh/marrow/internal/lab/sandbox"
)

// The test binary is also the lab inside the sandbox, the containers' init and
// the containers' program.
func TestMain(m *testing.M) {
	proc.MaybeInit()
	sandbox.MaybeInit()
	if box, ok := sandbox.Inside(); ok {
		os.Exit(cluster.Main(box, os.Args[1:]))
	}
	if len(os.Args) > 2 && os.Args[1] == "pod" {
		os.Exit(podProgram(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// podProgram is what the tests' pods run: serve NAME, get URL, stubborn.
func podProgram(args []string) int {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	switch args[0] {
	case "serve":
		fmt.Println("serving as", args[1])
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, args[1]) })
		go func() { _ = http.ListenAndServe(":8080", mux) }()
		<-stop
		// Connections that came before the Service changed are still answered.
		<-time.After(200 * time.Millisecond)
		return 0
	case "get":
		c := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get(args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 3
		}
		defer resp.Body.Close()
		raw := make([]byte, 100)
		n, _ := resp.Body.Read(raw)
		fmt.Print(string(raw[:n]))
		return 0
	case "lookup":
		addrs, err := net.DefaultResolver.LookupHost(context.Background(), args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 3
		}
		fmt.Print(strings.Join(addrs, " "))
		return 0
	}
	return 9
}

// self is the path of the test binary, as pods see it too.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// up starts a lab for the test, or skips it where the host forbids one.
func up(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.NoMesh = true
	if o.Root == "" {
		// Not t.TempDir: a unix socket's path has room for 108 bytes.
		dir, err := os.MkdirTemp("", "lab") //nolint:usetesting // see above
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		o.Root = filepath.Join(dir, "labs")
	}
	o.BinDir = filepath.Dir(self(t))
	l, err := lab.Up(t.Context(), o)
	if _, refused := errors.AsType[*sandbox.ForbiddenError](err); refused && conf.FromEnv().String("MARROW_REQUIRE_LAB", "") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l.State.Exists() {
			if err := l.Down(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	return l
}

func apply(t *testing.T, l *lab.Lab, yaml string) {
	t.Helper()
	if _, err := l.Apply(t.Context(), "test", []byte(strings.ReplaceAll(yaml, "SELF", self(t)))); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitReady(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
}

// shop is two nodes' worth of pods: a client, and a Service over two versions.
const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 2
  containers:
    - name: main
      image: test
      command: [SELF, pod, serve, client]
      env:
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 2
      containers:
        - name: main
          image: test
          command: [SELF, pod, serve, $(POD)]
          env:
            - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
`
