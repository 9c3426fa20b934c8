package lab_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/internal/lab"
)

func TestSplitWords(t *testing.T) {
	for line, want := range map[string][]string{
		"":                               nil,
		"  a  b\tc ":                     {"a", "b", "c"},
		`/x/y 'a b' "c \" d" e\ f`:       {"/x/y", "a b", `c " d`, "e f"},
		`''`:                             {""},
		`pre'mid'post`:                   {"premidpost"},
		`sh -c 'exec envoy "$@"' -- x$Y`: {"sh", "-c", `exec envoy "$@"`, "--", "x$Y"},
	} {
		if got, err := lab.SplitWords(line); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q %v", line, got, err)
		}
	}
	for _, line := range []string{`'open`, `"open`, `end\`} {
		if _, err := lab.SplitWords(line); err == nil {
			t.Errorf("%s is taken", line)
		}
	}
}

func FuzzSplitWords(f *testing.F) {
	f.Add(`a 'b c' "d"`)
	f.Fuzz(func(t *testing.T, line string) {
		words, err := lab.SplitWords(line)
		if err == nil && len(words) > len(line) {
			t.Errorf("%q has %d words", line, len(words))
		}
	})
}

func TestParseKind(t *testing.T) {
	for name, want := range map[string]string{
		"pod": "Pod", "PODS": "Pod", "svc": "Service", "ns": "Namespace", "deploy": "Deployment", "deployment.apps": "Deployment",
		"gtw": "Gateway", "httproutes": "HTTPRoute", "ap": "AuthorizationPolicy", "pa": "PeerAuthentication",
	} {
		if k, err := lab.ParseKind(name); err != nil || k.Kind != want {
			t.Errorf("%s: %+v %v", name, k, err)
		}
	}
	if _, err := lab.ParseKind("cronjob"); err == nil || !strings.Contains(err.Error(), "deployment") {
		t.Errorf("an unknown kind: %v", err)
	}
	if k, _ := lab.ParseKind("ns"); k.Ref("x", "shop").String() != "namespace/shop" {
		t.Error("a namespace is in a namespace")
	}
}

func TestOptions(t *testing.T) {
	o := lab.Options{Root: "/r"}
	if err := o.Normalize(); err != nil || o.Nodes != 2 || o.Name != "default" || o.BinDir == "" {
		t.Errorf("%+v %v", o, err)
	}
	o = lab.Options{Root: "/r", Name: "../up", Nodes: 99, Env: []string{"x"}}
	err := o.Normalize()
	for _, want := range []string{`"../up"`, "nodes 99", `environment "x"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
}

func TestState(t *testing.T) {
	root := filepath.Join(t.TempDir(), "labs")
	s := lab.StateOf(root, "one")
	if s.Exists() || s.Running() {
		t.Error("a lab that never was")
	}
	if err := lab.Down(t.Context(), root, "one"); !errors.Is(err, lab.ErrNoLab) {
		t.Errorf("down of nothing: %v", err)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := s.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if !s.Running() || !errors.Is(s.Remove(), lab.ErrRunning) {
		t.Error("a locked lab does not run")
	}
	if _, err := s.Lock(); !errors.Is(err, lab.ErrRunning) {
		t.Errorf("a second lock: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	labs, err := lab.List(root)
	if err != nil || len(labs) != 1 || labs[0].Running || labs[0].Name != "one" {
		t.Errorf("list: %+v %v", labs, err)
	}
	if err := lab.Down(t.Context(), root, "one"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

func TestReadManifestsTellsAll(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {contaners: []}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := lab.ReadManifests(strings.NewReader("kind: Nope\n"), bad, "-", filepath.Join(dir, "none"))
	for _, want := range []string{bad, "document 2", "Pod", "spec.contaners", "standard input", "none"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
}
