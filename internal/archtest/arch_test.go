package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"
)

const module = "github.com/marrowmesh/marrow/"

// rule forbids imports. A pattern ends in "/..." for a tree; from and never are
// relative to the module where they name our own rooms.
type rule struct {
	from   string
	never  []string
	except []string // rooms below from to which the rule does not apply
	why    string
}

func rules() []rule {
	io := []string{"os", "net/http", "context", "os/exec", "syscall"}
	return []rule{
		{from: "internal/identity", never: slices.Concat(io, []string{"sync", "time", "log", module + "..."}), why: "nouns are pure values"},
		{from: "internal/mesh", never: slices.Concat(io, []string{"sync", "log"}), why: "nouns are pure values"},
		{from: "internal/authz", never: slices.Concat(io, []string{"sync", "log"}), why: "nouns are pure values"},
		{from: "internal/claims", never: slices.Concat(io, []string{"sync", "log"}), why: "nouns are pure values"},
		{from: "ztunnel/internal/steer", never: slices.Concat(io, []string{"sync", "log", "crypto/tls"}), why: "deciders do no I/O"},
		// net/http gives names only: methods, status codes, canonical header names.
		{from: "waypoint/internal/table", never: []string{"os", "context", "os/exec", "syscall", "sync", "log", "crypto/tls", "net"}, why: "deciders do no I/O"},
		{from: "waypoint/internal/expr", never: []string{"os", "context", "os/exec", "syscall", "sync", "log", "crypto/tls", "net"}, why: "deciders do no I/O"},
		{from: "waypoint/internal/trace", never: []string{"os", "context", "os/exec", "syscall", "sync", "log", "crypto/tls", "net"}, why: "deciders do no I/O"},
		{from: "cni/internal/redirect", never: slices.Concat(io, []string{"sync", "log"}), except: []string{"cni/internal/redirect/apply"}, why: "deciders do no I/O"},
		{from: "istiod-lite/internal/derive/...", never: slices.Concat(io, []string{"sync", "log", module + "internal/filestore"}), why: "derivations are pure: same input, same bytes"},
		{from: "istiod-lite/internal/collect", never: []string{module + "api/...", "k8s.io/...", "istio.io/...", module + "internal/..."}, why: "the engine knows no domain types"},
		{from: "istiod-lite/internal/publish", never: []string{module + "api/...", "k8s.io/...", "istio.io/..."}, why: "the store knows no domain types"},
		{from: "internal/h2", never: []string{"k8s.io/...", module + "internal/netsys"}, why: "protocols know neither Kubernetes nor namespaces"},
		{from: "internal/hbone", never: []string{"k8s.io/...", module + "internal/netsys"}, why: "protocols know neither Kubernetes nor namespaces"},
		{from: "internal/mtls", never: []string{"k8s.io/...", module + "internal/netsys"}, why: "protocols know neither Kubernetes nor namespaces"},
		{from: "internal/xds", never: []string{"k8s.io/...", module + "internal/netsys"}, why: "protocols know neither Kubernetes nor namespaces"},
		{from: "internal/zds", never: []string{"k8s.io/..."}, why: "protocols know no Kubernetes"},
		{from: "internal/netsys", never: []string{module + "internal/mesh", module + "internal/identity", module + "internal/hbone", module + "internal/xds"}, why: "the system rooms know sockets, not the mesh"},
		{from: "internal/burst", never: []string{module + "..."}, why: "bursts know no protocol: everything stands on them"},
		{from: "internal/relay", never: []string{module + "internal/mesh", module + "internal/identity", module + "internal/hbone", module + "internal/xds"}, why: "the relay moves bytes between any two connections"},
		{from: "...", never: []string{module + "internal/conf"}, except: []string{
			"internal/conf", "ztunnel/internal/config", "waypoint/internal/config", "istiod-lite/internal/config", "cni/internal/config",
			"ztunnel/internal/app", "waypoint/internal/app", "istiod-lite/internal/app", "cni/internal/app", "internal/run",
			"ztunnel", "waypoint", "istiod-lite", "cni", "marrow", "marrow/internal/...", "internal/lab/...", "internal/archtest",
		}, why: "drivers get a typed config; only config and app rooms read settings"},
		{from: "...", never: []string{"golang.org/x/net/http2"}, except: []string{"internal/h2"}, why: "one room speaks HTTP/2 frames"},
		{from: "...", never: []string{"golang.org/x/net/http2/hpack"}, except: []string{"internal/h2"}, why: "one room speaks HTTP/2 frames"},
		{from: "...", never: []string{"go.uber.org/zap", "go.uber.org/zap/zapcore"}, except: []string{"internal/obs"}, why: "one room writes logs"},
		{from: "...", never: []string{"golang.org/x/sys/unix"}, except: []string{"internal/netsys", "internal/lab/...", "internal/testkit/..."}, why: "one room speaks to the kernel"},
		{from: "...", never: []string{"github.com/google/nftables", "github.com/vishvananda/netlink"}, except: []string{"internal/netsys", "internal/lab/...", "internal/testkit/..."}, why: "one room speaks to the kernel"},
		{from: "...", never: []string{"k8s.io/client-go/..."}, except: []string{"istiod-lite/internal/source/kube", "istiod-lite/internal/status"}, why: "two rooms speak to Kubernetes"},
		{from: "...", never: []string{module + "internal/testkit/..."}, except: []string{"internal/testkit/..."}, why: "the test kit never ships"},
		{from: "...", never: []string{module + "internal/lab", module + "internal/lab/..."}, except: []string{"internal/lab/...", "internal/testkit/nstest", "marrow/...", "integration/...", "perf/..."}, why: "no component knows that it runs in a lab"},
		{from: "internal/...", never: []string{module + "ztunnel/...", module + "waypoint/...", module + "cni/...", module + "istiod-lite/...", module + "marrow/..."}, why: "shared rooms know no binary"},
		{from: "...", never: []string{"unsafe", "plugin", "C"}, except: []string{"internal/netsys", "internal/burst", "internal/lab/..."}, why: "memory tricks stay where the kernel needs them"},
	}
}

func match(pattern, path string) bool {
	if pattern == "..." {
		return true
	}
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == tree || strings.HasPrefix(path, tree+"/")
	}
	return pattern == path
}

func matchAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, path) })
}

// file is one parsed Go file of the tree.
type file struct {
	path, dir string
	test      bool
	ast       *ast.File
	lines     int
	generated bool
}

// sources are all Go files of the tree.
type sources struct {
	files []file
	fset  *token.FileSet
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatalf("no go.mod at %s: %v", dir, err)
	}
	return dir
}

// tree reads the whole tree, once for all tests.
var tree = sync.OnceValues(func() (sources, error) {
	base, err := filepath.Abs("../..")
	if err != nil {
		return sources{}, err
	}
	fset := token.NewFileSet()
	var files []file
	err = filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != base && (strings.HasPrefix(name, ".") || name == "testdata" || name == "build" || name == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, path, src, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(base, path)
		files = append(files, file{
			path: filepath.ToSlash(rel), dir: filepath.ToSlash(filepath.Dir(rel)), test: strings.HasSuffix(name, "_test.go"),
			ast: f, lines: strings.Count(string(src), "\n"), generated: ast.IsGenerated(f),
		})
		return nil
	})
	return sources{files: files, fset: fset}, err
})

func parse(t *testing.T) ([]file, *token.FileSet) {
	t.Helper()
	s, err := tree()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.files) < 50 {
		t.Fatalf("only %d Go files seen: the walk is broken", len(s.files))
	}
	return s.files, s.fset
}

func TestImports(t *testing.T) {
	files, _ := parse(t)
	for _, r := range rules() {
		for _, f := range files {
			if f.test || f.generated || !match(r.from, f.dir) || matchAny(r.except, f.dir) {
				continue
			}
			for _, imp := range f.ast.Imports {
				path, _ := strconv.Unquote(imp.Path.Value)
				if matchAny(r.never, path) {
					t.Errorf("%s imports %s: %s", f.path, path, r.why)
				}
			}
		}
	}
}

func TestBudgets(t *testing.T) {
	files, fset := parse(t)
	for _, f := range files {
		if f.generated {
			continue
		}
		if f.lines > 600 {
			t.Errorf("%s has %d lines; at most 600: a room with two purposes?", f.path, f.lines)
		}
		if f.test {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.Name == "init" && d.Recv == nil {
					t.Errorf("%s: init() is hidden composition; compose in app", f.path)
				}
				if n := fset.Position(d.End()).Line - fset.Position(d.Pos()).Line; n > 80 {
					t.Errorf("%s: %s has %d lines; at most 80", f.path, d.Name.Name, n)
				}
			case *ast.GenDecl:
				checkTypes(t, f, d)
			}
		}
	}
}

func checkTypes(t *testing.T, f file, d *ast.GenDecl) {
	t.Helper()
	for _, s := range d.Specs {
		ts, ok := s.(*ast.TypeSpec)
		if !ok {
			continue
		}
		switch x := ts.Type.(type) {
		case *ast.StructType:
			n := 0
			for _, fl := range x.Fields.List {
				n += max(1, len(fl.Names))
			}
			if n > 20 {
				t.Errorf("%s: struct %s has %d fields; at most 20", f.path, ts.Name.Name, n)
			}
		case *ast.InterfaceType:
			if n := x.Methods.NumFields(); n > 5 {
				t.Errorf("%s: interface %s has %d methods; at most 5", f.path, ts.Name.Name, n)
			}
		}
	}
}

func TestRoomsSayWhatTheyAre(t *testing.T) {
	files, _ := parse(t)
	doc, seen := map[string]bool{}, map[string]bool{}
	for _, f := range files {
		if f.test || f.generated || f.ast.Name.Name == "main" {
			continue
		}
		seen[f.dir] = true
		if strings.HasSuffix(f.path, "/doc.go") && f.ast.Doc != nil && len(f.ast.Doc.Text()) > 80 {
			doc[f.dir] = true
		}
		for _, bad := range []string{"util", "utils", "common", "helpers", "misc"} {
			if f.ast.Name.Name == bad {
				t.Errorf("%s: package %s says nothing; name it by what it does", f.path, bad)
			}
		}
	}
	for dir := range seen {
		if !doc[dir] {
			t.Errorf("%s has no doc.go that says what the room does, never does, and its invariants", dir)
		}
	}
}

// TestNamedInvariantsExist keeps doc.go honest: a test named there must exist somewhere in the tree.
func TestNamedInvariantsExist(t *testing.T) {
	files, _ := parse(t)
	have := map[string]bool{}
	for _, f := range files {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.test {
				have[fn.Name.Name] = true
			}
		}
	}
	name := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	for _, f := range files {
		if !strings.HasSuffix(f.path, "/doc.go") || f.ast.Doc == nil {
			continue
		}
		for _, n := range name.FindAllString(f.ast.Doc.Text(), -1) {
			if !have[n] {
				t.Errorf("%s promises %s, which does not exist", f.path, n)
			}
		}
	}
}

// TestHouseInvariants are the tests that ARCHITECTURE.md names; each must exist.
func TestHouseInvariants(t *testing.T) {
	files, _ := parse(t)
	have := map[string]bool{}
	for _, f := range files {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.test {
				have[fn.Name.Name] = true
			}
		}
	}
	for _, n := range []string{
		"TestUnknownFailsClosed", "TestOneViewPerDecision", "TestRegisterBeforeJudge", "TestNo200BeforeUpstream",
		"TestBatchIsAtomic", "TestIncrementalEqualsScratch", "TestDrainLosesNothing",
	} {
		if !have[n] {
			t.Errorf("the house's invariant %s has no test of that name", n)
		}
	}
}

// TestMinimumVersions refuses versions with known holes in what faces the network.
func TestMinimumVersions(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := modfile.Parse("go.mod", b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m.Toolchain == nil || semver.Compare("v"+strings.TrimPrefix(m.Toolchain.Name, "go"), "v1.27.4") < 0 {
		t.Error("go.mod: the toolchain line must name go1.27.4 or newer")
	}
	least := map[string]string{"golang.org/x/net": "v0.62.0", "google.golang.org/grpc": "v1.85.0", "github.com/go-jose/go-jose/v4": "v4.1.8", "google.golang.org/protobuf": "v1.36.12", "github.com/miekg/dns": "v1.1.73"}
	for _, r := range m.Require {
		if want, ok := least[r.Mod.Path]; ok {
			delete(least, r.Mod.Path)
			if semver.Compare(r.Mod.Version, want) < 0 {
				t.Errorf("go.mod: %s %s is older than %s", r.Mod.Path, r.Mod.Version, want)
			}
		}
	}
	for p := range least {
		t.Errorf("go.mod does not require %s: is the list of minimum versions out of date?", p)
	}
}
