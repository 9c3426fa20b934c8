package handoff

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/zds"
)

type list struct{ poked chan struct{} }

func (l list) Snapshot(context.Context) []zds.Entry { return []zds.Entry{{UID: "a", FD: -1}} }
func (l list) Poke() {
	select {
	case l.poked <- struct{}{}:
	default:
	}
}

type proxy struct {
	mu     sync.Mutex
	events []string
	listed chan struct{}
}

func (p *proxy) note(s string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, s)
	return nil
}
func (p *proxy) Session(bool) {}
func (p *proxy) Add(_ context.Context, uid string, _ zds.Info, _ int) error {
	return p.note("add " + uid)
}
func (p *proxy) Keep(_ context.Context, uid string) error { return p.note("keep " + uid) }
func (p *proxy) Del(_ context.Context, uid string) error  { return p.note("del " + uid) }
func (p *proxy) Snapshot(context.Context) error {
	defer close(p.listed)
	return p.note("snapshot")
}

func TestProxyConnects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "z")
	peers := make(chan int, 10)
	s := New(obs.Discard(), func(n int) { peers <- n })
	l := list{poked: make(chan struct{}, 1)}
	s.Bind(l)
	if err := s.Listen(path); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served, ran := make(chan error, 1), make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	p := &proxy{listed: make(chan struct{})}
	go func() { ran <- zds.NewClient(obs.Discard()).Run(ctx, path, p) }()
	<-p.listed
	<-l.poked
	if n := <-peers; n != 1 {
		t.Errorf("%d peers", n)
	}
	if err := s.Del(ctx, "b"); err != nil {
		t.Error(err)
	}
	p.mu.Lock()
	if want := []string{"keep a", "snapshot", "del b"}; !slices.Equal(p.events, want) {
		t.Errorf("proxy heard %v, want %v", p.events, want)
	}
	p.mu.Unlock()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := <-ran; err != nil {
		t.Error(err)
	}
}
