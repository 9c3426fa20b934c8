package filestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/marrowmesh/marrow/internal/manifest"
)

// debounce is how long a watcher collects changes before it reads the files: long enough for the writes of one call to
// be one batch, short enough not to be felt.
const debounce = 5 * time.Millisecond

// Event is one change: an object that is new or different, a removal (neither Object nor Err), or a file that cannot be
// read (Err), in which case the last good object stays in force.
type Event struct {
	Key    manifest.Key
	Object manifest.Object
	Err    error
}

// Watch delivers the whole store as the first batch, which may be empty, then batches of what changed. The channel is
// closed after ctx ends.
func (s *Store) Watch(ctx context.Context) (<-chan []Event, error) {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch object store %s: %w", s.dir, err)
	}
	w := &watcher{store: s, notify: n, seen: map[manifest.Key][]byte{}}
	if err := w.follow(s.dir); err != nil {
		_ = n.Close()
		return nil, err
	}
	out := make(chan []Event)
	go w.run(ctx, out) // ends with ctx; closing out tells the caller that it has
	return out, nil
}

// watcher turns notices of changed paths into events.
type watcher struct {
	store  *Store
	notify *fsnotify.Watcher
	seen   map[manifest.Key][]byte // the bytes that the last event of each key was made of
}

func (w *watcher) run(ctx context.Context, out chan<- []Event) {
	defer close(out)
	defer func() { _ = w.notify.Close() }()
	batch := w.scan()
	dirty := map[string]bool{}
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	first := true
	for {
		send := out
		if len(batch) == 0 && !first {
			send = nil // nothing to deliver
		}
		select {
		case <-ctx.Done():
			return
		case send <- batch:
			batch, first = nil, false
		case e, ok := <-w.notify.Events:
			if !ok {
				return
			}
			if e.Op == fsnotify.Chmod || strings.HasPrefix(filepath.Base(e.Name), ".") {
				continue
			}
			if len(dirty) == 0 {
				timer.Reset(debounce)
			}
			dirty[e.Name] = true
		case _, ok := <-w.notify.Errors: // the kernel's queue ran over: look at everything
			if !ok {
				return
			}
			if len(dirty) == 0 {
				timer.Reset(debounce)
			}
			dirty[w.store.dir] = true
		case <-timer.C:
			batch = merge(batch, w.read(dirty))
			clear(dirty)
		}
	}
}

// merge appends later to what was not delivered yet; a later event of a key replaces the earlier one.
func merge(batch, later []Event) []Event {
	for _, e := range later {
		batch = slices.DeleteFunc(batch, func(b Event) bool { return b.Key == e.Key })
	}
	return append(batch, later...)
}

// read makes events of the paths that changed.
func (w *watcher) read(dirty map[string]bool) []Event {
	if dirty[w.store.dir] {
		return w.scan()
	}
	var events []Event
	for _, path := range slices.Sorted(maps.Keys(dirty)) {
		if k, ok := w.store.keyAt(path); ok {
			events = append(events, w.look(k)...)
			continue
		}
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			events = append(events, w.vanished(path)...)
			continue
		}
		// A new directory: what was written into it before it was followed gave no notice.
		if err := w.follow(path); err != nil {
			return w.scan()
		}
		_ = w.store.walk(path, func(k manifest.Key, _ string) { events = append(events, w.look(k)...) })
	}
	return events
}

// scan compares everything on disk with what was delivered.
func (w *watcher) scan() []Event {
	_ = w.follow(w.store.dir) // what cannot be followed now is found by the next notice above it
	var events []Event
	_ = w.store.walk(w.store.dir, func(k manifest.Key, _ string) { events = append(events, w.look(k)...) })
	return append(events, w.vanished(w.store.dir)...)
}

// vanished reports the known keys below dir whose files are gone.
func (w *watcher) vanished(dir string) []Event {
	var gone []manifest.Key
	for k := range w.seen {
		path := w.store.path(k)
		if !strings.HasPrefix(path, dir+string(filepath.Separator)) {
			continue
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			gone = append(gone, k)
		}
	}
	slices.SortFunc(gone, func(a, b manifest.Key) int { return strings.Compare(a.String(), b.String()) })
	var events []Event
	for _, k := range gone {
		events = append(events, w.look(k)...)
	}
	return events
}

// look reads the file of k and says how it differs from what was delivered.
func (w *watcher) look(k manifest.Key) []Event {
	raw, err := os.ReadFile(w.store.path(k))
	before, known := w.seen[k]
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if !known {
			return nil
		}
		delete(w.seen, k)
		return []Event{{Key: k}}
	case err != nil:
		return []Event{{Key: k, Err: fmt.Errorf("read %s: %w", k, err)}}
	case known && bytes.Equal(before, raw):
		return nil
	}
	w.seen[k] = raw
	o, err := w.store.decode(k, raw)
	return []Event{{Key: k, Object: o, Err: err}}
}

// follow asks for notices of dir and all directories below it.
func (w *watcher) follow(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch object store: %w", err)
		}
		if !d.IsDir() {
			return nil
		}
		if err := w.notify.Add(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("watch object store: %s: %w", path, err)
		}
		return nil
	})
}
