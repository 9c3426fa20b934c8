package load

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
)

// Frames and flags of HTTP/2 that this load knows.
const (
	frameData         = 0
	frameHeaders      = 1
	frameReset        = 3
	frameSettings     = 4
	framePing         = 6
	frameGoAway       = 7
	frameWindowUpdate = 8

	flagEnd        = 1
	flagAck        = 1
	flagEndHeaders = 4

	frameHead     = 9
	settingWindow = 4
	firstWindow   = 65535
	largeWindow   = 1 << 20
	preface       = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// indexed200 is ":status: 200" as every encoder writes it.
const indexed200 = 0x88

func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

func appendUpdate(b []byte, stream, n uint32) []byte {
	return appendFrame(b, frameWindowUpdate, 0, stream, binary.BigEndian.AppendUint32(nil, n))
}

// appendHello is what both ends begin with: large windows.
func appendHello(b []byte) []byte {
	setting := binary.BigEndian.AppendUint32([]byte{0, settingWindow}, largeWindow)
	return appendUpdate(appendFrame(b, frameSettings, 0, 0, setting), 0, largeWindow-firstWindow)
}

// literal writes a field that no table keeps; index is the name's in the
// static table, 0 = the name is written. Names and values are short.
func literal(b []byte, index int, name, value string) []byte {
	const prefix = 15
	switch {
	case index == 0:
		b = append(append(b, 0, byte(len(name))), name...)
	case index < prefix:
		b = append(b, byte(index))
	default:
		b = append(b, prefix, byte(index-prefix))
	}
	return append(append(b, byte(len(value))), value...)
}

// wire2 is one end of a connection.
type wire2 struct {
	c        net.Conn
	buf      []byte
	from, to int    // what was read and not used
	send     int64  // window that the peer gave the connection
	taken    uint32 // bytes of DATA not given back yet
	out      []byte // to write
}

func newWire2(c net.Conn, seen []byte) *wire2 {
	w := &wire2{c: c, buf: make([]byte, 64<<10), send: firstWindow}
	w.to = copy(w.buf, seen)
	return w
}

func (w *wire2) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	_, err := w.c.Write(w.out)
	w.out = w.out[:0]
	return err
}

// ready says whether a whole frame is there.
func (w *wire2) ready() bool {
	have := w.to - w.from
	return have >= frameHead && have >= frameHead+length24(w.buf[w.from:])
}

func length24(b []byte) int { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }

var errLargeFrame = errors.New("a frame larger than was allowed")

// next reads a frame. The payload is good until the next call.
func (w *wire2) next() (kind, flags byte, stream uint32, payload []byte, err error) {
	for !w.ready() {
		if w.from > 0 {
			w.to = copy(w.buf, w.buf[w.from:w.to])
			w.from = 0
		}
		if w.to == len(w.buf) {
			return 0, 0, 0, nil, errLargeFrame
		}
		n, err := w.c.Read(w.buf[w.to:])
		if err != nil {
			return 0, 0, 0, nil, err
		}
		w.to += n
	}
	b := w.buf[w.from:w.to]
	n := length24(b)
	w.from += frameHead + n
	return b[3], b[4], binary.BigEndian.Uint32(b[5:]) & (1<<31 - 1), b[frameHead : frameHead+n], nil
}

// common handles what both ends answer alike.
func (w *wire2) common(kind, flags byte, stream uint32, payload []byte) error {
	switch kind {
	case frameSettings:
		if flags&flagAck == 0 {
			w.out = appendFrame(w.out, frameSettings, flagAck, 0, nil)
		}
	case framePing:
		if flags&flagAck == 0 {
			w.out = appendFrame(w.out, framePing, flagAck, 0, payload)
		}
	case frameWindowUpdate:
		if stream == 0 && len(payload) == 4 {
			w.send += int64(binary.BigEndian.Uint32(payload))
		}
	case frameData:
		if w.taken += uint32(len(payload)); w.taken > largeWindow/2 {
			w.out = appendUpdate(w.out, 0, w.taken)
			w.taken = 0
		}
	case frameGoAway:
		return wrongAnswer("the peer goes away: %q", payload)
	}
	return nil
}

// asker2 asks by HTTP/2, one stream at a time.
type asker2 struct {
	*wire2
	block   []byte // of the request's headers
	message []byte // of a call; nil = a GET
	want    int
	stream  uint32
}

func newAsker2(c net.Conn, s Spec) (*asker2, error) {
	a := &asker2{wire2: newWire2(c, nil), want: answerSize}
	const get, post, schemeHTTP, indexPath, indexAuthority, indexAgent, indexAccept, indexType = 0x82, 0x83, 0x86, 4, 1, 58, 19, 31
	method := byte(get)
	if s.Protocol == GRPC {
		method = post
	}
	b := []byte{method, schemeHTTP}
	b = literal(b, indexPath, "", s.path())
	b = literal(b, indexAuthority, "", s.Targets[0])
	b = literal(b, indexAgent, "", "marrow-perf")
	if s.Protocol == GRPC {
		b = literal(literal(b, indexType, "", "application/grpc"), 0, "te", "trailers")
		a.message, a.want = grpcMessage(), len(grpcMessage())
	} else {
		b = literal(b, indexAccept, "", "*/*")
	}
	a.block = b
	a.out = appendHello([]byte(preface))
	return a, a.flush()
}

func grpcMessage() []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, messageSize), make([]byte, messageSize)...)
}

func (a *asker2) moved() uint64 { return uint64(a.want + len(a.message)) }

func (a *asker2) ask() error {
	a.stream += 2
	id := a.stream - 1
	for a.send < int64(len(a.message)) {
		if err := a.serveOne(); err != nil {
			return err
		}
	}
	if a.message == nil {
		a.out = appendFrame(a.out, frameHeaders, flagEndHeaders|flagEnd, id, a.block)
	} else {
		a.out = appendFrame(a.out, frameHeaders, flagEndHeaders, id, a.block)
		a.out = appendFrame(a.out, frameData, flagEnd, id, a.message)
		a.send -= int64(len(a.message))
	}
	if err := a.flush(); err != nil {
		return err
	}
	got, headers := 0, 0
	for {
		kind, flags, stream, payload, err := a.next()
		if err == nil {
			err = a.common(kind, flags, stream, payload)
		}
		if err == nil && kind != frameData { // updates wait for the next request
			err = a.flush()
		}
		switch {
		case err != nil:
			return err
		case stream != id:
			continue
		case kind == frameReset:
			return wrongAnswer("reset with %x", payload)
		case kind == frameHeaders:
			if headers++; headers == 1 && (len(payload) == 0 || payload[0] != indexed200) {
				return wrongAnswer("headers begin with %x, want status 200", payload[:min(4, len(payload))])
			}
		case kind == frameData:
			got += len(payload)
		default:
			continue
		}
		if flags&flagEnd != 0 {
			if got != a.want {
				return wrongAnswer("%d bytes, want %d", got, a.want)
			}
			return nil
		}
	}
}

// serveOne handles one frame between requests.
func (a *asker2) serveOne() error {
	kind, flags, stream, payload, err := a.next()
	if err == nil {
		err = a.common(kind, flags, stream, payload)
	}
	if err == nil {
		err = a.flush()
	}
	return err
}

// serve2 answers by HTTP/2: a request without a body is a GET, one with a body
// is a call. The rest of the preface is still to come.
func serve2(c net.Conn, seen []byte) {
	w := newWire2(c, seen)
	const indexType, indexLength = 31, 28
	plain := literal(literal([]byte{indexed200}, indexType, "", "application/octet-stream"), indexLength, "", "1000")
	call := literal([]byte{indexed200}, indexType, "", "application/grpc")
	trailers := literal(nil, 0, "grpc-status", "0")
	body, message := make([]byte, answerSize), grpcMessage()
	for w.to < len(preface) {
		n, err := c.Read(w.buf[w.to:])
		if err != nil {
			return
		}
		w.to += n
	}
	w.from = len(preface)
	w.out = appendHello(nil)
	type answer struct {
		id uint32
		of byte // kind of the frame that ended the request
	}
	var waiting []answer // for the window
	for {
		if !w.ready() && w.flush() != nil {
			return
		}
		kind, flags, id, payload, err := w.next()
		if err != nil || w.common(kind, flags, id, payload) != nil {
			return
		}
		if flags&flagEnd != 0 && (kind == frameHeaders || kind == frameData) {
			waiting = append(waiting, answer{id, kind})
		}
		for len(waiting) > 0 && w.send >= answerSize {
			a := waiting[0]
			waiting = waiting[1:]
			if a.of == frameHeaders {
				w.out = appendFrame(w.out, frameHeaders, flagEndHeaders, a.id, plain)
				w.out = appendFrame(w.out, frameData, flagEnd, a.id, body)
				w.send -= int64(len(body))
				continue
			}
			w.out = appendFrame(w.out, frameHeaders, flagEndHeaders, a.id, call)
			w.out = appendFrame(w.out, frameData, 0, a.id, message)
			w.out = appendFrame(w.out, frameHeaders, flagEndHeaders|flagEnd, a.id, trailers)
			w.send -= int64(len(message))
		}
	}
}

// serveHTTP answers requests on a connection that began with seen.
func serveHTTP(c net.Conn, first byte) {
	seen := make([]byte, 4)
	seen[0] = first
	if _, err := io.ReadFull(c, seen[1:]); err != nil {
		return
	}
	if string(seen) == preface[:len(seen)] {
		serve2(c, seen)
		return
	}
	serve1(c, seen)
}
