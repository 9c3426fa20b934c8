package front

import (
	"bytes"
	"errors"
	"io"
	"os"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// defaultDetect is how long the first bytes of a connection are waited for, as in Envoy.
const defaultDetect = 15 * time.Second

// replayed is a connection whose first bytes were read already.
type replayed struct {
	upstream.Conn
	first []byte
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// OnEnd is the connection's, if it can tell.
func (r *replayed) OnEnd(fn func()) { onEnd(r.Conn, fn) }

func onEnd(c upstream.Conn, fn func()) {
	if e, ok := c.(interface{ OnEnd(fn func()) }); ok {
		e.OnEnd(fn)
	}
}

// speaksHTTP2 reads as much as tells whether a connection begins with HTTP/2's preface. One that does not even begin in time is left to
// whoever serves HTTP/1.
func speaksHTTP2(c upstream.Conn) (two bool, seen []byte) {
	if c.SetReadDeadline(time.Now().Add(headerLimit)) != nil {
		return false, nil
	}
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	buf := make([]byte, len(preface))
	n := 0
	for n < len(buf) && string(buf[:n]) == preface[:n] {
		k, err := c.Read(buf[n:])
		n += k
		if err != nil {
			break
		}
	}
	return string(buf[:n]) == preface, buf[:n]
}

// detect looks at the first bytes until they tell the protocol, or the time is over: then the server has to speak first, which no
// HTTP server does.
func detect(c upstream.Conn, limit time.Duration) (table.Protocol, upstream.Conn, error) {
	if limit == 0 {
		limit = defaultDetect
	}
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return table.Unseen, nil, err
	}
	var seen []byte
	buf := make([]byte, 64)
	for {
		p, enough := recognize(seen)
		if enough {
			return p, &replayed{Conn: c, first: seen}, c.SetReadDeadline(time.Time{})
		}
		n, err := c.Read(buf)
		seen = append(seen, buf[:n]...)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.EOF):
			if p, enough = recognize(seen); !enough {
				p = table.Opaque
			}
			return p, &replayed{Conn: c, first: seen}, c.SetReadDeadline(time.Time{})
		default:
			return table.Unseen, nil, err
		}
	}
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// longestMethod is of the methods that an HTTP/1 request line may begin with before it is taken for something else.
const longestMethod = 17

// recognize tells the protocol from the first bytes, or that it needs more.
func recognize(b []byte) (p table.Protocol, enough bool) {
	switch {
	case len(b) == 0:
		return table.Unseen, false
	case len(b) >= len(preface) && string(b[:len(preface)]) == preface:
		return table.HTTP2, true
	case bytes.HasPrefix([]byte(preface), b):
		return table.Unseen, false
	}
	i := 0
	for i < len(b) && i <= longestMethod && (b[i] >= 'A' && b[i] <= 'Z' || b[i] == '-' || b[i] == '_') {
		i++
	}
	switch {
	case i == 0 || i > longestMethod:
		return table.Opaque, true
	case i == len(b):
		return table.Unseen, false
	case b[i] != ' ':
		return table.Opaque, true
	}
	// A method and a space. The request line has to end in a version of HTTP/1, and soon.
	line, _, whole := bytes.Cut(b[i+1:], []byte("\n"))
	if !whole {
		const longestLine = 64 << 10
		if len(line) > longestLine {
			return table.Opaque, true
		}
		return table.Unseen, false
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	at := bytes.LastIndexByte(line, ' ')
	if at >= 0 && bytes.HasPrefix(line[at+1:], []byte("HTTP/1.")) {
		return table.HTTP1, true
	}
	return table.Opaque, true
}
