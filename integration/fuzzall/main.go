// Command fuzzall runs every fuzz target of the module, one after the other, for
// -time each, and says which is running.
package main

import (
	"context"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

type target struct{ dir, name string }

func main() {
	each := flag.Duration("time", 10*time.Minute, "how long each target runs")
	only := flag.String("only", "", "run only targets whose directory or name contains this")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	targets, err := find(".")
	if err != nil || len(targets) == 0 {
		fmt.Fprintln(os.Stderr, "fuzzall: no fuzz targets found from here; run it at the module's root:", err)
		os.Exit(1)
	}
	failed := 0
	for i, t := range targets {
		if *only != "" && !strings.Contains(t.dir+" "+t.name, *only) {
			continue
		}
		fmt.Printf("[%d/%d] %s %s for %s\n", i+1, len(targets), t.dir, t.name, *each)
		cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-fuzz", "^"+t.name+"$", "-fuzztime", each.String(),
			"-fuzzminimizetime", "10x", // by default minimizing eats the time of whole targets
			"./"+t.dir)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			failed++
			fmt.Printf("FAILED %s %s: %v\n", t.dir, t.name, err)
		}
		if ctx.Err() != nil {
			os.Exit(130)
		}
	}
	if failed > 0 {
		fmt.Printf("%d fuzz targets failed; the inputs are in their testdata/fuzz\n", failed)
		os.Exit(1)
	}
}

// find lists the Fuzz functions of all test files.
func find(root string) ([]target, error) {
	var out []target
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "build"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Fuzz") {
				out = append(out, target{dir: filepath.ToSlash(filepath.Dir(path)), name: fn.Name.Name})
			}
		}
		return nil
	})
	return out, err
}
