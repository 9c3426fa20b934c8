package h2

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"golang.org/x/net/http2"
)

// errPeerClosed is the peer closing the connection between frames.
var errPeerClosed = fmt.Errorf("closed by the peer: %w", io.ErrUnexpectedEOF)

// readLoop is the connection's one reading goroutine and the owner of its
// end: whatever ends the connection, this closes it.
func (c *Conn) readLoop() {
	err := c.readAll()
	if c.moved(err) {
		return
	}
	c.mu.Lock()
	if c.err == nil {
		c.failRead(err)
	}
	linger := c.life.grace
	c.mu.Unlock()
	c.lastWords()
	if w, ok := c.nc.(interface{ CloseWrite() error }); ok && linger {
		// Closing with unread bytes would reset the connection and could
		// take our last bytes with it.
		_ = w.CloseWrite()
		_ = c.nc.SetReadDeadline(time.Now().Add(lingerTimeout))
		c.discard()
	}
	_ = c.nc.Close()
}

// discard reads until the peer has closed as well, at most as long as the
// deadline that is set already.
func (c *Conn) discard() {
	_ = feedFrom(c.nc, func(p []byte) (int, error) { return len(p), nil })
}

func (c *Conn) failRead(err error) {
	if ce, ok := errors.AsType[*ConnError](err); ok {
		c.fail(ce)
		return
	}
	if code, ok := errors.AsType[http2.ConnectionError](err); ok {
		reason := ""
		if d := c.in.fr.ErrorDetail(); d != nil {
			reason = d.Error()
		}
		c.fail(violation(Code(code), "%s", reason))
		return
	}
	switch {
	case errors.Is(err, io.EOF):
		c.end(&ConnError{Code: NoError, Err: errPeerClosed})
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		c.end(&ConnError{Code: NoError, Reason: "read", Err: err})
	default:
		c.fail(&ConnError{Code: InternalError, Reason: "read", Err: err})
	}
}

// readDeadline must not undo the deadline by which end wakes us.
func (c *Conn) readDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		_ = c.nc.SetReadDeadline(t)
	}
}

// unknown counts a frame of an unknown kind: itself and its bytes, which no
// window holds back.
func (c *Conn) unknown(size uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.guard.pointless(time.Now(), float64(size))
}

// badFrame answers a frame that is wrong for its stream only.
func (c *Conn) badFrame(fh http2.FrameHeader, code Code, reason string) error {
	if s := c.set.open[fh.StreamID]; s != nil {
		return c.mistake(s, &ResetError{Code: code, Reason: reason})
	}
	if c.idle(fh.StreamID) {
		if fh.Type != http2.FrameHeaders || c.role == client {
			return violation(code, "%v on idle stream %d: %s", fh.Type, fh.StreamID, reason)
		}
		if c.life.final {
			c.set.beyond = fh.StreamID
		} else {
			c.set.last = fh.StreamID
		}
	}
	c.out.reset(fh.StreamID, code)
	c.kick()
	return c.guard.odd.spend(time.Now())
}

// idle reports whether nobody has opened the stream yet.
func (c *Conn) idle(id uint32) bool {
	if c.role == client {
		return id%2 == 0 || id >= c.set.next
	}
	return id%2 == 0 || id > max(c.set.last, c.set.beyond)
}

// closedStream answers a frame for a stream that is no more: what was under
// way when we reset it is no mistake of the peer.
func (c *Conn) closedStream(id uint32, kind http2.FrameType) error {
	if c.idle(id) {
		return violation(ProtocolError, "%v on idle stream %d", kind, id)
	}
	if c.set.recently(id) != nil {
		return nil
	}
	c.out.reset(id, StreamClosed)
	c.kick()
	return c.guard.odd.spend(time.Now())
}

// mistake resets a stream because of what the peer did. Provoked resets cost
// as much as the peer's own ("MadeYouReset") and are counted as such.
func (c *Conn) mistake(s *Stream, cause *ResetError) error {
	answered := s.header.done
	c.resetStream(s, cause)
	if c.role == server && !answered {
		return c.guard.resets.spend(time.Now())
	}
	return c.guard.odd.spend(time.Now())
}

func (c *Conn) onSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return c.onAck()
	}
	if err := c.guard.settings.spend(time.Now()); err != nil {
		return err
	}
	if f.NumSettings() > 64 {
		return violation(EnhanceYourCalm, "%d settings in one frame", f.NumSettings())
	}
	window := c.peer.window
	if err := f.ForeachSetting(c.onSetting); err != nil {
		return err
	}
	if err := c.shiftWindows(c.peer.window - window); err != nil {
		return err
	}
	if !c.peer.seen {
		c.peer.seen = true
		if _, said := f.Value(http2.SettingMaxConcurrentStreams); !said {
			c.peer.maxStreams = maxWindow
		}
		if c.peer.met != nil {
			close(c.peer.met)
			c.peer.met = nil
		}
	}
	c.out.settingsAck()
	for len(c.set.waiting) > 0 && len(c.set.open)+c.set.reserved < c.limit() {
		c.wakeOpener()
	}
	c.kick()
	return nil
}

func (c *Conn) onSetting(s http2.Setting) error {
	if err := s.Valid(); err != nil {
		return err
	}
	switch s.ID {
	case http2.SettingInitialWindowSize:
		c.peer.window = int64(s.Val)
	case http2.SettingHeaderTableSize:
		c.peer.table = min(s.Val, headerTable)
		c.out.enc.SetMaxDynamicTableSize(c.peer.table)
	case http2.SettingMaxFrameSize:
		c.peer.maxFrame = s.Val
	case http2.SettingMaxConcurrentStreams:
		c.peer.maxStreams = min(s.Val, maxWindow)
	case http2.SettingMaxHeaderListSize:
		c.peer.maxHeaders = s.Val
	default: // the other settings speak of what we do not send (RFC 9113 6.5.2: ignore)
	}
	return nil
}

// shiftWindows applies a change of INITIAL_WINDOW_SIZE, once per frame
// however often the frame says it.
func (c *Conn) shiftWindows(delta int64) error {
	if delta == 0 {
		return nil
	}
	for _, s := range c.set.open {
		if s.send += delta; s.send > maxWindow {
			return violation(FlowControl, "INITIAL_WINDOW_SIZE %d overflows the window of stream %d", c.peer.window, s.id)
		}
		s.resume()
	}
	return nil
}

func (c *Conn) onWindowUpdate(id uint32, n int64) error {
	if err := c.guard.update(); err != nil {
		return err
	}
	if id == 0 {
		if n == 0 {
			return violation(ProtocolError, "WINDOW_UPDATE by 0")
		}
		if c.send += n; c.send > maxWindow {
			return violation(FlowControl, "WINDOW_UPDATE overflows the connection's window")
		}
		if len(c.out.turns) == 0 {
			return nil
		}
		c.resumeFirst()
		return c.crumb(n)
	}
	s := c.set.open[id]
	switch {
	case s == nil && c.idle(id):
		return violation(ProtocolError, "WINDOW_UPDATE on idle stream %d", id)
	case n == 0 && s == nil:
		return c.closedStream(id, http2.FrameWindowUpdate)
	case n == 0:
		return c.mistake(s, &ResetError{Code: ProtocolError, Reason: "WINDOW_UPDATE by 0"})
	case s == nil:
		return nil
	}
	if s.send += n; s.send > maxWindow {
		return c.mistake(s, &ResetError{Code: FlowControl, Reason: "WINDOW_UPDATE overflows the stream's window"})
	}
	if s.w.rest == nil {
		return nil
	}
	s.resume()
	return c.crumb(n)
}

// crumb counts an update that makes us send a frame of n bytes or less.
func (c *Conn) crumb(n int64) error {
	if n >= crumbSize {
		return nil
	}
	return c.guard.crumbs.spend(time.Now())
}

func (c *Conn) onReset(id uint32, code Code) error {
	s := c.set.open[id]
	if s == nil {
		if c.idle(id) {
			return violation(ProtocolError, "RST_STREAM on idle stream %d", id)
		}
		// The peer gave it up too: nothing more can be under way. Two resets
		// that cross are nobody's mistake, and there is one for each of ours.
		if g := c.set.recently(id); g != nil {
			*g = grant{}
			return nil
		}
		return c.guard.odd.spend(time.Now())
	}
	answered := s.header.done
	s.abort(&ResetError{Code: code, Remote: true})
	c.forget(s)
	// Who waits for long and then gives up had a place of his own meanwhile, and
	// an application that hangs makes honest peers do so.
	if c.role == server && !answered && time.Since(s.began) < patientReset {
		return c.guard.resets.spend(time.Now())
	}
	return nil
}

func (c *Conn) onGoAway(f *http2.GoAwayFrame) error {
	// An end in order takes two.
	if c.life.goAways++; c.life.goAways > 2 {
		if err := c.guard.pointless(time.Now(), float64(f.Length)); err != nil {
			return err
		}
	}
	c.life.peerGone = true
	code := Code(f.ErrCode)
	for id, s := range c.set.open {
		if c.role == client && id > f.LastStreamID {
			s.abort(fmt.Errorf("stream %d: %w", id, ErrGoingAway))
			delete(c.set.open, id)
		}
	}
	for _, w := range c.set.waiting {
		close(w)
	}
	c.set.waiting = nil
	if code != NoError {
		c.end(&ConnError{Code: code, Remote: true, Reason: string(f.DebugData())})
		return nil
	}
	c.finishIfIdle()
	return nil
}
