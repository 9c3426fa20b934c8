package h2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/marrowmesh/marrow/internal/burst"
)

// feeder is a connection that shows what arrives where it is.
type feeder interface {
	Feed(on func(p []byte) (done int, err error)) error
}

// feedFrom runs on with everything that arrives until the connection's end
// (nil) or an error. Between two calls no memory is held for it.
func feedFrom(nc net.Conn, on func(p []byte) (done int, err error)) error {
	if f, ok := nc.(feeder); ok {
		return f.Feed(on)
	}
	return burst.Feed(nc, func(s *burst.Slab, n int) (int, error) { return on(s.B[burst.Head : burst.Head+n]) })
}

// frameHeader is the size of a frame's header.
const frameHeader = 9

// input is the reading goroutine's: a parser that is pushed.
//
// What arrives is cut at any byte. DATA goes on piece by piece from where it
// lies. Any other frame is held back until it is there wholly, a header block
// with its CONTINUATIONs; so nothing is left with the connection, whose
// buffers are free again after each call. The Framer reads what is rare.
type input struct {
	fr    *http2.Framer
	src   bytes.Reader // what fr reads
	dec   *hpack.Decoder
	block block     // what dec has decoded
	hold  []byte    // the beginning of what is not there wholly
	since time.Time // when hold began, on a connection of Requests
	small [64]byte
	part  dataFrame
	skip  int // bytes to be thrown away
	phase phase
	round uint64    // number of this feed
	late  []*Stream // have crumbs queued for its end
	feeds atomic.Uint64
	ran   int // frames, and pieces of them, since others could run
}

// dataFrame is the DATA frame under way.
type dataFrame struct {
	s         *Stream // nil: thrown away
	left, pad int     // bytes to come
	open      bool
	end       bool // END_STREAM
}

type phase uint8

const (
	atPreface phase = iota
	atSettings
	atFrames
)

func (in *input) init(cfg Config, r role) {
	in.dec = hpack.NewDecoder(headerTable, func(f hpack.HeaderField) { in.block.emit(in.dec, f) })
	in.dec.SetMaxStringLength(int(cfg.MaxHeaderList))
	in.hold = in.small[:0]
	if r == client {
		in.phase = atSettings
	}
	in.renew()
}

// renew makes a Framer: the old one keeps a buffer as large as the largest
// frame that it has read.
func (in *input) renew() {
	in.fr = http2.NewFramer(nil, &in.src)
	in.fr.SetMaxReadFrameSize(maxControlFrame)
}

// between reports whether the input stands between two frames.
func (in *input) between() bool {
	return len(in.hold) == 0 && in.skip == 0 && !in.part.open
}

// feed takes what arrived next. It is done with all of p unless it fails.
func (c *Conn) feed(p []byte) (done int, err error) {
	c.in.round = c.in.feeds.Add(1)
	for done < len(p) && err == nil {
		n := 0
		n, err = c.step(p[done:])
		done += n
		if c.in.ran++; c.in.ran == yieldFrames {
			c.in.ran = 0
			burst.Yield() // small frames are much work per byte, which the Feeder counts
		}
	}
	for i, s := range c.in.late {
		c.in.late[i] = nil
		if s.late {
			c.offer(s)
		}
	}
	if c.in.late = c.in.late[:0]; cap(c.in.late) > 64 {
		c.in.late = nil
	}
	return done, err
}

func (c *Conn) step(p []byte) (int, error) {
	in := &c.in
	switch {
	case in.part.open:
		return c.dataPiece(p), nil
	case in.skip > 0:
		n := min(in.skip, len(p))
		in.skip -= n
		return n, nil
	case len(in.hold) > 0:
		return c.refill(p)
	}
	size, err := c.unit(p)
	if err != nil {
		return 0, err
	}
	if size > len(p) {
		in.hold = append(in.hold, p...)
		if c.cfg.Requests != nil {
			in.since = time.Now()
		}
		return len(p), nil
	}
	return size, c.act(p[:size])
}

// refill adds to what is held as much as it is known to need.
func (c *Conn) refill(p []byte) (int, error) {
	in := &c.in
	size, err := c.unit(in.hold)
	if err != nil {
		return 0, err
	}
	if r := c.cfg.Requests; r != nil && time.Since(in.since) > r.headerTimeout() {
		return 0, violation(EnhanceYourCalm, "a frame takes longer than %v", r.headerTimeout())
	}
	n := min(size-len(in.hold), len(p))
	in.hold = append(in.hold, p[:n]...)
	size, err = c.unit(in.hold)
	if err != nil {
		return 0, err
	}
	if size > len(in.hold) {
		return n, nil
	}
	err = c.act(in.hold)
	in.hold = in.small[:0]
	return n, err
}

func headerOf(b []byte) http2.FrameHeader {
	return http2.FrameHeader{
		Length: uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]), Type: http2.FrameType(b[3]),
		Flags: http2.Flags(b[4]), StreamID: binary.BigEndian.Uint32(b[5:]) & maxWindow,
	}
}

// unit says how many bytes at the front of b are handled at once: of DATA and
// unknown frames the header, else the frame, a header block with its
// CONTINUATIONs. If that is more than b has, it is how many it takes to know
// more.
func (c *Conn) unit(b []byte) (int, error) {
	if c.in.phase == atPreface {
		return c.unitPreface(b)
	}
	if len(b) < frameHeader {
		return frameHeader, nil
	}
	fh := headerOf(b)
	switch {
	case fh.Length > c.cfg.FrameSize:
		return 0, violation(FrameSizeError, "frame over %d bytes", c.cfg.FrameSize)
	case c.in.phase == atSettings && (fh.Type != http2.FrameSettings || fh.Flags.Has(http2.FlagSettingsAck)):
		return 0, violation(ProtocolError, "first frame is %v, want SETTINGS", fh.Type)
	case fh.Type == http2.FrameData && fh.Flags.Has(http2.FlagDataPadded) && fh.Length > 0:
		return frameHeader + 1, nil
	case fh.Type == http2.FrameData, fh.Type > http2.FrameContinuation:
		return frameHeader, nil
	case fh.Length > maxControlFrame:
		return 0, violation(FrameSizeError, "%v frame of %d bytes, at most %d", fh.Type, fh.Length, maxControlFrame)
	}
	size := frameHeader + int(fh.Length)
	if fh.Type != http2.FrameHeaders || fh.Flags.Has(http2.FlagHeadersEndHeaders) {
		return size, nil
	}
	return unitBlock(fh, b, size)
}

// unitBlock is unit for a header block that goes on in CONTINUATIONs. It
// bounds what one may cost, empty ones too.
func unitBlock(first http2.FrameHeader, b []byte, size int) (int, error) {
	for frames := 1; ; frames++ {
		switch {
		case size > 2*maxControlFrame:
			return 0, violation(EnhanceYourCalm, "header block of more than %d bytes in frames", 2*maxControlFrame)
		case frames == maxBlockFrames:
			return 0, violation(EnhanceYourCalm, "header block of more than %d frames", maxBlockFrames)
		case len(b) < size+frameHeader:
			return size + frameHeader, nil
		}
		fh := headerOf(b[size:])
		switch {
		case fh.Type != http2.FrameContinuation:
			return 0, violation(ProtocolError, "got %v for stream %d; expected CONTINUATION following HEADERS for stream %d", fh.Type, fh.StreamID, first.StreamID)
		case fh.StreamID != first.StreamID:
			return 0, violation(ProtocolError, "got CONTINUATION for stream %d; expected stream %d", fh.StreamID, first.StreamID)
		case fh.Length > maxControlFrame:
			return 0, violation(FrameSizeError, "%v frame of %d bytes, at most %d", fh.Type, fh.Length, maxControlFrame)
		}
		size += frameHeader + int(fh.Length)
		if fh.Flags.Has(http2.FlagContinuationEndHeaders) {
			return size, nil
		}
	}
}

func (c *Conn) unitPreface(b []byte) (int, error) {
	n := min(len(b), len(http2.ClientPreface))
	if string(b[:n]) != http2.ClientPreface[:n] {
		return 0, notHTTP2(b[:n])
	}
	return len(http2.ClientPreface), nil
}

func notHTTP2(b []byte) error {
	return violation(ProtocolError, "not HTTP/2: connection begins with %q", b)
}

// act handles what unit has cut off.
func (c *Conn) act(b []byte) error {
	if c.in.phase == atPreface {
		c.in.phase = atSettings
		return nil
	}
	fh := headerOf(b)
	switch {
	case fh.Type == http2.FrameData:
		return c.startData(fh, b[frameHeader:])
	case fh.Type > http2.FrameContinuation:
		c.in.skip = int(fh.Length)
		return c.unknown(fh.Length)
	}
	if c.in.phase == atFrames {
		switch fh.Type {
		case http2.FrameHeaders:
			return c.headersFrame(fh, b)
		case http2.FrameWindowUpdate, http2.FrameRSTStream:
			return c.shortFrame(fh, b[frameHeader:])
		default: // the others are rare
		}
	}
	err := c.control(fh, b)
	if len(b) > 1024 {
		c.in.renew()
	}
	if err == nil && c.in.phase == atSettings {
		c.in.phase = atFrames
		c.readDeadline(time.Time{})
	}
	return err
}

// control reads one frame, or header block, and acts on it.
func (c *Conn) control(fh http2.FrameHeader, b []byte) error {
	c.in.src.Reset(b)
	f, err := c.in.fr.ReadFrame()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return violation(FrameSizeError, "%v frame of %d bytes is shorter than its flags say", fh.Type, fh.Length)
	}
	se, ofStream := errors.AsType[http2.StreamError](err)
	if err != nil && !ofStream {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.FramesIn++
	if c.err != nil {
		return nil // ended in order: only reading what is under way
	}
	if err := c.out.bounded(); err != nil {
		return err
	}
	if ofStream {
		return c.badFrame(fh, Code(se.Code), se.Error())
	}
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return c.onSettings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			return c.pong(f.Data)
		}
		c.out.ping(true, f.Data)
		c.kick()
		return c.guard.pings.spend(time.Now())
	case *http2.GoAwayFrame:
		return c.onGoAway(f)
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return c.badFrame(fh, ProtocolError, "stream depends on itself")
		}
		return c.guard.odd.spend(time.Now())
	case *http2.PushPromiseFrame:
		return violation(ProtocolError, "PUSH_PROMISE without leave")
	default:
		return c.guard.odd.spend(time.Now())
	}
}

// readAll feeds the parser until the connection ends.
func (c *Conn) readAll() error {
	if c.in.phase != atFrames {
		c.readDeadline(time.Now().Add(prefaceTimeout))
	}
	err := feedFrom(c.nc, c.feed)
	if err != nil {
		return err
	}
	switch in := &c.in; {
	case in.phase == atPreface && len(in.hold) > 0:
		return notHTTP2(in.hold)
	case !in.between():
		return fmt.Errorf("within a frame: %w", io.ErrUnexpectedEOF)
	}
	return io.EOF
}
