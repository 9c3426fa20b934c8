package phases

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// clientBody is the request's body as the client sends it. It counts, and tells once when the request is whole.
type clientBody struct {
	io.ReadCloser
	total  *atomic.Int64
	calls  *messages // of a gRPC call; nil = it is none
	failed atomic.Bool
	once   sync.Once
	whole  func() // nil = nobody wants to know
	keep   *kept  // what passed, for copies; nil = nobody wants it
}

// kept is a body as it passed, as long as it is short.
type kept struct {
	limit int
	b     []byte
	over  bool // it was longer: there is nothing to copy
}

func (k *kept) see(p []byte) {
	if k.over = k.over || len(k.b)+len(p) > k.limit; k.over {
		k.b = nil
		return
	}
	k.b = append(k.b, p...)
}

func (b *clientBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.total.Add(int64(n))
	if b.calls != nil {
		b.calls.see(p[:n])
	}
	if b.keep != nil {
		b.keep.see(p[:n])
	}
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		b.finish()
	default:
		b.failed.Store(true)
	}
	return n, err
}

func (b *clientBody) finish() {
	if b.whole != nil {
		b.once.Do(b.whole)
	}
}

// errDetached is what an attempt that was given up reads.
var errDetached = errors.New("attempt was given up")

// replay lets several attempts, one after the other, read one body. It remembers what was read up to a limit; beyond that no further
// attempt can begin. An attempt that was given up may still be inside Read: what it gets then is remembered for the next one.
type replay struct {
	src   io.Reader
	limit int

	mu       sync.Mutex
	moved    sync.Cond // buf, err or reading changed
	buf      []byte
	lost     bool  // buf does not hold everything any more
	err      error // how the source ended
	reading  bool
	current  *attemptBody
	released bool // no further attempt will begin: nothing has to be remembered
}

func newReplay(src io.Reader, limit int) *replay {
	r := &replay{src: src, limit: limit}
	r.moved.L = &r.mu
	return r
}

// attemptBody is the body as one attempt sees it.
type attemptBody struct {
	r   *replay
	off int
}

// next gives the body to a new attempt and takes it from the one before; nil when it cannot be read again.
func (r *replay) next() *attemptBody {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost || r.released {
		return nil
	}
	r.current = &attemptBody{r: r}
	r.moved.Broadcast()
	return r.current
}

// again reports whether next would succeed.
func (r *replay) again() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.lost && !r.released
}

// release says that the present attempt is the last.
func (r *replay) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.released = true
}

func (b *attemptBody) Read(p []byte) (int, error) {
	r := b.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		switch {
		case r.current != b:
			return 0, errDetached
		case b.off < len(r.buf):
			n := copy(p, r.buf[b.off:])
			b.off += n
			if r.released && b.off == len(r.buf) {
				r.buf, b.off, r.lost = nil, 0, true
			}
			return n, nil
		case r.err != nil:
			return 0, r.err
		case !r.reading:
			r.fill(len(p))
			continue
		}
		r.moved.Wait() // an attempt that was given up is still reading for us
	}
}

// fill reads once from the source into buf, with the lock released meanwhile; the caller holds mu.
func (r *replay) fill(size int) {
	r.reading = true
	r.mu.Unlock()
	p := make([]byte, min(max(size, 512), 32<<10))
	n, err := r.src.Read(p)
	r.mu.Lock()
	r.reading = false
	if r.released || r.lost || len(r.buf)+n > r.limit {
		// Only the current attempt can have this; it has read everything before it.
		if r.current == nil || r.current.off == len(r.buf) {
			r.buf = r.buf[:0]
			if r.current != nil {
				r.current.off = 0
			}
			r.lost = true
		}
	}
	r.buf = append(r.buf, p[:n]...)
	if err != nil {
		r.err = err
	}
	r.moved.Broadcast()
}

// Close ends nothing: the server closes the client's body, and another attempt may need it.
func (b *attemptBody) Close() error { return nil }
