package h2

import (
	"strconv"
	"time"

	"golang.org/x/net/http2"
)

func (c *Conn) onHeaders(f *http2.MetaHeadersFrame) error {
	if s := c.set.open[f.StreamID]; s != nil {
		if c.role == client && !s.header.done {
			return c.onResponse(s, f)
		}
		return c.onTrailers(s, f)
	}
	if c.role == client || !c.idle(f.StreamID) {
		return c.lateHeaders(f)
	}
	if f.StreamID%2 == 0 {
		return violation(ProtocolError, "request on stream %d, which is even", f.StreamID)
	}
	return c.onRequest(f)
}

// lateHeaders is a header block for a stream that is no more.
func (c *Conn) lateHeaders(f *http2.MetaHeadersFrame) error {
	for _, id := range c.set.recent {
		if id == f.StreamID {
			return c.guard.odd.spend(time.Now())
		}
	}
	if c.idle(f.StreamID) {
		return violation(ProtocolError, "HEADERS on idle stream %d", f.StreamID)
	}
	return violation(StreamClosed, "HEADERS on closed stream %d", f.StreamID)
}

// onTrailers takes a second header block: the end of the stream or a mistake.
// Tunnels have no use for its content.
func (c *Conn) onTrailers(s *Stream, f *http2.MetaHeadersFrame) error {
	switch {
	case s.remoteEnd:
		return c.mistake(s, &ResetError{Code: StreamClosed, Reason: "HEADERS after END_STREAM"})
	case !f.StreamEnded() || len(f.PseudoFields()) > 0:
		return c.mistake(s, &ResetError{Code: ProtocolError, Reason: "second header block that is no trailer"})
	}
	s.endRemote()
	s.settleLater()
	return nil
}

func (c *Conn) onResponse(s *Stream, f *http2.MetaHeadersFrame) error {
	status := f.PseudoValue("status")
	code, err := strconv.Atoi(status)
	switch {
	case f.Truncated:
		return c.mistake(s, &ResetError{Code: ProtocolError, Reason: "response headers over the limit"})
	case err != nil || len(status) != 3 || code < 100 || len(f.PseudoFields()) != 1:
		return c.mistake(s, &ResetError{Code: ProtocolError, Reason: "malformed response: status " + strconv.Quote(status)})
	case code < 200:
		s.header.informal++
		if f.StreamEnded() || code == 101 || s.header.informal > maxInformational {
			return c.mistake(s, &ResetError{Code: ProtocolError, Reason: "malformed informational response"})
		}
		return nil
	}
	s.header.fields = fieldsOf(f)
	s.header.done = true
	close(s.header.got)
	if f.StreamEnded() {
		s.endRemote()
		s.settleLater()
	}
	return nil
}

func (c *Conn) onRequest(f *http2.MetaHeadersFrame) error {
	now := time.Now()
	if c.life.final {
		return c.guard.refused.spend(now) // named in GOAWAY as not processed
	}
	c.set.last = f.StreamID
	full := len(c.set.open) >= int(c.cfg.MaxStreams)
	// A handler may outlive its stream: those that were reset count as well.
	if full || c.set.handlers >= 2*int(c.cfg.MaxStreams) {
		c.out.reset(f.StreamID, RefusedStream)
		c.kick()
		return c.guard.refused.spend(now)
	}
	if reason := malformed(f); reason != "" {
		c.out.reset(f.StreamID, ProtocolError)
		c.kick()
		return c.guard.odd.spend(now)
	}
	s := c.newStream(f.StreamID)
	if f.StreamEnded() {
		s.endRemote()
	}
	if f.Truncated {
		c.out.headers(s.id, []Field{{":status", "431"}}, true, c.peer.maxFrame)
		c.resetStream(s, &ResetError{Code: NoError, Reason: "request headers over the limit"})
		return c.guard.odd.spend(now)
	}
	fields := fieldsOf(f)
	c.set.handlers++
	c.wg.Go(func() {
		defer func() {
			c.mu.Lock()
			c.set.handlers--
			c.mu.Unlock()
		}()
		c.handle(s, fields)
	})
	return nil
}

// malformed applies RFC 9113 sections 8.2.2, 8.3.1 and 8.5 to what the
// Framer leaves to us; it returns the reason or "".
func malformed(f *http2.MetaHeadersFrame) string {
	if f.Truncated {
		return ""
	}
	method := f.PseudoValue("method")
	has := func(name string) bool {
		for _, p := range f.PseudoFields() {
			if p.Name == name {
				return true
			}
		}
		return false
	}
	switch {
	case method == "":
		return "no :method"
	case has(":status"):
		return ":status in a request"
	case has(":protocol"):
		return ":protocol without leave"
	case method == "CONNECT" && (has(":scheme") || has(":path")):
		return "CONNECT with :scheme or :path"
	case method == "CONNECT" && !has(":authority"):
		return "CONNECT without :authority"
	case method != "CONNECT" && (f.PseudoValue("scheme") == "" || f.PseudoValue("path") == ""):
		return "no :scheme or :path"
	}
	for _, h := range f.RegularFields() {
		switch h.Name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return h.Name + " header"
		case "te":
			if h.Value != "trailers" {
				return "te header"
			}
		}
	}
	return ""
}

func fieldsOf(f *http2.MetaHeadersFrame) []Field {
	out := make([]Field, len(f.Fields))
	for i, h := range f.Fields {
		out[i] = Field{Name: h.Name, Value: h.Value}
	}
	return out
}
