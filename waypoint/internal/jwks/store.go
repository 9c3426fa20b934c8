package jwks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/waypoint/internal/jwt"
)

const (
	// maxDocument bounds what is read of an answer.
	maxDocument = 1 << 20
	// minEarly is the least time between fetches that requests cause.
	minEarly = 10 * time.Second
	// ahead is how long before the keys count as old they are fetched again.
	ahead = 5 * time.Second
	// maxPause bounds the growing pauses after failures.
	maxPause = time.Minute
	// maxSources bounds the goroutines that a configuration can start.
	maxSources = 1000
)

// Config is what a Store needs.
type Config struct {
	// Via gives the way to a cluster.
	Via   func(cluster string) http.RoundTripper
	Group *run.Group
	Log   *obs.Logger
}

// Store holds the keys of every source in use.
type Store struct {
	cfg Config

	mu      sync.Mutex
	sources map[jwt.Source]*source
}

// source is one place that is asked again and again.
type source struct {
	jwt.Source
	keys atomic.Pointer[jwt.Keys]
	stop context.CancelFunc
	kick chan struct{} // asks for an early fetch

	mu    sync.Mutex
	done  chan struct{} // closed when the fetch that runs, or comes next, is over
	busy  bool          // a fetch runs
	last  time.Time     // when the last fetch ended
	early bool          // the next fetch was asked for
	gone  bool          // no fetch will come any more
}

// New makes a store that fetches nothing yet.
func New(cfg Config) *Store {
	return &Store{cfg: cfg, sources: map[jwt.Source]*source{}}
}

// Need says which sources are in use: others are forgotten, new ones are fetched.
func (s *Store) Need(all []jwt.Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := map[jwt.Source]bool{}
	for _, src := range all {
		if used[src] {
			continue
		}
		if used[src] = true; s.sources[src] == nil {
			s.start(src)
		}
	}
	for src, one := range s.sources {
		if !used[src] {
			one.stop()
			delete(s.sources, src)
		}
	}
}

// start begins to fetch; the caller holds mu.
func (s *Store) start(src jwt.Source) {
	if len(s.sources) >= maxSources {
		s.cfg.Log.Error("too many key sources; tokens of this one are refused", obs.F("uri", src.URI), obs.F("limit", maxSources))
		return
	}
	one := &source{Source: src, kick: make(chan struct{}, 1), done: make(chan struct{}), busy: true}
	var ctx context.Context
	ctx, one.stop = context.WithCancel(s.cfg.Group.Context())
	if s.cfg.Group.Go("keys of "+src.URI, func(context.Context) error { s.follow(ctx, one); return nil }) {
		s.sources[src] = one
	} else {
		one.stop()
	}
}

func (s *Store) source(src jwt.Source) *source {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sources[src]
}

// Keys gives what was fetched last; nil while nothing was.
func (s *Store) Keys(src jwt.Source) *jwt.Keys {
	if one := s.source(src); one != nil {
		return one.keys.Load()
	}
	return nil
}

// Refresh waits for keys other than seen; false means that there are none and that nobody should wait.
func (s *Store) Refresh(ctx context.Context, src jwt.Source, seen *jwt.Keys) bool {
	one := s.source(src)
	if one == nil {
		return false
	}
	if one.keys.Load() != seen {
		return true
	}
	done := one.ask()
	if done == nil {
		return false
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return one.keys.Load() != seen
}

// ask gives a channel that is closed at the end of the fetch to wait for; nil when it is too early for another one.
func (o *source) ask() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gone {
		return nil
	}
	if o.busy || o.early {
		return o.done
	}
	pause := minEarly
	if o.keys.Load() == nil {
		pause = min(o.Retry, minEarly) // there is nothing to lose
	}
	if time.Since(o.last) < pause {
		return nil
	}
	o.early = true
	select {
	case o.kick <- struct{}{}:
	default:
	}
	return o.done
}

func (o *source) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy, o.early = true, false
	select {
	case <-o.kick: // answered by the fetch that begins
	default:
	}
}

func (o *source) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy, o.last = false, time.Now()
	close(o.done)
	o.done = make(chan struct{})
}

// leave lets go of those who wait.
func (o *source) leave() {
	o.stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gone = true
	close(o.done)
}

// follow fetches until ctx ends.
func (s *Store) follow(ctx context.Context, o *source) {
	defer o.leave()
	log := s.cfg.Log.With(obs.F("uri", o.URI))
	pause := o.Retry
	for {
		o.begin()
		keys, err := s.fetch(ctx, o.Source)
		wait := pause
		if err == nil {
			if last := o.keys.Swap(keys); last == nil {
				log.Info("keys fetched", obs.F("keys", keys.Len()), obs.F("unusable", keys.Skipped))
			}
			pause, wait = o.Retry, max(o.Cache-ahead, time.Second)
		} else {
			if ctx.Err() == nil {
				log.Warn("keys not fetched; the last good ones stay", obs.F("again", wait.String()), obs.Err(err))
			}
			pause = min(2*pause, max(maxPause, o.Retry))
		}
		o.end()
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-o.kick:
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// fetch asks once.
func (s *Store) fetch(ctx context.Context, src jwt.Source) (*jwt.Keys, error) {
	ctx, cancel := context.WithTimeout(ctx, src.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, src.URI, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	// No client but the way itself: a client would follow redirects, to wherever the answer says.
	resp, err := s.cfg.Via(src.Cluster).RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answer %s; want 200 OK", resp.Status)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxDocument {
		return nil, fmt.Errorf("answer is longer than %d bytes", maxDocument)
	}
	keys, err := jwt.ParseKeys(raw, true)
	if err != nil {
		return nil, err
	}
	if keys.Len() == 0 {
		return nil, errors.New("JWKS has no usable key")
	}
	return keys, nil
}
