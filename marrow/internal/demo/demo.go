package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
)

// Step is one line of the report.
type Step struct {
	ID       string  `json:"id"`
	Title    string  `json:"title"`
	Expected string  `json:"expected"`
	Observed string  `json:"observed"`
	OK       bool    `json:"ok"`
	Seconds  float64 `json:"seconds"`
}

// Report is what --json prints.
type Report struct {
	Steps []Step `json:"steps"`
}

// Failed lists the steps that did not go as expected.
func (r Report) Failed() []string {
	var ids []string
	for _, s := range r.Steps {
		if !s.OK {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// Config says how the demo runs.
type Config struct {
	// Lab describes the lab; the demo fills in its world. Two nodes at least.
	Lab lab.Options
	// Waypoint deploys a waypoint for service account catalog of namespace shop,
	// as `marrow waypoint apply -n shop --service-account catalog` does.
	Waypoint func(ctx context.Context, c *lab.Client) error
	// Tell gets the narration.
	Tell io.Writer
	// JSON gets the report; nil prints none.
	JSON io.Writer
	// Stay is called after the last step while everything still runs; nil ends at once.
	Stay func(ctx context.Context, l *lab.Lab)
}

// ErrStepFailed is returned when a step did not go as expected.
var ErrStepFailed = errors.New("a step did not go as expected")

// step is one scene: act does something and tells what it saw.
type step struct {
	id, title, expected string
	act                 func(ctx context.Context) (observed string, ok bool, err error)
}

// stepLimit bounds one step: no step needs a tenth of it.
const stepLimit = 60 * time.Second

// Run starts the lab, plays all steps and takes the lab down.
func Run(ctx context.Context, cfg Config) (err error) {
	began := time.Now()
	say(cfg.Tell, "starting a lab of two nodes: network namespaces, real nftables, the mesh's own processes\n")
	cfg.Lab.Nodes = max(cfg.Lab.Nodes, 2)
	cfg.Lab.Progress = func(p lab.Progress) { say(cfg.Tell, "  %5.1fs  %s\n", p.Time.Sub(began).Seconds(), p.Text) }
	l, err := lab.Up(ctx, cfg.Lab)
	if err != nil {
		return err
	}
	defer func() {
		say(cfg.Tell, "taking the lab down\n")
		err = errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}()
	w := newWorld(l.Client, cfg.Waypoint)
	defer w.close()
	if err := w.populate(ctx); err != nil {
		return fmt.Errorf("the shop did not start: %w", err)
	}
	say(cfg.Tell, "  %5.1fs  the shop is open: web, catalog v1 and v2, reviews, ledger, a load client, and an outsider\n", time.Since(began).Seconds())
	report := play(ctx, w.steps(), cfg.Tell)
	if cfg.JSON != nil {
		if err := json.NewEncoder(cfg.JSON).Encode(report); err != nil {
			return err
		}
	}
	failed := report.Failed()
	say(cfg.Tell, "\n%d of %d steps as expected, %.1f s\n", len(report.Steps)-len(failed), len(report.Steps), time.Since(began).Seconds())
	if len(failed) > 0 {
		w.evidence(ctx, cfg.Tell)
		err = fmt.Errorf("%w: %s", ErrStepFailed, strings.Join(failed, ", "))
	}
	if cfg.Stay != nil && ctx.Err() == nil {
		cfg.Stay(ctx, l)
	}
	return err
}

// play runs the steps in order; a failed one does not stop the next, so that
// the report is whole.
func play(ctx context.Context, steps []step, tell io.Writer) Report {
	var r Report
	for _, s := range steps {
		say(tell, "\n(%s) %s\n    expected: %s\n", s.id, s.title, s.expected)
		began := time.Now()
		limited, cancel := context.WithTimeout(ctx, stepLimit)
		observed, ok, err := s.act(limited)
		cancel()
		if err != nil {
			ok = false
			observed = strings.TrimPrefix(observed+"; error: "+err.Error(), "; ")
		}
		took := time.Since(began).Seconds()
		r.Steps = append(r.Steps, Step{ID: s.id, Title: s.title, Expected: s.expected, Observed: observed, OK: ok, Seconds: took})
		verdict := "ok"
		if !ok {
			verdict = "NOT AS EXPECTED"
		}
		say(tell, "    observed: %s\n    %s  %.1fs\n", observed, verdict, took)
	}
	return r
}

func say(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, format, args...) // a reader that left is no reason to stop
}
