package phases

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// copySize is how much of an answer's body is passed on at once.
const copySize = 32 << 10

// copies are buffers of that size: one made for each answer was three quarters of all memory that a request took.
//
//nolint:gochecknoglobals // holds no state
var copies = sync.Pool{New: func() any { return new([copySize]byte) }}

// copyBody passes the body on as it comes: what was read is written and, unless the length is known and reached, flushed.
func (w *forwarding) copyBody(a *attempt) error {
	resp := a.resp
	if resp.Body == http.NoBody || w.r.Method == http.MethodHead {
		return nil
	}
	rc := http.NewResponseController(w.w)
	if resp.ContentLength < 0 {
		_ = rc.Flush() // headers first; a failed write is seen by the next one
	}
	kept, _ := copies.Get().(*[copySize]byte)
	defer copies.Put(kept)
	buf := kept[:]
	left := resp.ContentLength
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, werr := w.w.Write(buf[:n]); werr != nil {
				return &failure{flag: "DC", detail: "downstream_remote_disconnect", err: werr}
			}
			w.facts.sentBytes += int64(n)
			if w.q.GRPC {
				w.facts.told.see(buf[:n])
			}
			left -= int64(n)
			if resp.ContentLength < 0 || left > 0 {
				_ = rc.Flush()
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		default:
			return w.failed(err, a.ctx)
		}
	}
}
