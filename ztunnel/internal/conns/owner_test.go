package conns_test

import (
	"testing"
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
