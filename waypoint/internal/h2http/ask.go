package h2http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/marrowmesh/marrow/internal/h2"
)

// asked is one request on a connection.
type asked struct {
	p       *Pool
	cc      *clientConn
	req     *http.Request
	st      *h2.Stream
	stop    func() bool   // of the request's context
	go100   chan struct{} // the body may go; nil = it need not wait
	touched bool          // somebody reads the body, and closes it
	failed  atomic.Pointer[error]
	over    atomic.Bool
	// unwanted is a body whose answer came while it waited for 100.
	unwanted atomic.Bool
}

// do returns the final answer's header, or why there is none.
func (x *asked) do(used bool) (*http.Response, error) {
	ctx := x.req.Context()
	t := httptrace.ContextClientTrace(ctx)
	if t != nil && t.GotConn != nil {
		t.GotConn(httptrace.GotConnInfo{Conn: x.cc.NetConn(), Reused: used})
	}
	size := sizeOf(x.req)
	var few [32]h2.Field
	var err error
	if x.st, err = x.cc.Open(ctx, requestFields(few[:0], x.req, size), size == 0); err != nil {
		return nil, err
	}
	x.stop = context.AfterFunc(ctx, func() { _ = x.st.Close() })
	if size != 0 {
		if httpguts.HeaderValuesContainsToken(x.req.Header["Expect"], "100-continue") && x.p.ContinueTimeout > 0 {
			x.go100 = make(chan struct{})
		}
		x.touched = true
		go x.send(size, x.go100)
	}
	resp, err := x.answer(t)
	if err != nil {
		x.end()
		return nil, x.why(err)
	}
	return resp, nil
}

// end gives the stream up if it is not over yet; it may be called again.
func (x *asked) end() {
	if x.over.Swap(true) {
		return
	}
	x.stop()
	_ = x.st.Close()
	x.cc.idle.note()
}

// why is what the caller is told: its own reason first, then the body's.
func (x *asked) why(err error) error {
	if ctx := x.req.Context(); ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e := x.failed.Load(); e != nil {
		return *e
	}
	if r, ok := errors.AsType[*h2.ResetError](err); ok && !r.Remote && r.Code == h2.ProtocolError {
		return fmt.Errorf("malformed HTTP response: %w", err)
	}
	return err
}

// sizeOf is the length of the body as net/http's clients have it: 0 = there is
// none, -1 = nobody knows.
func sizeOf(r *http.Request) int64 {
	switch {
	case r.Body == nil || r.Body == http.NoBody:
		return 0
	case r.ContentLength != 0:
		return r.ContentLength
	}
	return -1
}

// requestFields are the header of a request.
func requestFields(to []h2.Field, r *http.Request, size int64) []h2.Field {
	method, host := r.Method, r.Host
	if method == "" {
		method = http.MethodGet
	}
	if host == "" {
		host = r.URL.Host
	}
	to = append(to, h2.Field{Name: ":method", Value: method}, h2.Field{Name: ":authority", Value: host})
	if method != http.MethodConnect {
		to = append(to, h2.Field{Name: ":scheme", Value: r.URL.Scheme}, h2.Field{Name: ":path", Value: r.URL.RequestURI()})
	}
	for name, values := range r.Header {
		switch {
		case ownOfHTTP1(name), name == "Host", name == "Content-Length", name == "Trailer":
		case name == "Te":
			if httpguts.HeaderValuesContainsToken(values, "trailers") {
				to = append(to, h2.Field{Name: "te", Value: "trailers"})
			}
		case name == "User-Agent" && len(values) > 0 && values[0] == "": // by net/http's custom there is none then
		default:
			to = appendField(to, name, values)
		}
	}
	for name := range r.Trailer {
		to = append(to, h2.Field{Name: "trailer", Value: lower(name)})
	}
	switch {
	case size > 0:
		to = append(to, h2.Field{Name: "content-length", Value: strconv.FormatInt(size, 10)})
	case size == 0 && (method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch):
		to = append(to, h2.Field{Name: "content-length", Value: "0"})
	}
	return to
}

// answer waits for the final answer.
func (x *asked) answer(t *httptrace.ClientTrace) (*http.Response, error) {
	for {
		fields, err := x.st.Response(context.Background()) // the end of the request's context ends the stream
		if err != nil {
			return nil, err
		}
		status, _ := strconv.Atoi(fields[0].Value) // internal/h2 has looked
		if err := judgeAnswer(fields[1:]); err != nil {
			return nil, err
		}
		header := headerOf(fields[1:])
		if status >= http.StatusOK {
			if x.go100 != nil {
				x.unwanted.Store(true)
				close(x.go100)
			}
			return x.response(status, header)
		}
		if status == http.StatusContinue && x.go100 != nil {
			close(x.go100)
			x.go100 = nil
		}
		if t != nil && t.Got1xxResponse != nil {
			if err := t.Got1xxResponse(status, textproto.MIMEHeader(header)); err != nil {
				return nil, err
			}
		}
	}
}

// judgeAnswer refuses what would have a second meaning on an HTTP/1 connection.
func judgeAnswer(fields []h2.Field) error {
	length := ""
	for _, f := range fields {
		switch {
		case ownOfHTTP1(canonical(f.Name)):
			return fmt.Errorf("malformed HTTP response: header %s", f.Name)
		case f.Name != "content-length":
		case length != "" && f.Value != length:
			return errors.New("malformed HTTP response: two content-lengths")
		default:
			length = f.Value
		}
	}
	return nil
}

func (x *asked) response(status int, header http.Header) (*http.Response, error) {
	size, err := declared(header)
	if err != nil {
		return nil, err
	}
	resp := &http.Response{
		Status: strconv.Itoa(status) + " " + http.StatusText(status), StatusCode: status, Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: header, ContentLength: size, Request: x.req, Trailer: announced(header), Body: http.NoBody,
	}
	left := size
	if x.req.Method == http.MethodHead || !bodyAllowed(status) {
		left = 0
	}
	whole := !x.st.HasContent() && left <= 0
	if whole && size < 0 && x.req.Method != http.MethodHead {
		resp.ContentLength = 0
	}
	if whole {
		resp.Trailer = nil
		x.end()
	} else {
		resp.Body = &answerBody{x: x, resp: resp, left: left}
	}
	return resp, nil
}

// declared is the content-length, -1 without one.
func declared(header http.Header) (int64, error) {
	v := header["Content-Length"]
	if v == nil {
		return -1, nil
	}
	const bits = 63
	n, err := strconv.ParseUint(v[0], 10, bits)
	if err != nil {
		return 0, fmt.Errorf("malformed HTTP response: content-length %q", v[0])
	}
	return int64(n), nil
}

// answerBody is the body of an answer.
type answerBody struct {
	x    *asked
	resp *http.Response
	left int64 // that is still to come; -1 = nobody knows
	err  error
}

// Read implements io.Reader. An end that is none is io.ErrUnexpectedEOF.
func (b *answerBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.x.st.Read(p)
	if b.left >= 0 {
		if int64(n) > b.left {
			n, err = int(b.left), errors.New("malformed HTTP response: more content than content-length says")
		}
		b.left -= int64(n)
	}
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		err = b.x.why(err)
	case !b.x.st.Ended() || b.left > 0:
		err = b.x.why(io.ErrUnexpectedEOF)
	default:
		for _, f := range b.x.st.Trailers() {
			if b.resp.Trailer == nil {
				b.resp.Trailer = http.Header{}
			}
			name := canonical(f.Name)
			b.resp.Trailer[name] = append(b.resp.Trailer[name], f.Value)
		}
	}
	b.err = err
	b.x.end()
	return n, err
}

// Close implements io.Closer: what was not read is given up.
func (b *answerBody) Close() error {
	b.x.end()
	return nil
}

// send sends the body; it runs beside whoever waits for the answer.
func (x *asked) send(size int64, go100 chan struct{}) {
	defer closeBody(x.req)
	if go100 != nil && !x.mayGo(go100) {
		return
	}
	buf, _ := buffers.Get().(*[gathered]byte)
	defer buffers.Put(buf)
	for sent := int64(0); ; {
		n, err := x.req.Body.Read(buf[:])
		sent += int64(n)
		if sent == size && err == nil { // the end goes with the last byte
			var more [1]byte
			n, over := io.ReadFull(x.req.Body, more[:])
			sent += int64(n)
			err = over
		}
		end := errors.Is(err, io.EOF)
		switch {
		case size >= 0 && (sent > size || end && sent < size):
			err = fmt.Errorf("the request's body has %d bytes or more, its length is %d", sent, size)
		case end:
			_ = x.st.Finish(buf[:n], trailersOf(x.req)) // whoever waits for the answer is told
			return
		case err == nil:
			if _, err := x.st.Write(buf[:n]); err != nil {
				return // as above
			}
			continue
		}
		x.failed.Store(&err)
		_ = x.st.Close()
		return
	}
}

// mayGo waits for 100, for a while.
func (x *asked) mayGo(go100 chan struct{}) bool {
	late := time.NewTimer(x.p.ContinueTimeout)
	defer late.Stop()
	select {
	case <-go100:
	case <-late.C:
	case <-x.req.Context().Done():
		return false
	}
	return !x.unwanted.Load() && !x.over.Load()
}

func trailersOf(r *http.Request) (to []h2.Field) {
	for name, values := range r.Trailer {
		if httpguts.ValidTrailerHeader(name) && !ownOfHTTP1(name) {
			to = appendField(to, name, values)
		}
	}
	return to
}
