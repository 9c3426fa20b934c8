// Command canary proves that the gates can fail: it copies the tree, breaks one
// thing per gate, runs the gate and expects it to go red. A row whose text is no
// longer found in its file fails too, so the list cannot rot.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// breach is one thing that somebody might get wrong, and the gate that must see it.
type breach struct {
	gate string
	what string
	file string
	// old is replaced by new; an empty old appends new to the file (or makes it).
	old, new string
	run      []string
	// says must be part of what the gate prints, so that it is red for the right reason.
	says string
}

func breaches() []breach {
	return []breach{
		{
			gate: "import rule (archtest)", what: "a decider imports net/http",
			file: "ztunnel/internal/steer/zz_canary.go", new: "package steer\n\nimport _ \"net/http\"\n",
			run: []string{"go", "test", "-count=1", "-run", "TestImports", "./internal/archtest"}, says: "ztunnel/internal/steer/zz_canary.go imports net/http",
		},
		{
			gate: "import rule (lint)", what: "a noun imports os",
			file: "internal/mesh/zz_canary.go", new: "package mesh\n\nimport _ \"os\"\n",
			run: []string{"go", "tool", "-modfile=tools/go.mod", "golangci-lint", "run", "--timeout", "10m", "./internal/mesh/..."}, says: "depguard",
		},
		{
			gate: "policy decision", what: "a matching DENY no longer denies",
			file: "internal/authz/authz.go", old: "if t.deny != nil {", new: "if t.deny != nil && t.allow != nil {",
			run: []string{"go", "test", "-count=1", "./internal/authz"}, says: "FAIL",
		},
		{
			gate: "identity check", what: "any certificate of the mesh is accepted for any destination",
			file: "internal/mtls/verify.go", old: "err == nil && slices.Contains(expect, id)", new: "err == nil && (slices.Contains(expect, id) || !id.IsZero())",
			run: []string{"go", "test", "-count=1", "./internal/mtls"}, says: "FAIL",
		},
		{
			gate: "certificate authority", what: "a node proxy may ask for identities of other nodes' pods",
			file: "istiod-lite/internal/ca/service.go", old: "!s.cfg.Pods.OnNode(node, id.Namespace(), id.ServiceAccount())", new: "false",
			run: []string{"go", "test", "-count=1", "./istiod-lite/internal/ca"}, says: "TestImpersonation",
		},
		{
			gate: "plaintext on the wire (demo)", what: "a destination that speaks HBONE is sent plain TCP",
			file: "ztunnel/internal/steer/outbound.go", old: "if up.workload.Protocol != mesh.HBONE {", new: "if up.workload.Protocol != mesh.HBONE || up.service != nil {",
			run: []string{"sh", "-c", "go build -o bin/ ./ztunnel ./waypoint ./istiod-lite ./cni ./marrow && bin/marrow demo --name canary --once --json"}, says: `"id":"b","title"`,
		},
		{
			gate: "format", what: "a file is not formatted",
			file: "internal/mesh/zz_canary.go", new: "package mesh\n\nvar  canary   = 1\n",
			run: []string{"sh", "-c", `out=$(gofmt -l internal/mesh); echo "$out"; [ -z "$out" ]`}, says: "zz_canary.go",
		},
	}
}

func main() {
	only := flag.String("only", "", "run only gates whose name contains this")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := play(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "canary:", err)
		os.Exit(1)
	}
}

func play(ctx context.Context, only string) (err error) {
	dir, err := os.MkdirTemp("", "marrow-canary-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fmt.Println("copying the tree")
	if err := copyTree(ctx, dir); err != nil {
		return err
	}
	silent, ran := 0, 0
	for _, b := range breaches() {
		if only != "" && !strings.Contains(b.gate, only) {
			continue
		}
		ran++
		began := time.Now()
		fmt.Printf("%-32s %s ... ", b.gate, b.what)
		verdict, detail := try(ctx, dir, b)
		fmt.Printf("%s (%.0f s)\n", verdict, time.Since(began).Seconds())
		if detail != "" {
			silent++
			fmt.Println(detail)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	fmt.Printf("%d passed, %d failed\n", ran-silent, silent)
	if silent > 0 || ran == 0 {
		return fmt.Errorf("%d of %d gates did not see what was broken", silent, ran)
	}
	return nil
}

// try breaks, runs the gate and mends. detail is empty when the gate went red for the right reason.
func try(ctx context.Context, dir string, b breach) (verdict, detail string) {
	path := filepath.Join(dir, b.file)
	before, readErr := os.ReadFile(path)
	after := []byte(b.new)
	if b.old != "" {
		if readErr != nil || bytes.Count(before, []byte(b.old)) != 1 {
			return "OUT OF DATE", fmt.Sprintf("  %s must hold %q exactly once: %v", b.file, b.old, readErr)
		}
		after = bytes.Replace(before, []byte(b.old), []byte(b.new), 1)
	}
	if err := os.WriteFile(path, after, 0o600); err != nil {
		return "FAILED", "  " + err.Error()
	}
	defer func() {
		if readErr != nil {
			_ = os.Remove(path)
			return
		}
		_ = os.WriteFile(path, before, 0o600)
	}()
	ctx, cancel := context.WithTimeout(ctx, 12*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.run[0], b.run[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return "GREEN", "  the gate did not see it: " + strings.Join(b.run, " ")
	case !bytes.Contains(out, []byte(b.says)):
		return "RED for another reason", fmt.Sprintf("  expected %q in:\n%s", b.says, tail(out))
	}
	return "red", ""
}

func tail(out []byte) []byte { return out[max(0, len(out)-3000):] }

// copyTree copies what git knows or would add, as it is in the work tree.
func copyTree(ctx context.Context, dir string) error {
	list, err := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		if err := copyFile(name, filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	fi, err := in.Stat()
	if err != nil || fi.IsDir() {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, fi.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
