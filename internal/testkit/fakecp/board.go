package fakecp

import (
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/internal/xds"
)

// board holds resources and tells every subscriber every change.
type board struct {
	mu      sync.Mutex
	version int
	now     map[string]map[string]xds.Resource
	subs    map[*subscription]struct{}
}

func newBoard() *board {
	return &board{now: map[string]map[string]xds.Resource{}, subs: map[*subscription]struct{}{}}
}

func (b *board) set(url, name string, m proto.Message) error {
	var body *anypb.Any
	if m != nil {
		var err error
		if body, err = anypb.New(m); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now[url] == nil {
		b.now[url] = map[string]xds.Resource{}
	}
	if body == nil {
		delete(b.now[url], name)
	} else {
		b.version++
		b.now[url][name] = xds.Resource{Name: name, Version: strconv.Itoa(b.version), Body: body}
	}
	for s := range b.subs {
		s.news[url] = append(s.news[url], name)
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
	return nil
}

func (b *board) subscribe() *subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &subscription{b: b, changed: make(chan struct{}, 1), news: map[string][]string{}}
	b.subs[s] = struct{}{}
	return s
}

type subscription struct {
	b       *board
	changed chan struct{}
	news    map[string][]string
}

func (s *subscription) Changed() <-chan struct{} { return s.changed }

func (s *subscription) Take() map[string][]string {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	out := s.news
	s.news = map[string][]string{}
	return out
}

func (s *subscription) Get(url, name string) (xds.Resource, bool) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	r, ok := s.b.now[url][name]
	return r, ok
}

func (s *subscription) List(url string) []xds.Resource {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	out := make([]xds.Resource, 0, len(s.b.now[url]))
	for _, r := range s.b.now[url] {
		out = append(out, r)
	}
	return out
}

func (s *subscription) Close() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	delete(s.b.subs, s)
}
