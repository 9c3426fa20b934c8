package h2

import (
	"errors"
	"fmt"
	"io"
	"slices"
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
	for {
		if _, err := c.in.br.Discard(readBufferSize); err != nil {
			return
		}
	}
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
	case errors.Is(err, http2.ErrFrameTooLarge):
		c.fail(violation(FrameSizeError, "frame over %d bytes", c.cfg.FrameSize))
	case errors.Is(err, io.EOF):
		c.end(&ConnError{Code: NoError, Err: errPeerClosed})
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		c.end(&ConnError{Code: NoError, Reason: "read", Err: err})
	default:
		c.fail(&ConnError{Code: InternalError, Reason: "read", Err: err})
	}
}

func (c *Conn) readAll() error {
	c.readDeadline(time.Now().Add(prefaceTimeout))
	if c.role == server {
		if err := c.readPreface(); err != nil {
			return err
		}
	}
	for first := true; ; first = false {
		fh, err := c.in.fr.ReadFrameHeader()
		if err != nil {
			return err
		}
		c.frames.Add(1)
		if first {
			if fh.Type != http2.FrameSettings || fh.Flags.Has(http2.FlagSettingsAck) {
				return violation(ProtocolError, "first frame is %v, want SETTINGS", fh.Type)
			}
		}
		if err := c.readFrame(fh); err != nil {
			return err
		}
		if first {
			c.readDeadline(time.Time{})
		}
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

func (c *Conn) readPreface() error {
	got := make([]byte, len(http2.ClientPreface))
	n, err := io.ReadFull(c.in.br, got)
	if err != nil && n == 0 {
		return err
	}
	if string(got[:n]) != http2.ClientPreface[:n] || err != nil {
		return violation(ProtocolError, "not HTTP/2: connection begins with %q", got[:n])
	}
	return nil
}

// readFrame reads the payload of one frame and acts on it.
func (c *Conn) readFrame(fh http2.FrameHeader) error {
	switch {
	case fh.Type == http2.FrameData:
		return c.readData(fh)
	case fh.Type > http2.FrameContinuation:
		if err := c.odd(); err != nil {
			return err
		}
		_, err := c.in.br.Discard(int(fh.Length))
		return err
	case fh.Length > maxControlFrame:
		return violation(FrameSizeError, "%v frame of %d bytes, at most %d", fh.Type, fh.Length, maxControlFrame)
	}
	c.in.meter.left = maxControlFrame + maxControlFrame
	c.in.fr.SetMaxReadFrameSize(maxControlFrame) // for CONTINUATION
	f, err := c.in.fr.ReadFrameForHeader(fh)
	c.in.meter.left = -1
	c.in.fr.SetMaxReadFrameSize(c.cfg.FrameSize)
	if se, ok := errors.AsType[http2.StreamError](err); ok {
		return c.badFrame(fh, se)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil // ended in order: only reading what is under way
	}
	if err := c.out.bounded(); err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return c.onHeaders(f)
	case *http2.SettingsFrame:
		return c.onSettings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			c.pong(f.Data)
			return nil
		}
		c.out.ping(true, f.Data)
		c.kick()
		return c.guard.pings.spend(time.Now())
	case *http2.WindowUpdateFrame:
		return c.onWindowUpdate(f)
	case *http2.RSTStreamFrame:
		return c.onReset(f)
	case *http2.GoAwayFrame:
		return c.onGoAway(f)
	case *http2.PriorityFrame:
		return c.guard.odd.spend(time.Now())
	case *http2.PushPromiseFrame:
		return violation(ProtocolError, "PUSH_PROMISE without leave")
	default:
		return c.guard.odd.spend(time.Now())
	}
}

func (c *Conn) odd() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.guard.odd.spend(time.Now())
}

// badFrame answers a frame that is wrong for its stream only.
func (c *Conn) badFrame(fh http2.FrameHeader, se http2.StreamError) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil
	}
	reason := ""
	if se.Cause != nil {
		reason = se.Cause.Error()
	}
	if s := c.set.open[fh.StreamID]; s != nil {
		c.resetStream(s, &ResetError{Code: Code(se.Code), Reason: reason})
		return nil
	}
	if c.idle(fh.StreamID) {
		if fh.Type != http2.FrameHeaders || c.role == client {
			return violation(Code(se.Code), "%v on idle stream %d: %s", fh.Type, fh.StreamID, reason)
		}
		c.set.last = fh.StreamID
	}
	c.out.reset(fh.StreamID, Code(se.Code))
	c.kick()
	return c.guard.odd.spend(time.Now())
}

// idle reports whether nobody has opened the stream yet.
func (c *Conn) idle(id uint32) bool {
	if c.role == client {
		return id%2 == 0 || id >= c.set.next
	}
	return id%2 == 0 || id > c.set.last
}

// closedStream answers a frame for a stream that is no more: what was under
// way when we reset it is no mistake of the peer.
func (c *Conn) closedStream(id uint32, kind http2.FrameType) error {
	if c.idle(id) {
		return violation(ProtocolError, "%v on idle stream %d", kind, id)
	}
	if slices.Contains(c.set.recent[:], id) {
		return nil
	}
	c.out.reset(id, StreamClosed)
	c.kick()
	return c.guard.odd.spend(time.Now())
}

func (c *Conn) onSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if err := c.guard.settings.spend(time.Now()); err != nil {
		return err
	}
	if f.NumSettings() > 64 {
		return violation(EnhanceYourCalm, "%d settings in one frame", f.NumSettings())
	}
	if err := f.ForeachSetting(c.onSetting); err != nil {
		return err
	}
	if !c.peer.seen {
		c.peer.seen = true
		if _, said := f.Value(http2.SettingMaxConcurrentStreams); !said {
			c.peer.maxStreams = maxWindow
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
		delta := int64(s.Val) - c.peer.window
		c.peer.window = int64(s.Val)
		for _, st := range c.set.open {
			if st.send += delta; st.send > maxWindow {
				return violation(FlowControl, "INITIAL_WINDOW_SIZE %d overflows the window of stream %d", s.Val, st.id)
			}
			st.writable.Broadcast()
		}
	case http2.SettingMaxFrameSize:
		c.peer.maxFrame = s.Val
	case http2.SettingMaxConcurrentStreams:
		c.peer.maxStreams = min(s.Val, maxWindow)
	case http2.SettingMaxHeaderListSize:
		c.peer.maxHeaders = s.Val
	case http2.SettingHeaderTableSize:
		c.out.enc.SetMaxDynamicTableSize(min(s.Val, 4096))
	default: // the other settings speak of what we do not send (RFC 9113 6.5.2: ignore)
	}
	return nil
}

func (c *Conn) onWindowUpdate(f *http2.WindowUpdateFrame) error {
	if f.StreamID == 0 {
		if c.send += int64(f.Increment); c.send > maxWindow {
			return violation(FlowControl, "WINDOW_UPDATE overflows the connection's window")
		}
		c.wakeBlocked()
		return nil
	}
	s := c.set.open[f.StreamID]
	if s == nil {
		if c.idle(f.StreamID) {
			return violation(ProtocolError, "WINDOW_UPDATE on idle stream %d", f.StreamID)
		}
		return nil
	}
	if s.send += int64(f.Increment); s.send > maxWindow {
		c.resetStream(s, &ResetError{Code: FlowControl, Reason: "WINDOW_UPDATE overflows the stream's window"})
		return nil
	}
	s.writable.Broadcast()
	return nil
}

func (c *Conn) onReset(f *http2.RSTStreamFrame) error {
	s := c.set.open[f.StreamID]
	if s == nil {
		if c.idle(f.StreamID) {
			return violation(ProtocolError, "RST_STREAM on idle stream %d", f.StreamID)
		}
		return c.guard.odd.spend(time.Now())
	}
	answered := s.header.done
	s.abort(&ResetError{Code: Code(f.ErrCode), Remote: true})
	c.forget(s)
	if c.role == server && !answered {
		return c.guard.resets.spend(time.Now())
	}
	return nil
}

func (c *Conn) onGoAway(f *http2.GoAwayFrame) error {
	c.life.peerGone = true
	code := Code(f.ErrCode)
	for id, s := range c.set.open {
		if c.role == client && id > f.LastStreamID {
			s.abort(fmt.Errorf("stream %d: %w", id, ErrGoingAway))
			delete(c.set.open, id)
			delete(c.blocked, s)
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
