package websocket_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

// kinds of frames, by their opcodes.
const (
	more = 0x0
	text = 0x1
	blob = 0x2
	bye  = 0x8
	ping = 0x9
	pong = 0xa
)

// frame is one frame; masked ones have a key that is not zero.
type frame struct {
	last    bool
	kind    byte
	key     [4]byte
	payload []byte
}

// append adds the frame's bytes.
func (f frame) append(b []byte) []byte {
	first := f.kind
	if f.last {
		first |= 0x80
	}
	masked := byte(0)
	if f.key != [4]byte{} {
		masked = 0x80
	}
	b = append(b, first)
	switch n := len(f.payload); {
	case n <= 125:
		b = append(b, masked|byte(n))
	case n <= 65535:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), uint64(n))
	}
	if masked == 0 {
		return append(b, f.payload...)
	}
	b = append(b, f.key[:]...)
	for i, c := range f.payload {
		b = append(b, c^f.key[i%4])
	}
	return b
}

// readFrame reads one and takes its mask off.
func readFrame(r *bufio.Reader) (frame, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	f := frame{last: head[0]&0x80 != 0, kind: head[0] & 0x0f}
	n := uint64(head[1] & 0x7f)
	if more := map[uint64]int{126: 2, 127: 8}[n]; more > 0 {
		long := make([]byte, 8)
		if _, err := io.ReadFull(r, long[8-more:]); err != nil {
			return f, err
		}
		n = binary.BigEndian.Uint64(long)
	}
	if n > 2<<20 {
		return f, errors.New("the frame is larger than any that is sent here")
	}
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, f.key[:]); err != nil {
			return f, err
		}
	}
	f.payload = make([]byte, n)
	_, err := io.ReadFull(r, f.payload)
	for i := range f.payload {
		f.payload[i] ^= f.key[i%4]
	}
	return f, err
}

// TestFrameExamples are those of RFC 6455 section 5.7.
func TestFrameExamples(t *testing.T) {
	for _, c := range []struct {
		f    frame
		wire string
	}{
		{frame{last: true, kind: text, payload: []byte("Hello")}, "\x81\x05Hello"},
		{frame{last: true, kind: text, key: [4]byte{0x37, 0xfa, 0x21, 0x3d}, payload: []byte("Hello")}, "\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"},
		{frame{kind: text, payload: []byte("Hel")}, "\x01\x03Hel"},
		{frame{last: true, kind: more, payload: []byte("lo")}, "\x80\x02lo"},
		{frame{last: true, kind: blob, payload: make([]byte, 256)}, "\x82\x7e\x01\x00" + string(make([]byte, 256))},
		{frame{last: true, kind: blob, payload: make([]byte, 65536)}, "\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + string(make([]byte, 65536))},
	} {
		if got := c.f.append(nil); string(got) != c.wire {
			t.Errorf("%d bytes: % x", len(c.f.payload), got[:min(len(got), 20)])
		}
		got, err := readFrame(bufio.NewReader(bytes.NewReader([]byte(c.wire))))
		if err != nil || got.last != c.f.last || got.kind != c.f.kind || !bytes.Equal(got.payload, c.f.payload) {
			t.Errorf("read back: %+v, %v", got.kind, err)
		}
	}
}
