package relay

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
)

// end is one end of a relay whose reads and writes are decided by the test.
type end struct {
	in      io.Reader // nil blocks until Close
	out     bytes.Buffer
	broken  error // what writes give
	aborted bool

	once   sync.Once
	closed chan struct{}
}

func newEnd(in io.Reader) *end { return &end{in: in, closed: make(chan struct{})} }

func (e *end) Read(p []byte) (int, error) {
	if e.in != nil {
		return e.in.Read(p)
	}
	<-e.closed
	return 0, io.ErrClosedPipe
}

func (e *end) Write(p []byte) (int, error) {
	if e.broken != nil {
		return 0, e.broken
	}
	return e.out.Write(p)
}

func (e *end) CloseWrite() error { return nil }

func (e *end) Close() error {
	e.once.Do(func() { close(e.closed) })
	return nil
}

func (e *end) Aborted() bool { return e.aborted }

func (e *end) isClosed() bool {
	select {
	case <-e.closed:
		return true
	default:
		return false
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestEndsAreClosed: however a relay ends, both ends are closed when it returns, and an end that breaks
// does not leave the other direction waiting for ever.
func TestEndsAreClosed(t *testing.T) {
	bad := errors.New("bad record")
	for _, tc := range []struct {
		name     string
		down, up *end
		want     error
		sent     string
	}{
		{"both end in order", newEnd(bytes.NewReader([]byte("q"))), newEnd(bytes.NewReader(nil)), nil, "q"},
		{"a read fails", newEnd(failing{bad}), newEnd(nil), bad, ""},
		{"a write fails", newEnd(bytes.NewReader([]byte("q"))), &end{broken: bad, closed: make(chan struct{})}, bad, ""},
		{"a stream is reset", &end{in: bytes.NewReader(nil), aborted: true, closed: make(chan struct{})}, newEnd(nil), nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := Both(t.Context(), tc.down, tc.up, nil)
			if !errors.Is(r.Err, tc.want) || r.Sent != int64(len(tc.sent)) || tc.up.out.String() != tc.sent {
				t.Errorf("%+v after %q, want %v after %q", r, tc.up.out.String(), tc.want, tc.sent)
			}
			if !tc.down.isClosed() || !tc.up.isClosed() {
				t.Errorf("closed: down %v, up %v", tc.down.isClosed(), tc.up.isClosed())
			}
		})
	}
}
