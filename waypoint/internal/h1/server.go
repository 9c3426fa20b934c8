package h1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Server serves requests on connections. It has no goroutine of its own: a
// request is read, handled and answered where Serve was called.
type Server struct {
	Handler http.Handler
	// HeaderTimeout is how long the head of a request may take, from its first
	// byte on or from the connection's beginning. It bounds what is read of a
	// body that nobody wanted, too.
	HeaderTimeout time.Duration
	MaxHeader     int // bytes of a head
}

const (
	readSize = 4 << 10
	// unwantedBody is how much of a body that the handler left is read, so that
	// the connection can go on.
	unwantedBody = 256 << 10
)

// ender is a connection that tells when its peer has ended its direction, or is
// gone: only then a request is given up whose client has left.
type ender interface{ OnEnd(fn func()) }

// serverConn is one connection.
type serverConn struct {
	srv  *Server
	c    net.Conn
	br   *bufio.Reader
	out  []byte // to be written
	from string // the client's address
	res  response

	mu       sync.Mutex
	ended    bool                    // the peer sends no more
	waits    bool                    // the request is whole, and its handler runs
	cancel   context.CancelCauseFunc // of that request
	hijacked bool
}

// ErrClientGone is the cause of a request's end whose client has left.
var ErrClientGone = errors.New("the client has closed its connection")

// Serve serves c until one of both has had enough. It does not close c; a
// handler that has taken it over may have.
func (s *Server) Serve(ctx context.Context, c net.Conn) {
	sc := &serverConn{srv: s, c: c, from: c.RemoteAddr().String()}
	sc.br = bufio.NewReaderSize(c, readSize)
	if e, ok := c.(ender); ok {
		e.OnEnd(sc.end)
	}
	_ = c.SetReadDeadline(time.Now().Add(s.HeaderTimeout))
	for first := true; ; first = false {
		req, err := sc.read(first)
		if err != nil {
			sc.refuse(err)
			return
		}
		if again := sc.handle(ctx, req); !again {
			return
		}
	}
}

// end is called when the peer has ended its direction.
func (sc *serverConn) end() {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.ended = true
	if sc.waits {
		sc.cancel(ErrClientGone)
	}
}

// whole notes that nothing more is to come of the request: what comes now is
// the next one, or the end.
func (sc *serverConn) whole() {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.waits = sc.cancel != nil && sc.br.Buffered() == 0
	if sc.waits && sc.ended {
		sc.cancel(ErrClientGone)
	}
}

// read waits for a request and reads its head.
func (sc *serverConn) read(first bool) (*http.Request, error) {
	if sc.br.Buffered() == 0 {
		if _, err := sc.br.Peek(1); err != nil {
			return nil, io.EOF // nobody began a request
		}
	}
	seen, _ := sc.br.Peek(sc.br.Buffered()) // all of it is there
	var text string
	if n := bytes.Index(seen, []byte(emptyLine)); n >= 0 && n+len(emptyLine) <= sc.srv.MaxHeader {
		n += len(emptyLine)
		text = string(seen[:n])
		_, _ = sc.br.Discard(n)
	} else {
		if !first {
			_ = sc.c.SetReadDeadline(time.Now().Add(sc.srv.HeaderTimeout))
			first = true
		}
		whole, err := readLines(sc.br, sc.srv.MaxHeader)
		if err != nil {
			return nil, err
		}
		text = whole
	}
	if first {
		_ = sc.c.SetReadDeadline(time.Time{})
	}
	req, err := parseHead(text)
	if err != nil {
		return nil, err
	}
	switch {
	case req.ContentLength > 0:
		req.Body = &measuredBody{sc.br, req.ContentLength}
	case req.ContentLength < 0:
		req.Body = &chunkedBody{src: httputil.NewChunkedReader(sc.br), br: sc.br, req: req}
	default:
		req.Body = http.NoBody
	}
	return req, nil
}

// refuse answers what is no request, and ends the connection.
func (sc *serverConn) refuse(err error) {
	status := http.StatusBadRequest
	var se *statusError
	switch {
	case errors.As(err, &se):
		status = se.status
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
		return
	}
	text := statusLine(status)
	_, _ = io.WriteString(sc.c, "HTTP/1.1 "+text+"\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"+text)
}

// handle runs the handler; again says that another request may follow.
func (sc *serverConn) handle(parent context.Context, req *http.Request) (again bool) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	req = req.WithContext(ctx)
	req.RemoteAddr = sc.from
	w := &sc.res
	*w = response{sc: sc, req: req, header: make(http.Header, 8), length: -1}
	w.close = req.Close || req.Method == http.MethodConnect // what follows CONNECT is nobody's request
	sc.mu.Lock()
	sc.cancel = cancel
	sc.mu.Unlock()
	if req.Body == http.NoBody {
		sc.whole()
	} else {
		w.body = newRequestBody(sc, req)
		req.Body = w.body
	}
	defer func() {
		sc.mu.Lock()
		sc.cancel, sc.waits = nil, false
		sc.mu.Unlock()
		// A handler that gives up has said why already; nothing more is sent.
		if p := recover(); p != nil {
			again = false
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
		}
	}()
	sc.srv.Handler.ServeHTTP(w, req)
	if sc.hijacked {
		return false
	}
	w.finish()
	return !w.close && w.err == nil && w.body.finish(sc.srv.HeaderTimeout)
}

// requestBody is the body as the handler sees it.
type requestBody struct {
	io.ReadCloser
	sc        *serverConn
	continues atomic.Bool // the client waits for being told to send it
	closed    atomic.Bool // the handler has returned
	eof       atomic.Bool
}

func newRequestBody(sc *serverConn, req *http.Request) *requestBody {
	b := &requestBody{ReadCloser: req.Body, sc: sc}
	b.continues.Store(req.ProtoAtLeast(1, 1) && httpguts.HeaderValuesContainsToken(req.Header["Expect"], "100-continue"))
	return b
}

func (b *requestBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.continues.Swap(false) {
		b.sc.res.tellContinue()
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) && !b.eof.Swap(true) {
		b.sc.whole()
	}
	return n, err
}

// Close ends nothing: what is left is read when the handler has returned.
func (b *requestBody) Close() error { return nil }

// finish reads what the handler left. It says whether the next request begins
// where the body ended.
func (b *requestBody) finish(limit time.Duration) bool {
	if b == nil {
		return true
	}
	b.closed.Store(true)
	switch {
	case b.eof.Load():
		return true
	case b.continues.Load():
		return false // whether the body will come, nobody knows
	}
	_ = b.sc.c.SetReadDeadline(time.Now().Add(limit))
	_, err := io.CopyN(io.Discard, b.ReadCloser, unwantedBody)
	_ = b.sc.c.SetReadDeadline(time.Time{})
	return errors.Is(err, io.EOF)
}
