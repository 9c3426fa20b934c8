package h1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"sync"
	"time"
)

// errHeaderTooLarge is a head beyond the limit.
var errHeaderTooLarge = errors.New("request header is too large")

// limited is a reader with a budget; none is left of it after a head that is
// too large.
type limited struct {
	r    io.Reader
	left int // negative = no limit
	hit  bool
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left == 0 {
		l.hit = true
		return 0, errHeaderTooLarge
	}
	if l.left > 0 && len(p) > l.left {
		p = p[:l.left]
	}
	n, err := l.r.Read(p)
	if l.left > 0 {
		l.left -= n
	}
	return n, err
}

// Pool asks one server by HTTP/1.1 on kept connections: the calling goroutine
// writes the request and reads the answer. It is an http.RoundTripper.
//
// A connection has to have OnEnd, by which it tells that the server has closed
// it.
type Pool struct {
	Dial        func(ctx context.Context) (net.Conn, error)
	MaxIdle     int
	IdleTimeout time.Duration // 0 = none
	MaxHeader   int           // bytes of an answer's head
	// ContinueTimeout is how long a body that waits for 100 waits.
	ContinueTimeout time.Duration

	mu     sync.Mutex
	idle   []*clientConn // the last one was used last
	single bool          // connections are not kept any more
	weary  bool          // nor until somebody asks again
	timer  *time.Timer
}

// maxInformal is how many 1xx answers one request may get.
const maxInformal = 16

// reuseWait is how long a connection waits, when its answer is whole, for the
// rest of its request to be written.
const reuseWait = 50 * time.Millisecond

// clientConn is one connection to a server. It belongs to a request or to the
// pool.
type clientConn struct {
	p     *Pool
	c     net.Conn
	limit limited
	br    *bufio.Reader
	out   []byte
	used  bool
	since time.Time // of the rest in the pool

	mu   sync.Mutex
	idle bool
	gone bool // the server has closed it, or we have
}

// RoundTrip implements http.RoundTripper.
func (p *Pool) RoundTrip(req *http.Request) (*http.Response, error) {
	for {
		cc, err := p.get(req.Context())
		if err != nil {
			closeBody(req)
			return nil, err
		}
		resp, err := cc.do(req)
		var stale *staleError
		switch {
		case err == nil:
			return resp, nil
		case errors.As(err, &stale) && again(req) && req.Context().Err() == nil:
			continue // it was closed while nobody used it
		}
		return nil, err
	}
}

// staleError is a kept connection that ended before it answered anything.
type staleError struct{ err error }

func (e *staleError) Error() string { return e.err.Error() }
func (e *staleError) Unwrap() error { return e.err }

// again says whether a request may be sent twice.
func again(r *http.Request) bool {
	switch r.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return r.Body == nil || r.Body == http.NoBody
	}
	return false
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

func (p *Pool) get(ctx context.Context) (*clientConn, error) {
	for {
		cc := p.take()
		if cc == nil {
			break
		}
		if cc.wake() {
			return cc, nil
		}
	}
	c, err := p.Dial(ctx)
	if err != nil {
		return nil, err
	}
	cc := &clientConn{p: p, c: c}
	cc.limit = limited{r: c, left: -1}
	cc.br = bufio.NewReaderSize(&cc.limit, readSize)
	if e, ok := c.(ender); ok {
		e.OnEnd(cc.end)
	}
	return cc, nil
}

// take takes the connection that was used last.
func (p *Pool) take() *clientConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.weary = false
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	cc := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	return cc
}

// wake takes a connection out of its rest; false = it has ended.
func (cc *clientConn) wake() bool {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	cc.idle = false
	return !cc.gone
}

// end is called when the server has ended its direction.
func (cc *clientConn) end() {
	cc.mu.Lock()
	cc.gone = true
	idle := cc.idle
	cc.mu.Unlock()
	if idle {
		cc.p.forget(cc)
		_ = cc.c.Close()
	}
}

func (p *Pool) forget(cc *clientConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.idle, cc); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
}

// release gives a connection back whose answer is whole.
func (cc *clientConn) release() {
	p := cc.p
	p.mu.Lock()
	defer p.mu.Unlock()
	cc.mu.Lock()
	defer cc.mu.Unlock()
	// What the server sent unasked would be taken for the next answer.
	if p.single || p.weary || cc.gone || cc.br.Buffered() > 0 || len(p.idle) >= p.MaxIdle {
		cc.gone = true
		_ = cc.c.Close()
		return
	}
	cc.idle, cc.used = true, true
	if p.IdleTimeout > 0 {
		cc.since = time.Now()
		if p.timer == nil {
			p.timer = time.AfterFunc(p.IdleTimeout, p.sweep)
		}
	}
	p.idle = append(p.idle, cc)
}

// sweep closes what has rested for too long.
func (p *Pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = nil
	old := time.Now().Add(-p.IdleTimeout)
	n := 0
	for n < len(p.idle) && !p.idle[n].since.After(old) {
		p.idle[n].drop()
		n++
	}
	if p.idle = slices.Delete(p.idle, 0, n); len(p.idle) > 0 {
		p.timer = time.AfterFunc(p.IdleTimeout-time.Since(p.idle[0].since), p.sweep)
	}
}

// drop closes a connection that nobody uses.
func (cc *clientConn) drop() {
	cc.mu.Lock()
	cc.gone = true
	cc.mu.Unlock()
	_ = cc.c.Close()
}

// CloseIdleConnections closes what nobody uses, and what nobody will use any
// more before the next request.
func (p *Pool) CloseIdleConnections() {
	p.mu.Lock()
	p.weary = true
	idle := p.idle
	p.idle = nil
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	p.mu.Unlock()
	for _, cc := range idle {
		cc.drop()
	}
}

// KeepNone closes every connection after its answer, from now on.
func (p *Pool) KeepNone() {
	p.mu.Lock()
	p.single = true
	p.mu.Unlock()
	p.CloseIdleConnections()
}

// do makes one request. The connection is closed or released when the answer
// has been read.
func (cc *clientConn) do(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	t := httptrace.ContextClientTrace(ctx)
	if t != nil && t.GotConn != nil {
		t.GotConn(httptrace.GotConnInfo{Conn: cc.c, Reused: cc.used})
	}
	head, size, err := appendRequest(cc.out[:0], req)
	if err != nil {
		closeBody(req)
		cc.release()
		return nil, err
	}
	cc.out = head
	x := &exchange{cc: cc, req: req, trace: t, size: size}
	x.stop = context.AfterFunc(ctx, cc.drop)
	if err := x.send(); err != nil {
		return nil, x.fail(err)
	}
	resp, err := x.answer()
	if err != nil {
		return nil, x.fail(err)
	}
	return resp, nil
}

// exchange is one request on a connection.
type exchange struct {
	cc    *clientConn
	req   *http.Request
	trace *httptrace.ClientTrace
	size  int64 // of the body; negative = chunked
	stop  func() bool
	sent  chan error // the body's end; nil = there is none
	go100 chan struct{}
	began bool // bytes of an answer are there
}

// fail ends the connection and says why the request failed.
func (x *exchange) fail(err error) error {
	ctx := x.req.Context()
	x.stop()
	x.cc.drop()
	if x.sent != nil {
		select {
		case sendErr := <-x.sent:
			if sendErr != nil {
				err = sendErr
			}
		default: // it ends soon: its connection is closed
		}
	} else {
		closeBody(x.req)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case x.cc.used && !x.began && x.sent == nil:
		return &staleError{err}
	}
	return err
}

// answer reads up to the head of the final answer.
func (x *exchange) answer() (*http.Response, error) {
	cc := x.cc
	cc.limit.left = cc.p.MaxHeader
	defer func() { cc.limit.left = -1 }()
	for n := 0; ; n++ {
		if _, err := cc.br.Peek(1); err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		x.began = true
		resp, err := http.ReadResponse(cc.br, x.req)
		if err != nil {
			if cc.limit.hit {
				err = errHeaderTooLarge
			}
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		switch {
		case resp.StatusCode < http.StatusContinue: // three digits, that is all net/http asks for
			return nil, fmt.Errorf("malformed HTTP response: status %03d", resp.StatusCode)
		case resp.StatusCode == http.StatusSwitchingProtocols:
			resp.Body = x.switched()
			return resp, nil
		case resp.StatusCode >= 200:
			x.body(resp)
			return resp, nil
		case n == maxInformal:
			return nil, errors.New("malformed HTTP response: too many informational answers")
		case resp.StatusCode == http.StatusContinue && x.go100 != nil:
			close(x.go100)
			x.go100 = nil
		}
		if t := x.trace; t != nil && t.Got1xxResponse != nil {
			if err := t.Got1xxResponse(resp.StatusCode, textproto.MIMEHeader(resp.Header)); err != nil {
				return nil, err
			}
		}
	}
}

// body hands the connection over to the answer's body, or gives it back where
// there is none.
func (x *exchange) body(resp *http.Response) {
	if resp.Body == http.NoBody {
		x.end(resp, true)
		return
	}
	resp.Body = &answerBody{ReadCloser: resp.Body, x: x, resp: resp}
}

// end is called once, when the answer was read (whole) or given up.
func (x *exchange) end(resp *http.Response, whole bool) {
	stopped := x.stop() // else the connection is being closed
	whole = whole && stopped && !resp.Close && !x.req.Close
	if whole && x.sent != nil {
		wait := time.NewTimer(reuseWait)
		select {
		case err := <-x.sent:
			whole = err == nil
		case <-wait.C:
			whole = false
		}
		wait.Stop()
	}
	if whole {
		x.cc.release()
	} else {
		x.cc.drop()
	}
}

// answerBody gives the connection back at its end.
type answerBody struct {
	io.ReadCloser
	x    *exchange
	resp *http.Response
	once sync.Once
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		if ctx := b.x.req.Context(); !errors.Is(err, io.EOF) && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		b.once.Do(func() { b.x.end(b.resp, errors.Is(err, io.EOF)) })
	}
	return n, err
}

// Close gives up what was not read.
func (b *answerBody) Close() error {
	b.once.Do(func() { b.x.end(b.resp, false) })
	return nil
}

// switched is the connection after 101, whose bytes belong to nobody here.
func (x *exchange) switched() io.ReadWriteCloser { return &switched{x} }

type switched struct{ x *exchange }

func (s *switched) Read(p []byte) (int, error)  { return s.x.cc.br.Read(p) }
func (s *switched) Write(p []byte) (int, error) { return s.x.cc.c.Write(p) }

func (s *switched) Close() error {
	s.x.stop()
	s.x.cc.drop()
	return nil
}

// CloseWrite ends our direction.
func (s *switched) CloseWrite() error {
	if c, ok := s.x.cc.c.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return s.Close()
}
