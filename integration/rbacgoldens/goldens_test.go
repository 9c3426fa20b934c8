//go:build lab

package rbacgoldens

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

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"    // read from the goldens
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3" // read from the goldens
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"sigs.k8s.io/yaml"
)

// pin is the version whose data these tests were written for.
const pin = "v0.0.0-20260827124520-eed52ebb66ad"

// golden is a set of policies with the filters that Istio makes of it.
type golden struct {
	name string
	in   string   // below testdata
	out  []string // below testdata, in the order of the filter chain
}

func goldens() []golden {
	http := func(name string, out ...string) golden {
		g := golden{name: "http/" + name, in: "http/" + name + "-in.yaml"}
		for _, o := range append(out, "-out")[:max(1, len(out))] {
			g.out = append(g.out, "http/"+name+o+".yaml")
		}
		return g
	}
	tcp := func(name string) golden {
		return golden{name: "tcp/" + name, in: "tcp/" + name + "-in.yaml", out: []string{"tcp/" + name + "-out.yaml"}}
	}
	return []golden{
		http("allow-empty-rule"), http("allow-full-rule"), http("allow-nil-rule"), http("allow-path"), http("audit-full-rule"),
		http("deny-and-allow", "-out1", "-out2"), http("deny-empty-rule"), http("dry-run-allow"),
		http("dry-run-allow-and-deny", "-out1", "-out2"), http("dry-run-mix"), http("multiple-policies"), http("single-policy"), http("trust-domains"),
		tcp("allow-both-http-tcp"), tcp("allow-only-http"), tcp("audit-both-http-tcp"), tcp("deny-both-http-tcp"), tcp("dry-run-mix"),
	}
}

// Not taken: the goldens named custom-* end in a server's answer (TestEnvoyCustom of derive/waypoint has those), the *td-aliases* ones and
// simple-policy-principal-with-wildcard need trust domain aliases, which this mesh does not have, and allow-host-before-111 has a filter
// that no current Istio makes.

// testdata is where the goldens are.
func testdata(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("MARROW_RBAC_GOLDENS"); dir != "" {
		return dir
	}
	module := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = t.TempDir() // outside of any module
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
		out, err := cmd.Output()
		var found struct{ Dir string }
		if err == nil && json.Unmarshal(out, &found) == nil {
			return found.Dir
		}
		return strings.TrimSpace(string(out))
	}
	dir := filepath.Join(module("env", "GOMODCACHE"), "istio.io", "istio@"+pin)
	if _, err := os.Stat(dir); err != nil {
		dir = module("mod", "download", "-json", "istio.io/istio@"+pin)
	}
	dir = filepath.Join(dir, "pilot", "pkg", "security", "authz", "builder", "testdata")
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("Istio's RBAC goldens are not at hand, nothing was compared (%v): name their directory by MARROW_RBAC_GOLDENS, "+
			"or let istio.io/istio@%s be fetched", err, pin)
	}
	return dir
}

// unsendable are names of goldens that neither a method nor a certificate can have. Both sides get another spelling.
var unsendable = regexp.MustCompile(`(\w)\[(\d+)\]`)

func readGolden(t *testing.T, file string) []byte {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return unsendable.ReplaceAll(raw, []byte("$1$2"))
}

func readYAML(t *testing.T, file string, into proto.Message) {
	t.Helper()
	js, err := yaml.YAMLToJSON(readGolden(t, file))
	if err == nil {
		err = protojson.Unmarshal(js, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// policies reads what a user would apply, and has it mean a service instead of pods, as a waypoint wants it.
func policies(t *testing.T, file string) []*securityv1.AuthorizationPolicy {
	t.Helper()
	var out []*securityv1.AuthorizationPolicy
	for doc := range bytes.SplitSeq(readGolden(t, file), []byte("\n---")) {
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		p := &securityv1.AuthorizationPolicy{}
		if err := yaml.Unmarshal(doc, p); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if p.Kind != "AuthorizationPolicy" {
			continue
		}
		p.Spec.Selector = nil
		p.Spec.TargetRefs = []*typeapi.PolicyTargetReference{{Kind: "Service", Name: "web"}}
		out = append(out, p)
	}
	return out
}

// filters of a golden: those for requests, or one for connections.
func (g golden) filters(t *testing.T, dir string) (http []*rbacv3.RBAC, tcp *listenerv3.Filter) {
	t.Helper()
	for _, f := range g.out {
		if strings.HasPrefix(g.name, "tcp/") {
			tcp = &listenerv3.Filter{}
			readYAML(t, filepath.Join(dir, f), tcp)
			continue
		}
		one := &hcmv3.HttpFilter{}
		readYAML(t, filepath.Join(dir, f), one)
		r := &rbacv3.RBAC{}
		if err := one.GetTypedConfig().UnmarshalTo(r); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		http = append(http, r)
	}
	return http, tcp
}

// seam has another program's room read what is in dir and leave what it makes of it.
func seam(ctx context.Context, dir, room string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-pgo=off", "-tags", "seam", "-count=1", "-run", "^TestSeam$", room)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "MARROW_SEAM="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", room, err, out)
	}
	return nil
}
