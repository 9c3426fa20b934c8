package trace

import (
	"net/http"
	"strconv"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// Reason is why a request is traced, or that it is not.
type Reason byte

// Reasons, by the digit that stands for each in a request id.
const (
	NotTraced     Reason = '4'
	Sampled       Reason = '9'
	ServiceForced Reason = 'a'
	ClientForced  Reason = 'b'
)

const (
	uuidLen  = 36
	reasonAt = 14 // where a UUID has its version
	sampleOf = 10000
)

// Decide says whether a request without a context is traced. The draw is the request id's own, so that all hops draw alike; the id gets
// the digit of the decision when it is to carry it.
func (c *Config) Decide(h http.Header, rnd match.Rand) Reason {
	if !c.ByRequestID {
		if c.Random.Hit(rnd) && c.Overall.Hit(rnd) {
			return Sampled
		}
		return NotTraced
	}
	id := h.Get("X-Request-Id")
	if len(id) != uuidLen {
		return NotTraced
	}
	n, err := strconv.ParseUint(id[:8], 16, 32)
	if err != nil {
		return NotTraced
	}
	draw := func(of uint64) uint64 { return n % sampleOf * of / sampleOf }
	r := Reason(id[reasonAt])
	switch r {
	case Sampled, ServiceForced, ClientForced:
	default:
		r = NotTraced
		switch {
		case h.Get("X-Client-Trace-Id") != "" && c.Client.Hit(draw):
			r = ClientForced
		case h.Get("X-Envoy-Force-Trace") != "":
			r = ServiceForced
		case c.Random.Hit(draw):
			r = Sampled
		}
	}
	if r != NotTraced && !c.Overall.Hit(draw) {
		r = NotTraced
	}
	if c.PackReason && id[reasonAt] != byte(r) && packable(id[reasonAt]) {
		h.Set("X-Request-Id", id[:reasonAt]+string(byte(r))+id[reasonAt+1:])
	}
	return r
}

// packable says that a digit may be a decision of ours: other versions of UUIDs are left as they are.
func packable(b byte) bool {
	switch Reason(b) {
	case NotTraced, Sampled, ServiceForced, ClientForced:
		return true
	}
	return false
}

// Begin is a server's part of a trace: its own context, and whether a client's was there.
func (c *Config) Begin(h http.Header, rnd match.Rand) (own Context, remote bool) {
	reason := c.Decide(h, rnd)
	in, ok := Extract(h, c.Extract)
	if !ok {
		own = Context{Sampled: reason != NotTraced, Short: c.Short}
		put(own.Trace[8:], rnd)
		if !c.Short {
			put(own.Trace[:8], rnd)
		}
		put(own.Span[:], rnd)
		return own, false
	}
	own = in
	if in.Open {
		own.Sampled, own.Open = reason != NotTraced, false
	}
	if c.Shared {
		return own, true
	}
	own.Parent = in.Span
	put(own.Span[:], rnd)
	return own, true
}

// Child is the context of a span below c.
func (c Context) Child(rnd match.Rand) Context {
	c.Parent = c.Span
	put(c.Span[:], rnd)
	return c
}

// put fills b with a random number that is not zero.
func put(b []byte, rnd match.Rand) {
	const half = 1 << 32
	v := rnd(half)<<32 | rnd(half)
	if v == 0 {
		v = 1
	}
	for i := range b {
		b[i] = byte(v >> (8 * (7 - i)))
	}
}
