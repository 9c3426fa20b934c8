package bench

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/perf/result"
)

// ownProfile is a real profile, of this test's program.
func ownProfile(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	// Unlike that of the CPU it has samples at once, in the same format.
	if err := pprof.Lookup("goroutine").WriteTo(&b, 0); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unzip(t *testing.T, compressed []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestProfiles: one file for each proxy that answers; the other is told of.
func TestProfiles(t *testing.T) {
	var told []string
	var url atomic.Value
	dir := t.TempDir()
	p := profiler{
		dir: dir, tell: func(text string) { told = append(told, text) },
		fetch: func(_ context.Context, _ *world, node, asked string, limit time.Duration) (string, error) {
			url.Store(asked)
			if limit <= 2*time.Second {
				t.Errorf("%v for an answer that takes 2 s", limit)
			}
			if node == nodeB {
				return "", errors.New("connection refused")
			}
			return string(ownProfile(t)), nil
		},
	}
	block := result.Block{Round: 3, Scenario: "bulk-1-up", Impl: result.Marrow}
	finish := p.start(t.Context(), nil, block, []string{nodeA, nodeB}, 2900*time.Millisecond)
	finish()
	finish()
	if len(told) != 1 || !strings.Contains(told[0], "bulk-1-up, round 3") || !strings.Contains(told[0], nodeB+": connection refused") {
		t.Errorf("told %q", told)
	}
	if got, _ := url.Load().(string); !strings.HasSuffix(got, "?seconds=2") {
		t.Errorf("asked for %s", got)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 || filepath.Base(files[0]) != "bulk-1-up-3-node-1.pb.gz" {
		t.Fatalf("%v, %v", files, err)
	}
	raw, err := os.ReadFile(files[0])
	if err != nil || !bytes.Contains(unzip(t, raw), []byte("TestProfiles")) {
		t.Errorf("a profile without names of functions: %v", err)
	}
	// Peers serve other pages, and without a directory nobody asked.
	p.fetch = nil
	block.Impl = "peer"
	p.start(t.Context(), nil, block, []string{nodeA}, time.Second)()
	p.dir, block.Impl = "", result.Marrow
	p.start(t.Context(), nil, block, []string{nodeA}, time.Second)()
}

// TestAnonymous: where the program lies on this machine is in no profile.
func TestAnonymous(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := ownProfile(t)
	if !bytes.Contains(unzip(t, before), []byte(program)) {
		t.Fatalf("no %s in a profile: nothing to take off", program)
	}
	after, err := anonymous(before)
	if err != nil {
		t.Fatal(err)
	}
	raw := unzip(t, after)
	if bytes.Contains(raw, []byte(filepath.Dir(program))) || !bytes.Contains(raw, []byte(filepath.Base(program))) {
		t.Error("the directory is still there, or the name is gone")
	}
	if twice, err := anonymous(after); err != nil || !bytes.Equal(unzip(t, twice), raw) {
		t.Errorf("a second time changes it: %v", err)
	}
	for name, text := range map[string][]byte{"no gzip": []byte("404 page not found"), "cut": before[:len(before)/2], "empty": nil} {
		if _, err := anonymous(text); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}
