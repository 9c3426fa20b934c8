package status

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/manifest"
)

// Store writes statuses. edit gets the stored status (nil if there is none) and
// returns what is to be stored.
type Store interface {
	PatchStatus(k manifest.Key, edit func(status map[string]any) map[string]any) error
}

// Condition is one entry of status.conditions.
type Condition struct {
	Type    string
	True    bool
	Reason  string
	Message string
	// ObservedGeneration is left out when 0.
	ObservedGeneration int64
}

// Writer collects and writes.
type Writer struct {
	store Store
	onErr func(manifest.Key, error)
	now   func() time.Time

	mu    sync.Mutex
	queue []manifest.Key
	todo  map[manifest.Key]*pending
	wake  chan struct{}
}

// pending is what is to be written of one object.
type pending struct {
	conditions map[string][]Condition // by owner
	owned      map[string][]string    // condition types by owner
	whole      map[string]any         // a whole status; nil: only conditions
}

// NewWriter returns a writer; onErr is told of objects that could not be written.
func NewWriter(store Store, onErr func(manifest.Key, error)) *Writer {
	return &Writer{store: store, onErr: onErr, now: time.Now, todo: map[manifest.Key]*pending{}, wake: make(chan struct{}, 1)}
}

// Conditions asks that of the condition types in owned exactly the given ones stand on the object.
func (w *Writer) Conditions(k manifest.Key, owner string, owned []string, conditions []Condition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pending(k)
	p.conditions[owner], p.owned[owner] = conditions, owned
}

// Whole asks that the object's status be the given value, which must encode to a JSON object.
func (w *Writer) Whole(k manifest.Key, status any) error {
	raw, err := json.Marshal(status)
	if err != nil {
		return err
	}
	tree := map[string]any{}
	if err := json.Unmarshal(raw, &tree); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending(k).whole = tree
	return nil
}

// pending finds or queues an object; w.mu is held.
func (w *Writer) pending(k manifest.Key) *pending {
	p := w.todo[k]
	if p == nil {
		p = &pending{conditions: map[string][]Condition{}, owned: map[string][]string{}}
		w.todo[k] = p
		w.queue = append(w.queue, k)
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return p
}

// Run writes until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		k, p := w.next()
		if p == nil {
			select {
			case <-ctx.Done():
			case <-w.wake:
			}
			continue
		}
		if err := w.store.PatchStatus(k, func(old map[string]any) map[string]any { return w.merge(old, p) }); err != nil && w.onErr != nil {
			w.onErr(k, err)
		}
	}
	return nil
}

func (w *Writer) next() (manifest.Key, *pending) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return manifest.Key{}, nil
	}
	k := w.queue[0]
	w.queue = w.queue[1:]
	p := w.todo[k]
	delete(w.todo, k)
	return k, p
}

// merge is the status after p.
func (w *Writer) merge(old map[string]any, p *pending) map[string]any {
	out := map[string]any{}
	maps.Copy(out, old)
	if p.whole != nil {
		out = p.whole
		w.stampAll(old, out)
	}
	list, _ := out["conditions"].([]any)
	list = slices.Clone(list)
	owners := make([]string, 0, len(p.conditions))
	for o := range p.conditions {
		owners = append(owners, o)
	}
	slices.Sort(owners)
	for _, o := range owners {
		list = slices.DeleteFunc(list, func(c any) bool {
			typ := field(c, "type")
			return slices.Contains(p.owned[o], typ) && !slices.ContainsFunc(p.conditions[o], func(n Condition) bool { return n.Type == typ })
		})
		for _, c := range p.conditions[o] {
			list = w.set(list, c)
		}
	}
	if len(list) > 0 {
		out["conditions"] = list
	} else {
		delete(out, "conditions")
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func field(condition any, name string) string {
	m, _ := condition.(map[string]any)
	s, _ := m[name].(string)
	return s
}

// set replaces or appends one condition.
func (w *Writer) set(list []any, c Condition) []any {
	status := "False"
	if c.True {
		status = "True"
	}
	entry := map[string]any{"type": c.Type, "status": status, "reason": c.Reason, "message": c.Message}
	if c.ObservedGeneration != 0 {
		entry["observedGeneration"] = c.ObservedGeneration
	}
	i := slices.IndexFunc(list, func(o any) bool { return field(o, "type") == c.Type })
	if i < 0 {
		entry["lastTransitionTime"] = w.stamp(nil, status)
		return append(list, entry)
	}
	entry["lastTransitionTime"] = w.stamp(list[i], status)
	list[i] = entry
	return list
}

// stamp keeps the time of a condition whose status stays.
func (w *Writer) stamp(old any, status string) string {
	if t := field(old, "lastTransitionTime"); t != "" && field(old, "status") == status {
		return t
	}
	return w.now().UTC().Format(time.RFC3339)
}

// stampAll sets the transition times of every conditions list of a whole status
// (the object's, its listeners', its parents').
func (w *Writer) stampAll(old, fresh map[string]any) {
	if list, ok := fresh["conditions"].([]any); ok {
		before, _ := old["conditions"].([]any)
		for _, c := range list {
			m, ok := c.(map[string]any)
			if !ok {
				continue
			}
			var was any
			if i := slices.IndexFunc(before, func(o any) bool { return field(o, "type") == field(c, "type") }); i >= 0 {
				was = before[i]
			}
			m["lastTransitionTime"] = w.stamp(was, field(c, "status"))
		}
	}
	for name, v := range fresh {
		list, ok := v.([]any)
		if !ok || name == "conditions" {
			continue
		}
		before, _ := old[name].([]any)
		for i, entry := range list {
			m, ok := entry.(map[string]any)
			if !ok {
				continue
			}
			var was map[string]any
			if i < len(before) {
				was, _ = before[i].(map[string]any)
			}
			w.stampAll(was, m)
		}
	}
}
