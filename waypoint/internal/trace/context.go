package trace

import (
	"encoding/hex"
	"net/http"
	"strings"
)

// ID names a trace; zero is none.
type ID [16]byte

// SpanID names a span; zero is none.
type SpanID [8]byte

func (t ID) String() string     { return hex.EncodeToString(t[:]) }
func (s SpanID) String() string { return hex.EncodeToString(s[:]) }

// Context is what one hop tells the next.
type Context struct {
	Trace   ID
	Span    SpanID // the sender's
	Parent  SpanID // the sender's parent, where the form has it
	Sampled bool
	Open    bool   // the sender left the sampling to us
	Debug   bool   // B3: sampled by all means
	Short   bool   // B3: the trace id has 64 bits
	State   string // W3C's tracestate, as it came
}

// Form is how a context is written into headers.
type Form uint8

// The forms; they are a set.
const (
	W3C Form = 1 << iota // traceparent and tracestate
	B3                   // x-b3-*; b3 is read too
)

const (
	maxState  = 512 // bytes of tracestate that are passed on
	hexTrace  = 32
	hexSpan   = 16
	parentLen = 2 + 1 + hexTrace + 1 + hexSpan + 1 + 2
)

// Extract reads the context of a request; B3 goes before W3C where both are meant. ok is false when there is none that is well formed.
func Extract(h http.Header, f Form) (c Context, ok bool) {
	if f&B3 != 0 {
		if c, ok = extractB3(h); ok {
			return c, true
		}
	}
	if f&W3C != 0 {
		return extractW3C(h)
	}
	return Context{}, false
}

func extractW3C(h http.Header) (c Context, ok bool) {
	vs := h["Traceparent"]
	if len(vs) != 1 || len(vs[0]) < parentLen {
		return c, false
	}
	v := vs[0]
	version, known := hexByte(v[:2])
	if !known || version == 0xff || version == 0 && len(v) != parentLen || len(v) > parentLen && v[parentLen] != '-' {
		return c, false
	}
	if v[2] != '-' || v[35] != '-' || v[52] != '-' || !lowerHex(c.Trace[:], v[3:35]) || !lowerHex(c.Span[:], v[36:52]) {
		return Context{}, false
	}
	flags, known := hexByte(v[53:55])
	if !known || c.Trace == (ID{}) || c.Span == (SpanID{}) {
		return Context{}, false
	}
	c.Sampled = flags&1 != 0
	if state := strings.Join(h["Tracestate"], ","); len(state) <= maxState {
		c.State = state
	}
	return c, true
}

func extractB3(h http.Header) (c Context, ok bool) {
	if v := h.Get("B3"); v != "" {
		return parseB3(v)
	}
	id, span := h.Get("X-B3-Traceid"), h.Get("X-B3-Spanid")
	if !c.traceID(id) || !lowerHex(c.Span[:], strings.ToLower(span)) || c.Span == (SpanID{}) {
		return Context{}, false
	}
	if p := h.Get("X-B3-Parentspanid"); p != "" && !lowerHex(c.Parent[:], strings.ToLower(p)) {
		return Context{}, false
	}
	c.Debug = h.Get("X-B3-Flags") == "1"
	return c, c.decision(h.Get("X-B3-Sampled"))
}

// parseB3 reads {trace}-{span}[-{sampled}[-{parent}]]. A decision alone is no context.
func parseB3(v string) (c Context, ok bool) {
	parts := strings.Split(v, "-")
	if len(parts) < 2 || len(parts) > 4 || !c.traceID(parts[0]) || !lowerHex(c.Span[:], strings.ToLower(parts[1])) || c.Span == (SpanID{}) {
		return Context{}, false
	}
	if len(parts) == 4 && !lowerHex(c.Parent[:], strings.ToLower(parts[3])) {
		return Context{}, false
	}
	said := ""
	if len(parts) > 2 {
		said = parts[2]
		c.Debug = said == "d"
	}
	return c, c.decision(said)
}

func (c *Context) traceID(s string) bool {
	s = strings.ToLower(s)
	switch len(s) {
	case hexTrace:
		return lowerHex(c.Trace[:], s) && c.Trace != ID{}
	case hexSpan:
		c.Short = true
		return lowerHex(c.Trace[8:], s) && c.Trace != ID{}
	}
	return false
}

// decision reads B3's sampled; absent leaves it to the receiver.
func (c *Context) decision(s string) bool {
	switch s {
	case "1", "true", "d":
		c.Sampled = true
	case "0", "false":
	case "":
		c.Open = !c.Debug
	default:
		return false
	}
	c.Sampled = c.Sampled || c.Debug
	return true
}

// Inject writes the context for the next hop, in place of what the headers say.
func (c *Context) Inject(h http.Header, f Form) {
	if f&W3C != 0 {
		flags := "-00"
		if c.Sampled {
			flags = "-01"
		}
		h["Traceparent"] = []string{"00-" + c.Trace.String() + "-" + c.Span.String() + flags}
		delete(h, "Tracestate")
		if c.State != "" {
			h["Tracestate"] = []string{c.State}
		}
	}
	if f&B3 == 0 {
		return
	}
	id := c.Trace.String()
	if c.Short {
		id = id[hexSpan:]
	}
	delete(h, "B3")
	h["X-B3-Traceid"], h["X-B3-Spanid"] = []string{id}, []string{c.Span.String()}
	delete(h, "X-B3-Parentspanid")
	if c.Parent != (SpanID{}) {
		h["X-B3-Parentspanid"] = []string{c.Parent.String()}
	}
	said := "0"
	if c.Sampled {
		said = "1"
	}
	h["X-B3-Sampled"] = []string{said}
	if !c.Debug {
		delete(h, "X-B3-Flags")
	}
}

// lowerHex reads exactly the bytes of into from lower case digits.
func lowerHex(into []byte, s string) bool {
	if len(s) != 2*len(into) || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.Decode(into, []byte(s))
	return err == nil
}

func hexByte(s string) (byte, bool) {
	var b [1]byte
	ok := lowerHex(b[:], s)
	return b[0], ok
}
