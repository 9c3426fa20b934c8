package file

import (
	"context"
	"fmt"

	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
)

// Source follows one store.
type Source struct{ store *filestore.Store }

// New returns a source that reads store.
func New(store *filestore.Store) *Source { return &Source{store: store} }

// Run hands batches to handle, one at a time, until ctx ends. The first one, which may be empty, is the whole store.
func (s *Source) Run(ctx context.Context, handle func(source.Batch) error) error {
	changes, err := s.store.Watch(ctx)
	if err != nil {
		return fmt.Errorf("read objects: %w", err)
	}
	refused := map[manifest.Key]bool{}
	for events := range changes {
		if err := handle(batchOf(events, refused)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// batchOf splits events; refused remembers over all batches which keys are refused.
func batchOf(events []filestore.Event, refused map[manifest.Key]bool) source.Batch {
	var b source.Batch
	for _, e := range events {
		if e.Err != nil {
			refused[e.Key] = true
			b.Refused = append(b.Refused, source.Refusal{Key: e.Key, Err: e.Err})
			continue
		}
		if refused[e.Key] {
			delete(refused, e.Key)
			b.Mended = append(b.Mended, e.Key)
		}
		b.Events = append(b.Events, source.Event{Key: e.Key, Object: e.Object})
	}
	return b
}
