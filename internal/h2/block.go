package h2

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// block is one header block, decoded. The Framer could do this, but makes
// twenty pieces of garbage for a CONNECT.
type block struct {
	id        uint32
	end       bool    // END_STREAM
	fields    []Field // the decoder's until the next block; pseudo-headers first
	pseudo    int     // how many of fields they are
	truncated bool    // there was more than the limit
	invalid   string  // what makes the stream wrong, "" if nothing does
	vain      bool    // nobody has use for it

	left int64  // of the limit
	raw  []byte // the fragments together
}

const (
	keptBlock  = 1024 // bytes of a block that stay allocated
	keptFields = 16
	// fieldOverhead is what RFC 9113 section 6.5.2 adds to each field.
	fieldOverhead = 32
)

// reset forgets the block before, and what of it was large.
func (k *block) reset() {
	clear(k.fields)
	if k.fields = k.fields[:0]; cap(k.fields) > keptFields {
		k.fields = nil
	}
	if k.raw = k.raw[:0]; cap(k.raw) > keptBlock {
		k.raw = nil
	}
	*k = block{fields: k.fields, raw: k.raw}
}

// emit takes one field from the decoder: RFC 9113 sections 8.2.1 and 8.3.
func (k *block) emit(dec *hpack.Decoder, f hpack.HeaderField) {
	size := int64(len(f.Name) + len(f.Value) + fieldOverhead)
	pseudo := strings.HasPrefix(f.Name, ":")
	switch {
	case !httpguts.ValidHeaderFieldValue(f.Value):
		k.invalid = fmt.Sprintf("invalid header field value for %q", f.Name) // the value may be a secret
	case pseudo && k.pseudo < len(k.fields):
		k.invalid = "pseudo header field after regular"
	case !pseudo && !validName(f.Name):
		k.invalid = fmt.Sprintf("invalid header field name %q", f.Name)
	case size > k.left:
		k.truncated, k.left = true, 0
	default:
		k.left -= size
		k.fields = append(k.fields, Field{Name: f.Name, Value: f.Value})
		if pseudo {
			k.pseudo++
		}
		return
	}
	dec.SetEmitEnabled(false)
}

// validName reports whether name is a lower-case token.
func validName(name string) bool {
	for i := range len(name) {
		if b := name[i]; b >= 'A' && b <= 'Z' || !httpguts.IsTokenRune(rune(b)) {
			return false
		}
	}
	return name != ""
}

// judgePseudo notes pseudo-headers that are unknown, double or mixed.
func (k *block) judgePseudo() {
	request, response := false, false
	for i, f := range k.fields[:k.pseudo] {
		switch f.Name {
		case ":method", ":path", ":scheme", ":authority", ":protocol":
			request = true
		case ":status":
			response = true
		default:
			k.invalid = fmt.Sprintf("invalid pseudo-header %q", f.Name)
			return
		}
		for _, g := range k.fields[:i] {
			if f.Name == g.Name {
				k.invalid = fmt.Sprintf("duplicate pseudo-header %q", f.Name)
				return
			}
		}
	}
	if request && response {
		k.invalid = "mix of request and response pseudo headers"
	}
}

// value is the pseudo-header's value, "" if there is none.
func (k *block) value(name string) string {
	for _, f := range k.fields[:k.pseudo] {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

func (k *block) has(name string) bool {
	for _, f := range k.fields[:k.pseudo] {
		if f.Name == name {
			return true
		}
	}
	return false
}

// keep is the fields for whoever needs them longer.
func (k *block) keep() []Field { return append(make([]Field, 0, len(k.fields)), k.fields...) }

// waste is how many of the block's bytes we have decoded for nothing: all, or
// what the fields do not explain, such as changes of the table's size. The
// longest code of a byte has 30 bits.
func (k *block) waste(limit uint32) int64 {
	if k.vain || k.truncated || k.invalid != "" {
		return int64(len(k.raw))
	}
	return max(0, int64(len(k.raw))-4*(int64(limit)-k.left))
}

// join collects the fragments of HEADERS and CONTINUATIONs, which are whole.
func (k *block) join(fh http2.FrameHeader, b []byte) error {
	p := b[frameHeader : frameHeader+int(fh.Length)]
	if fh.StreamID == 0 {
		return violation(ProtocolError, "HEADERS frame with stream ID 0")
	}
	pad := 0
	need := 0
	if fh.Flags.Has(http2.FlagHeadersPadded) {
		need++
	}
	if fh.Flags.Has(http2.FlagHeadersPriority) {
		need += 5
	}
	if len(p) < need {
		return violation(FrameSizeError, "HEADERS frame of %d bytes is shorter than its flags say", fh.Length)
	}
	if fh.Flags.Has(http2.FlagHeadersPadded) {
		pad = int(p[0])
	}
	// Priorities mean nothing here (RFC 9113, 5.3.2), but for the one that RFC 7540 forbids.
	if fh.Flags.Has(http2.FlagHeadersPriority) && binary.BigEndian.Uint32(p[need-5:])&(1<<31-1) == fh.StreamID {
		k.invalid = "stream depends on itself"
	}
	p = p[need:]
	if pad > len(p) {
		return violation(ProtocolError, "HEADERS padding of %d bytes in %d", pad, len(p))
	}
	k.raw = append(k.raw, p[:len(p)-pad]...)
	for b = b[frameHeader+int(fh.Length):]; len(b) > 0; {
		n := frameHeader + int(headerOf(b).Length)
		k.raw = append(k.raw, b[frameHeader:n]...)
		b = b[n:]
	}
	return nil
}

// decode reads the header block at b, which is whole. What it says is valid
// until the next one.
func (in *input) decode(fh http2.FrameHeader, b []byte, limit uint32) (*block, error) {
	k := &in.block
	k.reset()
	k.id, k.end, k.left = fh.StreamID, fh.Flags.Has(http2.FlagHeadersEndStream), int64(limit)
	if err := k.join(fh, b); err != nil {
		return nil, err
	}
	if int64(len(k.raw)) > 4*int64(limit) {
		return nil, violation(ProtocolError, "header block of %d bytes, the limit of the list is %d", len(k.raw), limit)
	}
	in.dec.SetEmitEnabled(true)
	_, err := in.dec.Write(k.raw)
	if err == nil {
		err = in.dec.Close()
	}
	if err != nil {
		return nil, violation(Compression, "%v", err)
	}
	if k.invalid == "" {
		k.judgePseudo()
	}
	return k, nil
}

// headersFrame handles HEADERS with its CONTINUATIONs.
func (c *Conn) headersFrame(fh http2.FrameHeader, b []byte) error {
	defer c.in.block.reset() // or an idle connection would keep a large one
	k, err := c.in.decode(fh, b, c.cfg.MaxHeaderList)
	if err != nil {
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
	if k.invalid != "" {
		err = c.badFrame(fh, ProtocolError, k.invalid)
	} else {
		err = c.onHeaders(k)
	}
	if n := k.waste(c.cfg.MaxHeaderList); err == nil && n > 0 {
		err = c.guard.headers.take(time.Now(), float64(n))
	}
	return err
}

// shortFrame handles the frames of four bytes, for which the Framer makes
// garbage although they come with every stream.
func (c *Conn) shortFrame(fh http2.FrameHeader, b []byte) error {
	if len(b) != 4 {
		return violation(FrameSizeError, "%v frame of %d bytes, want 4", fh.Type, len(b))
	}
	value := binary.BigEndian.Uint32(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.FramesIn++
	if c.err != nil {
		return nil
	}
	if err := c.out.bounded(); err != nil {
		return err
	}
	if fh.Type == http2.FrameWindowUpdate {
		return c.onWindowUpdate(fh.StreamID, int64(value&maxWindow))
	}
	return c.onReset(fh.StreamID, Code(value))
}
