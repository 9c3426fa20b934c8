package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/marrowmesh/marrow/perf/result"
)

// Names of what Write leaves in its directory.
const (
	Page    = "report.html"  // the report, with all figures in it
	Results = "results.json" // a result.File: what `perf compare` reads
	Samples = "samples.json" // the result.Run that all else is computed from
	Plots   = "plots"        // the figures as SVG files
	Text    = "tables.md"    // all tables, for a document
)

// Write leaves the report of a run in dir, which it makes if need be. Figures of
// an older report there are removed first.
func Write(dir string, run result.Run, f result.File) error {
	html, figures, err := render(run, f)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	plots := filepath.Join(dir, Plots)
	if err := os.MkdirAll(plots, 0o755); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	old, err := filepath.Glob(filepath.Join(plots, "*.svg"))
	if err != nil {
		return fmt.Errorf("report: look for old figures: %w", err)
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("report: remove an old figure: %w", err)
		}
	}
	for _, d := range figures {
		if err := write(filepath.Join(plots, d.name+".svg"), d.figure.Standalone()); err != nil {
			return err
		}
	}
	var text bytes.Buffer
	Markdown(&text, f)
	if err := write(filepath.Join(dir, Text), text.Bytes()); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, Results), f); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, Samples), run); err != nil {
		return err
	}
	return write(filepath.Join(dir, Page), html)
}

// Read reads the results.json that Write left, by the file's name or its directory's.
func Read(path string) (result.File, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, Results)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return result.File{}, fmt.Errorf("read results: %w", err)
	}
	var f result.File
	if err := json.Unmarshal(b, &f); err != nil {
		return result.File{}, fmt.Errorf("read results: %s is not what `marrow perf run` writes: %w", path, err)
	}
	if len(f.Rows) == 0 {
		return result.File{}, fmt.Errorf("read results: %s holds no rows; is it a %s?", path, Results)
	}
	return f, nil
}

func writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Errorf("report: %s: %w", filepath.Base(name), err)
	}
	return write(name, append(b, '\n'))
}

func write(name string, b []byte) error {
	if err := os.WriteFile(name, b, 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
