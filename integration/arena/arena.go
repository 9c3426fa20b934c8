package arena

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/sandbox"
)

// Namespace is where all pods of an arena are.
const Namespace = "arena"

// Pod is one pod that does nothing by itself; agents work in it. Its service account has its name.
type Pod struct {
	Name string
	Node string // node-1 or node-2
	Mesh bool   // enrolled
	Own  bool   // not enrolled, but takes tunnels on port 15008 itself
}

// Arena is a running lab.
type Arena struct {
	lab  *lab.Lab
	dir  string
	self string // path of this test binary, the same in every pod
}

// Up starts a lab with these pods, or skips the test where the host forbids one. It ends with the test.
func Up(tb testing.TB, pods ...Pod) *Arena {
	tb.Helper()
	return UpWith(tb, nil, pods...)
}

// NoPenalty is for suites that break the rules on purpose, and want to be let in again.
const NoPenalty = "MARROW_PEER_PENALTY=false"

// UpWith is Up with environment, NAME=value each, for the node proxies.
func UpWith(tb testing.TB, environment []string, pods ...Pod) *Arena {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	// Not tb.TempDir: the path of a control socket has room for 108 bytes.
	dir, err := os.MkdirTemp("", "arena") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	a := &Arena{dir: dir, self: self}
	bin := filepath.Join(dir, "bin")
	if err := copyPrograms(bin); err != nil {
		tb.Fatal(err)
	}
	var commands lab.Commands
	if more := append(environment, strings.Fields(env("MARROW_ARENA_ZTUNNEL_ENV"))...); len(more) > 0 {
		commands.Ztunnel = append(append([]string{"env"}, more...), filepath.Join(bin, "ztunnel"))
	}
	a.lab, err = lab.Up(tb.Context(), lab.Options{Name: "arena", Root: filepath.Join(dir, "labs"), BinDir: bin, NoIPv6: true, Commands: commands})
	if _, refused := errors.AsType[*sandbox.ForbiddenError](err); refused && env("MARROW_REQUIRE_LAB") != "1" {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			a.evidence(tb)
		}
		if err := a.lab.Down(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	a.add(tb, pods)
	return a
}

func env(name string) string {
	value, _ := os.LookupEnv(name) //nolint:forbidigo // a suite is no product room and has no configuration of its own
	return value
}

// copyPrograms copies what a lab runs.
func copyPrograms(to string) error {
	from := env("MARROW_BIN_DIR")
	if from == "" {
		from = "../../bin"
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"ztunnel", "istiod-lite", "cni"} {
		if err := copyProgram(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return fmt.Errorf("run `make build`, or name the programs' directory by MARROW_BIN_DIR: %w", err)
		}
	}
	// A user without rights runs them too.
	return os.Chmod(filepath.Dir(to), 0o755)
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

const podYAML = `---
apiVersion: v1
kind: ServiceAccount
metadata: {name: NAME, namespace: arena}
---
apiVersion: v1
kind: Pod
metadata:
  name: NAME
  namespace: arena
  labels: {app: NAME, istio.io/dataplane-mode: MODE}
spec:
  serviceAccountName: NAME
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
    - {name: main, image: test, command: [SELF, WAIT]}
`

// add makes the pods and waits until those of the mesh are in it.
func (a *Arena) add(tb testing.TB, pods []Pod) {
	tb.Helper()
	var yaml strings.Builder
	yaml.WriteString("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: arena}\n")
	for _, p := range pods {
		mode := "none"
		if p.Mesh {
			mode = "ambient"
		}
		if p.Own {
			mode += ", networking.istio.io/tunnel: http"
		}
		yaml.WriteString(strings.NewReplacer("NAME", p.Name, "MODE", mode, "NODE", p.Node, "SELF", a.self, "WAIT", waitVerb).Replace(podYAML))
	}
	if _, err := a.lab.Apply(tb.Context(), "arena", []byte(yaml.String())); err != nil {
		tb.Fatal(err)
	}
	if err := a.lab.WaitReady(tb.Context(), 30*time.Second); err != nil {
		tb.Fatal(err)
	}
	for _, p := range pods {
		for end := time.Now().Add(20 * time.Second); p.Mesh && a.pod(tb, p.Name).Annotations["ambient.istio.io/redirection"] != "enabled"; {
			if time.Now().After(end) {
				tb.Fatalf("pod %s is not in the mesh after 20 s", p.Name)
			}
			<-time.After(50 * time.Millisecond)
		}
	}
}

func (a *Arena) pod(tb testing.TB, name string) *corev1.Pod {
	tb.Helper()
	pods, err := lab.Get[*corev1.Pod](tb.Context(), a.lab.Client, Namespace, name)
	if err != nil {
		tb.Fatal(err)
	}
	return pods[0]
}

// IP is a pod's address.
func (a *Arena) IP(tb testing.TB, pod string) netip.Addr {
	tb.Helper()
	return netip.MustParseAddr(a.pod(tb, pod).Status.PodIP)
}

// evidence shows the proxies' last words.
func (a *Arena) evidence(tb testing.TB) {
	tb.Helper()
	for _, node := range []string{"node-1", "node-2"} {
		var b bytes.Buffer
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_ = a.lab.Logs(ctx, &b, Ztunnel(node), false, 10) // a log that is not there tells nothing
		cancel()
		text := b.String()
		tb.Logf("--- the last words of ztunnel on %s\n%s", node, text[max(0, len(text)-3000):])
	}
}

// InPod and Ztunnel name where an agent works.
func InPod(name string) lab.Target { return lab.Target{Namespace: Namespace, Name: name} }

// Ztunnel is the pod of a node's proxy.
func Ztunnel(node string) lab.Target {
	return lab.Target{Namespace: "istio-system", Name: "ztunnel-" + node}
}
