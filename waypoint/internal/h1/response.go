package h1

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	// heldBody is how much of a body of unknown length waits for its end, which
	// would tell the length.
	heldBody = 2 << 10
	// gathered is how much is written at once; what is larger is not copied.
	gathered = 16 << 10
)

// response is the http.ResponseWriter of a request. Head and body are gathered
// and leave together when the handler returns, flushes, or has much.
type response struct {
	sc     *serverConn
	req    *http.Request
	body   *requestBody // of the request; nil = none
	header http.Header

	mu      sync.Mutex // of the connection's output while the request's body may say 100
	status  int        // 0 = WriteHeader was not called
	told    bool       // the head is in the output
	length  int64      // declared; -1 = not
	sent    int64      // of the body
	held    []byte     // of the body, while the head waits
	chunked bool
	bare    bool // no body is written, whatever the handler writes
	close   bool // the connection ends with this answer
	err     error
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header { return w.header }

// EnableFullDuplex is for http.ResponseController: it is always so.
func (w *response) EnableFullDuplex() error { return nil }

// SetReadDeadline is for http.ResponseController.
func (w *response) SetReadDeadline(t time.Time) error { return w.sc.c.SetReadDeadline(t) }

// SetWriteDeadline is for http.ResponseController.
func (w *response) SetWriteDeadline(t time.Time) error { return w.sc.c.SetWriteDeadline(t) }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(status)
}

func (w *response) writeHeader(status int) {
	switch {
	case w.sc.hijacked || w.status != 0:
		return
	case status < 100 || status > 999:
		panic(fmt.Sprintf("status %d has not three digits", status))
	case status < 200 && status != http.StatusSwitchingProtocols:
		w.informal(status)
		return
	}
	w.status = status
	w.bare = !bodyAllowed(status) || w.req.Method == http.MethodHead
	if v := w.header.Get("Content-Length"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			delete(w.header, "Content-Length")
		} else {
			w.length = n
		}
	}
}

// informal writes a 1xx answer at once.
func (w *response) informal(status int) {
	if w.req.ProtoMinor == 0 {
		return // such clients do not know them
	}
	if status == http.StatusContinue && w.body != nil {
		w.body.continues.Store(false)
	}
	w.sc.out = append(append(append(w.sc.out, "HTTP/1.1 "...), statusLine(status)...), "\r\n"...)
	for name, values := range w.header {
		if name != "Content-Length" && name != "Transfer-Encoding" {
			w.sc.out = appendField(w.sc.out, name, values)
		}
	}
	w.sc.out = append(w.sc.out, "\r\n"...)
	w.flush()
}

// tellContinue asks the client for its body.
func (w *response) tellContinue() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 {
		w.sc.out = append(w.sc.out, "HTTP/1.1 100 Continue\r\n\r\n"...)
		w.flush()
	}
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sc.hijacked {
		return 0, http.ErrHijacked
	}
	if w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	switch {
	case w.err != nil:
		return 0, w.err
	case len(p) == 0:
		return 0, nil
	case w.bare && w.req.Method == http.MethodHead:
		return len(p), nil
	case w.bare:
		return 0, http.ErrBodyNotAllowed
	}
	if w.length >= 0 && w.sent+int64(len(p)) > w.length {
		return 0, http.ErrContentLength
	}
	w.sent += int64(len(p))
	if !w.told && w.length < 0 && len(w.held)+len(p) <= heldBody {
		w.held = append(w.held, p...)
		return len(p), nil
	}
	w.tell(false)
	w.put(p)
	return len(p), w.err
}

// put adds a piece of the body to the output, or writes it.
func (w *response) put(p []byte) {
	if len(p) == 0 {
		return
	}
	sc := w.sc
	if w.chunked {
		sc.out = append(strconv.AppendInt(sc.out, int64(len(p)), 16), "\r\n"...)
	}
	if len(sc.out)+len(p) <= gathered {
		sc.out = append(sc.out, p...)
	} else {
		w.flush()
		if w.err == nil {
			_, w.err = sc.c.Write(p)
		}
	}
	if w.chunked {
		sc.out = append(sc.out, "\r\n"...)
	}
}

func (w *response) flush() {
	if len(w.sc.out) == 0 {
		return
	}
	if w.err == nil {
		_, w.err = w.sc.c.Write(w.sc.out)
	}
	if w.sc.out = w.sc.out[:0]; cap(w.sc.out) > 2*gathered {
		w.sc.out = nil
	}
}

// tell puts the head into the output; done says that what is held is the whole
// body.
func (w *response) tell(done bool) {
	if w.told {
		return
	}
	w.told = true
	old := w.req.ProtoMinor == 0
	trailers := w.trailers()
	if w.length < 0 && done && !w.bare && len(trailers) == 0 {
		w.length = int64(len(w.held))
		w.header.Set("Content-Length", strconv.FormatInt(w.length, 10))
	}
	if httpguts.HeaderValuesContainsToken(w.header["Connection"], "close") {
		w.close = true
	}
	delete(w.header, "Transfer-Encoding")
	if !bodyAllowed(w.status) && w.status != http.StatusNotModified {
		delete(w.header, "Content-Length")
	}
	if w.length < 0 && !w.bare {
		if old {
			w.close = true
		} else {
			w.chunked = true
		}
	}
	out := append(append(append(w.sc.out, "HTTP/1.1 "...), statusLine(w.status)...), "\r\n"...)
	if old {
		out[len(w.sc.out)+len("HTTP/1.")] = '0'
	}
	for name, values := range w.header {
		if name != "Connection" && !strings.HasPrefix(name, http.TrailerPrefix) && !slices.Contains(trailers, name) {
			out = appendField(out, name, values)
		}
	}
	if _, ok := w.header["Date"]; !ok {
		out = append(now().AppendFormat(append(out, "Date: "...), http.TimeFormat), "\r\n"...)
	}
	switch {
	case w.close && !old:
		out = append(out, "Connection: close\r\n"...)
	case w.status == http.StatusSwitchingProtocols:
		out = appendField(out, "Connection", w.header["Connection"])
	case old && !w.close:
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	if w.chunked {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	w.sc.out = append(out, "\r\n"...)
	held := w.held
	w.held = nil
	w.put(held)
}

func now() time.Time { return time.Now().UTC() }

// trailers are the names that the head announces.
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

// finish ends the answer when the handler has returned.
func (w *response) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	w.tell(true)
	switch {
	case w.chunked:
		w.sc.out = append(w.sc.out, "0\r\n"...)
		for _, name := range w.trailers() {
			w.sc.out = appendField(w.sc.out, name, w.header[name])
		}
		for name, values := range w.header {
			if late, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
				w.sc.out = appendField(w.sc.out, late, values)
			}
		}
		w.sc.out = append(w.sc.out, "\r\n"...)
	case !w.bare && w.length >= 0 && w.sent < w.length:
		w.close = true // the client must not take the next answer for the rest of this one
	}
	w.flush()
}

// Flush implements http.Flusher.
func (w *response) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *response) FlushError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sc.hijacked {
		return http.ErrHijacked
	}
	if w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	w.tell(false)
	w.flush()
	return w.err
}

var errAnswered = errors.New("the connection cannot be taken over: an answer has begun")

// Hijack implements http.Hijacker.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.sc.hijacked:
		return nil, nil, http.ErrHijacked
	case w.status != 0:
		return nil, nil, errAnswered
	}
	w.sc.mu.Lock()
	w.sc.waits, w.sc.cancel = false, nil // the end of a direction is the new owner's to see
	w.sc.mu.Unlock()
	w.sc.hijacked = true
	return w.sc.c, bufio.NewReadWriter(w.sc.br, bufio.NewWriter(w.sc.c)), nil
}
