package h2http

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/marrowmesh/marrow/internal/h2"
)

// gathered is how much of a body waits for its end, or for Flush. A whole answer
// of so much leaves in one write.
const gathered = 16 << 10

// buffers are of gathered bytes each.
//
//nolint:gochecknoglobals // holds no state
var buffers = sync.Pool{New: func() any { return new([gathered]byte) }}

// response is the http.ResponseWriter of a request. It is its handler's goroutine's.
type response struct {
	st     *h2.Stream
	head   bool // to a HEAD request
	header http.Header

	status int   // 0 = WriteHeader was not called
	bare   bool  // no body is written, whatever the handler writes
	told   bool  // the header was sent
	drain  bool  // the connection ends with this answer
	length int64 // declared; -1 = not
	sent   int64 // of the body
	buf    *[gathered]byte
	held   int // bytes in buf
	err    error
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header { return w.header }

// EnableFullDuplex is for http.ResponseController: it is always so.
func (w *response) EnableFullDuplex() error { return nil }

// SetReadDeadline is for http.ResponseController.
func (w *response) SetReadDeadline(t time.Time) error { return w.st.SetReadDeadline(t) }

// SetWriteDeadline is for http.ResponseController.
func (w *response) SetWriteDeadline(t time.Time) error { return w.st.SetWriteDeadline(t) }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	switch {
	case w.status != 0:
		return
	case status < 100 || status > 999 || status == http.StatusSwitchingProtocols:
		panic(fmt.Sprintf("status %d: HTTP/2 has none such", status))
	case status < 200:
		var few [16]h2.Field
		_ = w.st.Inform(w.fields(few[:0], status, nil))
		return
	}
	w.status = status
	w.bare = w.head || !bodyAllowed(status)
	if v := w.header.Get("Content-Length"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 || !bodyAllowed(status) && status != http.StatusNotModified {
			delete(w.header, "Content-Length")
		} else {
			w.length = n
		}
	}
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case w.err != nil:
		return 0, w.err
	case len(p) == 0:
		return 0, nil
	case w.head && bodyAllowed(w.status):
		return len(p), nil
	case w.bare:
		return 0, http.ErrBodyNotAllowed
	case w.length >= 0 && w.sent+int64(len(p)) > w.length:
		return 0, http.ErrContentLength
	}
	w.sent += int64(len(p))
	if w.held+len(p) <= gathered {
		if w.buf == nil {
			w.buf, _ = buffers.Get().(*[gathered]byte)
		}
		w.held += copy(w.buf[w.held:], p)
		return len(p), nil
	}
	if w.held > 0 {
		w.push(w.take())
	}
	w.push(p)
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// take is what waits; it is valid until the next Write.
func (w *response) take() []byte {
	if w.held == 0 {
		return nil
	}
	n := w.held
	w.held = 0
	return w.buf[:n]
}

// push sends p, behind the header if that was not sent.
func (w *response) push(p []byte) {
	switch {
	case w.err != nil:
	case !w.told:
		w.tell(p, false)
	case len(p) > 0:
		_, w.err = w.st.Write(p)
	}
}

// tell sends the header and p.
func (w *response) tell(p []byte, end bool) {
	w.told = true
	var few [32]h2.Field
	w.err = w.st.Answer(w.fields(few[:0], w.status, w.trailers()), p, end)
}

// Flush implements http.Flusher.
func (w *response) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *response) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.push(w.take())
	return w.err
}

// fields are the header's, but for those that are announced as trailers. Those of
// http.TrailerPrefix have no valid name.
func (w *response) fields(to []h2.Field, status int, trailers []string) []h2.Field {
	to = append(to, h2.Field{Name: ":status", Value: statusText(status)})
	for name, values := range w.header {
		switch {
		case ownOfHTTP1(name):
			w.drain = w.drain || name == "Connection" && httpguts.HeaderValuesContainsToken(values, "close")
		case status < 200 && name == "Content-Length", slices.Contains(trailers, name):
		default:
			to = appendField(to, name, values)
		}
	}
	if _, ok := w.header["Date"]; !ok && status >= 200 {
		to = append(to, h2.Field{Name: "date", Value: time.Now().UTC().Format(http.TimeFormat)})
	}
	return to
}

// appendField adds a header. A name that is none is left out, and so is a value
// that cannot be one; what would end a line becomes a space.
func appendField(to []h2.Field, name string, values []string) []h2.Field {
	if !httpguts.ValidHeaderFieldName(name) {
		return to
	}
	name = lower(name)
	for _, v := range values {
		if !httpguts.ValidHeaderFieldValue(v) {
			v = strings.Map(func(r rune) rune {
				if r == '\r' || r == '\n' || r == 0 {
					return ' '
				}
				return r
			}, v)
			if !httpguts.ValidHeaderFieldValue(v) {
				continue
			}
		}
		to = append(to, h2.Field{Name: name, Value: strings.Trim(v, " \t")})
	}
	return to
}

// trailers are the names that the header announces.
func (w *response) trailers() (names []string) {
	for _, v := range w.header["Trailer"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); httpguts.ValidTrailerHeader(name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// late is the trailers themselves.
func (w *response) late(to []h2.Field) []h2.Field {
	for _, name := range w.trailers() {
		to = appendField(to, name, w.header[name])
	}
	for name, values := range w.header {
		if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok && httpguts.ValidTrailerHeader(name) && !ownOfHTTP1(name) {
			to = appendField(to, name, values)
		}
	}
	return to
}

// finish ends the answer when the handler has returned.
func (w *response) finish() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	var few [16]h2.Field
	trailers := few[:0]
	if !w.bare {
		trailers = w.late(trailers)
	}
	p := w.take()
	switch {
	case w.err != nil:
	case !w.bare && w.length >= 0 && w.sent < w.length:
		_ = w.st.CloseCode(h2.InternalError) // the client must not take it for the whole
	case !w.told && len(trailers) == 0:
		if w.length < 0 && !w.bare {
			w.header["Content-Length"] = []string{strconv.Itoa(len(p))}
		}
		w.tell(p, true)
	case !w.told:
		w.tell(p, false)
		p = nil
		fallthrough
	default:
		if w.err == nil {
			w.err = w.st.Finish(p, trailers)
		}
	}
	if w.buf != nil {
		buffers.Put(w.buf)
		w.buf = nil
	}
	// The client need not finish what nobody reads.
	_ = w.st.CloseCode(h2.NoError)
	if w.drain {
		w.st.Conn().Drain()
	}
}
