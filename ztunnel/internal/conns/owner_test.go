package conns_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
	"github.com/marrowmesh/marrow/ztunnel/internal/view"
)

// slowNews is a context that ends, and has told nobody yet.
type slowNews struct{ err error }

func (*slowNews) Deadline() (time.Time, bool)  { return time.Time{}, false }
func (*slowNews) Value(any) any                { return nil }
func (c *slowNews) Err() error                 { return c.err }
func (*slowNews) Done() <-chan struct{}        { return make(chan struct{}) }
func (*slowNews) AfterFunc(func()) func() bool { return func() bool { return true } }

// TestCutIsKnownAtOnce: whoever asks why a connection ended hears of the drain even before the connection's own life has.
func TestCutIsKnownAtOnce(t *testing.T) {
	log := obs.Discard()
	table := conns.NewTable(view.New(log), log, false)
	owner := &slowNews{}
	l := table.Register(owner, conns.Entry{})
	defer l.Close()
	if err := l.Cut(); err != nil {
		t.Errorf("cut by %v", err)
	}
	owner.err = run.ErrDrained
	if err := l.Cut(); err != run.ErrDrained { //nolint:errorlint // it is this very one
		t.Errorf("cut by %v, want %v", err, run.ErrDrained)
	}
}

// TestOwnersEnd: all connections of a context end with it, those of others do not, and one that was closed before is left
// alone; nothing is kept of an owner without connections.
func TestOwnersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := obs.Discard()
		table := conns.NewTable(view.New(log), log, false)
		why := errors.New("why")
		ours, end := context.WithCancelCause(t.Context())
		other, endOther := context.WithCancel(t.Context())
		defer endOther()
		var all []*conns.Live
		for range 5 {
			all = append(all, table.Register(ours, conns.Entry{}))
		}
		stranger := table.Register(other, conns.Entry{})
		for _, i := range []int{0, 4, 2, 2} { // the first, the last, one in between, again
			all[i].Close()
		}
		end(why)
		synctest.Wait()
		for i, l := range all {
			want := why
			if i%2 == 0 {
				want = context.Canceled
			}
			if got := context.Cause(l.Context()); !errors.Is(got, want) {
				t.Errorf("connection %d ended by %v, want %v", i, got, want)
			}
			l.Close()
		}
		if err := stranger.Context().Err(); err != nil {
			t.Errorf("another owner's connection ended by %v", err)
		}
		late := table.Register(ours, conns.Entry{})
		synctest.Wait()
		if got := context.Cause(late.Context()); !errors.Is(got, why) {
			t.Errorf("one that came late ended by %v", got)
		}
		late.Close()
		stranger.Close()
		if n := table.Owners(); n != 0 {
			t.Errorf("%d owners are kept", n)
		}
	})
}
