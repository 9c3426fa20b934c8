package demo

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/marrow/internal/shopapp"
)

func scenes(ran *[]string) []step {
	scene := func(id string, ok bool, err error) step {
		return step{id, "title " + id, "expected " + id, func(context.Context) (string, bool, error) {
			*ran = append(*ran, id)
			return "observed " + id, ok, err
		}}
	}
	return []step{scene("a", true, nil), scene("b", false, nil), scene("c", true, errors.New("broken")), scene("d", true, nil)}
}

func TestReportIsWhole(t *testing.T) {
	var ran []string
	var told bytes.Buffer
	r := play(t.Context(), scenes(&ran), &told)
	if strings.Join(ran, "") != "abcd" || len(r.Steps) != 4 {
		t.Fatalf("ran %v, reported %d steps; a failure must not hide later steps", ran, len(r.Steps))
	}
	if r.Steps[2].OK || !strings.Contains(r.Steps[2].Observed, "broken") {
		t.Errorf("an error must fail the step and be told: %+v", r.Steps[2])
	}
	for _, want := range []string{"expected b", "observed b", "NOT AS EXPECTED"} {
		if !strings.Contains(told.String(), want) {
			t.Errorf("the narration lacks %q:\n%s", want, told.String())
		}
	}
}

func TestFailedStepFailsTheRun(t *testing.T) {
	var ran []string
	r := play(t.Context(), scenes(&ran), &bytes.Buffer{})
	if got := strings.Join(r.Failed(), ","); got != "b,c" {
		t.Fatalf("failed steps %q, want b,c", got)
	}
}

func TestAllFrom(t *testing.T) {
	at := map[string]bool{"10.244.1.7": true}
	for remote, want := range map[string]bool{"10.244.1.7": true, "::ffff:10.244.1.7": true, "10.244.1.8": false, "nonsense": false} {
		if got := allFrom(shopapp.Summary{Remotes: map[string]int{remote: 1}}, at); got != want {
			t.Errorf("%s: %v, want %v", remote, got, want)
		}
	}
	if allFrom(shopapp.Summary{}, at) {
		t.Error("no observation is no proof")
	}
}
