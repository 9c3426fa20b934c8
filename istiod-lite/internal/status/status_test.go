package status

import (
	"context"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/marrowmesh/marrow/internal/manifest"
)

// shelf keeps statuses and counts real changes.
type shelf struct {
	mu     sync.Mutex
	status map[manifest.Key]map[string]any
	writes int
}

func (s *shelf) PatchStatus(k manifest.Key, edit func(map[string]any) map[string]any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.status[k]
	fresh := edit(old)
	if !reflect.DeepEqual(old, fresh) {
		s.writes++
		s.status[k] = fresh
	}
	return nil
}

func bubble(t *testing.T, fn func(w *Writer, s *shelf)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{status: map[manifest.Key]map[string]any{}}
		w := NewWriter(s, func(_ manifest.Key, err error) { t.Error(err) })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Run(ctx) }()
		fn(w, s)
		cancel()
		<-done
	})
}

var key = manifest.Key{Kind: "Service", Namespace: "shop", Name: "web"}

func conditions(s *shelf) []any {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, _ := s.status[key]["conditions"].([]any)
	return list
}

func TestSameStatusIsNotWritten(t *testing.T) {
	bubble(t, func(w *Writer, s *shelf) {
		for range 3 {
			w.Conditions(key, "ambient", []string{"Bound"}, []Condition{{Type: "Bound", True: true, Reason: "Accepted"}})
			_ = w.Whole(manifest.Key{Kind: "Gateway"}, map[string]any{"conditions": []any{map[string]any{"type": "Programmed", "status": "True"}}})
			synctest.Wait()
			time.Sleep(time.Hour)
		}
		if s.writes != 2 {
			t.Errorf("%d writes, want one per object", s.writes)
		}
		w.Conditions(key, "ambient", []string{"Bound"}, nil)
		synctest.Wait()
		if len(conditions(s)) != 0 {
			t.Errorf("a condition that no longer holds stayed: %v", conditions(s))
		}
	})
}

func TestTransitionTime(t *testing.T) {
	bubble(t, func(w *Writer, s *shelf) {
		gw := manifest.Key{Kind: "Gateway", Name: "g"}
		at := func() string {
			s.mu.Lock()
			defer s.mu.Unlock()
			return field(s.status[gw]["listeners"].([]any)[0].(map[string]any)["conditions"].([]any)[0], "lastTransitionTime")
		}
		put := func(status string) {
			_ = w.Whole(gw, map[string]any{"listeners": []any{map[string]any{"name": "mesh", "conditions": []any{map[string]any{"type": "Accepted", "status": status, "message": time.Now().String()}}}}})
			synctest.Wait()
			time.Sleep(time.Minute)
		}
		put("False")
		first := at()
		put("False")
		if at() != first {
			t.Error("the transition time moved although the status stayed")
		}
		put("True")
		if at() == first {
			t.Error("the transition time stayed although the status changed")
		}
	})
}

func TestForeignConditionsStay(t *testing.T) {
	bubble(t, func(w *Writer, s *shelf) {
		s.status[key] = map[string]any{"loadBalancer": map[string]any{}, "conditions": []any{map[string]any{"type": "Foreign", "status": "True"}}}
		w.Conditions(key, "ambient", []string{"Bound"}, []Condition{{Type: "Bound"}})
		w.Conditions(key, "refusal", []string{"Valid"}, []Condition{{Type: "Valid", Message: "spec.x: unknown field"}})
		synctest.Wait()
		w.Conditions(key, "refusal", []string{"Valid"}, nil)
		synctest.Wait()
		list := conditions(s)
		if len(list) != 2 || field(list[0], "type") != "Foreign" || field(list[1], "type") != "Bound" || s.status[key]["loadBalancer"] == nil {
			t.Errorf("status %v", s.status[key])
		}
	})
}
