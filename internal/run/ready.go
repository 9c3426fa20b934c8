package run

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Change tells that a readiness task was done or undone.
type Change struct {
	Task    string
	Done    bool
	Elapsed time.Duration // since the Ready was made
	Pending int           // tasks still awaited afterwards; 0 = ready
}

// Ready is the set of tasks a program must have done to be ready.
type Ready struct {
	mu       sync.Mutex
	born     time.Time
	pending  map[string]struct{}
	onChange func(Change)
}

// NewReady makes an empty, hence ready, set.
func NewReady() *Ready {
	return &Ready{born: time.Now(), pending: map[string]struct{}{}}
}

// OnChange sets the single observer (the log). Call it before the first task.
func (r *Ready) OnChange(fn func(Change)) {
	r.mu.Lock()
	r.onChange = fn
	r.mu.Unlock()
}

// Task is one condition of readiness.
type Task struct {
	r    *Ready
	name string
}

// Task adds a pending condition.
func (r *Ready) Task(name string) *Task {
	r.mu.Lock()
	r.pending[name] = struct{}{}
	r.mu.Unlock()
	return &Task{r: r, name: name}
}

// Done marks the task as fulfilled; doing it twice is nothing.
func (t *Task) Done() { t.r.set(t.name, true) }

// Undo makes the task pending again.
func (t *Task) Undo() { t.r.set(t.name, false) }

func (r *Ready) set(name string, done bool) {
	r.mu.Lock()
	_, waits := r.pending[name]
	if waits != done {
		r.mu.Unlock()
		return // already as asked
	}
	if done {
		delete(r.pending, name)
	} else {
		r.pending[name] = struct{}{}
	}
	fn, ch := r.onChange, Change{Task: name, Done: done, Elapsed: time.Since(r.born), Pending: len(r.pending)}
	r.mu.Unlock()
	if fn != nil {
		fn(ch)
	}
}

// Pending lists the open tasks, sorted; empty means ready.
func (r *Ready) Pending() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make([]string, 0, len(r.pending))
	for n := range r.pending {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Handler answers GET /healthz/ready with the texts that Istio's probes and
// scripts know.
func (r *Ready) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz/ready", func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		if p := r.Pending(); len(p) > 0 {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = fmt.Fprintf(w, "not ready, pending: %s\n", strings.Join(p, ", "))
			return
		}
		_, _ = fmt.Fprint(w, "ready\n")
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	return mux
}
