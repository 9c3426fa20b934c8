package h2

import (
	"strconv"
	"time"
)

func (c *Conn) onHeaders(k *block) error {
	if s := c.set.open[k.id]; s != nil {
		if c.role == client && !s.header.done {
			return c.onResponse(s, k)
		}
		return c.onTrailers(s, k)
	}
	if c.role == client || !c.idle(k.id) {
		return c.lateHeaders(k)
	}
	if k.id%2 == 0 {
		return violation(ProtocolError, "request on stream %d, which is even", k.id)
	}
	return c.onRequest(k)
}

// lateHeaders is a header block for a stream that is no more.
func (c *Conn) lateHeaders(k *block) error {
	k.vain = true
	if c.idle(k.id) {
		return violation(ProtocolError, "HEADERS on idle stream %d", k.id)
	}
	// A client may have given up more streams at once than are remembered:
	// their answers are no mistake.
	if c.role == client || c.set.recently(k.id) != nil {
		return c.guard.odd.spend(time.Now())
	}
	return violation(StreamClosed, "HEADERS on closed stream %d", k.id)
}

// onTrailers takes a second header block: the end of the stream or a mistake.
// Tunnels have no use for its content.
func (c *Conn) onTrailers(s *Stream, k *block) error {
	switch {
	case s.remoteEnd:
		return c.mistake(s, &ResetError{Code: StreamClosed, Reason: "HEADERS after END_STREAM"})
	case !k.end || k.pseudo > 0:
		return c.mistake(s, &ResetError{Code: ProtocolError, Reason: "second header block that is no trailer"})
	}
	if c.cfg.Requests != nil {
		if reason := s.takeTrailers(k); reason != "" {
			return c.mistake(s, &ResetError{Code: ProtocolError, Reason: reason})
		}
	}
	s.endRemote()
	s.settleLater()
	return nil
}

func (c *Conn) onResponse(s *Stream, k *block) error {
	status := k.value(":status")
	code, err := strconv.Atoi(status)
	switch {
	case k.truncated:
		return c.mistake(s, &ResetError{Code: ProtocolError, Reason: "response headers over the limit"})
	case err != nil || len(status) != 3 || code < 100 || k.pseudo != 1:
		return c.mistake(s, &ResetError{Code: ProtocolError, Reason: "malformed response: status " + strconv.Quote(status)})
	case code < 200:
		s.header.informal++
		if k.end || code == 101 || s.header.informal > maxInformational {
			return c.mistake(s, &ResetError{Code: ProtocolError, Reason: "malformed informational response"})
		}
		if c.cfg.Requests != nil {
			s.header.early = append(s.header.early, k.keep())
			s.wake.Broadcast()
		}
		return nil
	}
	s.header.fields = k.keep()
	if c.cfg.Requests != nil && !k.end {
		s.header.content = &content{length: -1}
	}
	s.answered()
	if k.end {
		s.endRemote()
		s.settleLater()
	}
	return nil
}

func (c *Conn) onRequest(k *block) error {
	now := time.Now()
	k.vain = true // unless it is served
	if c.life.final {
		// Named in GOAWAY as not processed. What the peer sends on it before it
		// has read that is no mistake (RFC 9113 section 6.8).
		c.set.beyond = max(c.set.beyond, k.id)
		if c.set.recently(k.id) == nil {
			c.set.remember(k.id, c.underWay(c.cfg.base()))
		}
		return c.guard.refused.spend(now)
	}
	c.set.last = k.id
	full := len(c.set.open) >= int(c.cfg.MaxStreams)
	// A handler may outlive its stream: those that were reset count as well.
	if full || c.set.handlers >= 2*int(c.cfg.MaxStreams) {
		c.refuse(k.id, RefusedStream)
		return c.guard.refused.spend(now)
	}
	length, reason := c.admit(k)
	if reason != "" {
		c.refuse(k.id, ProtocolError)
		return c.guard.odd.spend(now)
	}
	s := c.newStream(k.id)
	if k.end {
		s.endRemote()
	} else if c.cfg.Requests != nil {
		s.header.content = &content{length: length}
	}
	if k.truncated {
		c.out.headers(s.id, []Field{{":status", "431"}}, true, c.peer.maxFrame)
		c.resetStream(s, &ResetError{Code: NoError, Reason: "request headers over the limit"})
		return c.guard.resets.spend(now) // decoding them cost as much as a stream
	}
	k.vain = false
	s.began = now
	c.set.handlers++
	c.wg.Add()
	go c.serve(s, k.keep())
	return nil
}

// refuse resets a stream that was never opened.
func (c *Conn) refuse(id uint32, code Code) {
	c.out.reset(id, code)
	c.set.remember(id, c.underWay(c.cfg.base()))
	c.kick()
}

// serve runs the handler of one request.
func (c *Conn) serve(s *Stream, fields []Field) {
	c.handle(s, fields)
	c.mu.Lock()
	detached := s.detached
	c.mu.Unlock()
	if !detached {
		c.served()
	}
}

func (c *Conn) served() {
	c.mu.Lock()
	c.set.handlers--
	c.mu.Unlock()
	c.wg.Done()
}

// Detach lets the stream's handler return while what it does goes on elsewhere:
// the connection takes it for running until release is called, once. It is for
// the handler's goroutine alone.
func (s *Stream) Detach() (release func()) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.detached = true
	return s.c.served
}

// malformed applies RFC 9113 sections 8.2.2, 8.3.1 and 8.5 to requests; it
// returns the reason or "".
func malformed(k *block) string {
	if k.truncated {
		return ""
	}
	method := k.value(":method")
	switch {
	case method == "":
		return "no :method"
	case k.has(":status"):
		return ":status in a request"
	case k.has(":protocol"):
		return ":protocol without leave"
	case method == "CONNECT" && (k.has(":scheme") || k.has(":path")):
		return "CONNECT with :scheme or :path"
	case method == "CONNECT" && !k.has(":authority"):
		return "CONNECT without :authority"
	case method != "CONNECT" && (k.value(":scheme") == "" || k.value(":path") == ""):
		return "no :scheme or :path"
	}
	for _, h := range k.fields[k.pseudo:] {
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
