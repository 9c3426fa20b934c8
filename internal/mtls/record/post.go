package record

import (
	"fmt"
	"time"
)

const (
	msgTicket = 4
	msgUpdate = 24
	headSize  = 4 // of a handshake message: type and length

	// maxTickets bounds what a server may send of tickets in all, headers
	// included; they are thrown away as they come.
	maxTickets = 256 << 10

	// A peer may update its keys so often at once, and once per updateEvery
	// in the long run. Each costs us a key schedule and perhaps an answer.
	updatesAtOnce = 64
	updateEvery   = 100 * time.Millisecond
)

// post are the peer's messages after the handshake, which may come in pieces.
type post struct {
	client  bool // our role
	head    [headSize]byte
	have    int // bytes of head
	skip    int // bytes of a ticket still to come
	tickets int // bytes of tickets so far
	updates bucket
}

// pending reports whether a message has begun and not ended.
func (p *post) pending() bool { return p.have > 0 || p.skip > 0 }

// bucket limits what may be done per time.
type bucket struct {
	left int
	at   time.Time
}

func (b *bucket) take(now time.Time) bool {
	if n := int(now.Sub(b.at) / updateEvery); n > 0 {
		b.left, b.at = min(b.left+n, updatesAtOnce), now
	}
	b.left--
	return b.left >= 0
}

func (c *Conn) onAlert(p []byte) {
	if len(p) != 2 {
		c.fatal(decodeError, fmt.Sprintf("alert of %d bytes, want 2", len(p)))
		return
	}
	switch p[1] {
	case byte(closeNotify):
		c.in.err = errEnd
	case byte(userCanceled): // close_notify follows
	default:
		c.lost(p[1])
	}
}

// onHandshake takes a record's part of handshake messages.
func (c *Conn) onHandshake(p []byte) {
	if len(p) == 0 {
		c.fatal(unexpectedMessage, "empty handshake record")
		return
	}
	m := &c.in.post
	for len(p) > 0 && c.in.err == nil {
		if m.skip > 0 {
			n := min(m.skip, len(p))
			m.skip -= n
			p = p[n:]
			continue
		}
		n := copy(m.head[m.have:], p)
		m.have += n
		if p = p[n:]; m.have == headSize {
			p = c.onMessage(p)
		}
	}
}

// onMessage acts on a message whose head is there; p is what follows it in
// the record. It returns what follows the message.
func (c *Conn) onMessage(p []byte) []byte {
	m := &c.in.post
	size := int(m.head[1])<<16 | int(m.head[2])<<8 | int(m.head[3])
	switch kind := m.head[0]; {
	case kind == msgTicket && m.client:
		m.have, m.skip = 0, size
		if m.tickets += headSize + size; m.tickets > maxTickets {
			c.fatal(unexpectedMessage, fmt.Sprintf("%d bytes of session tickets, at most %d", m.tickets, maxTickets))
		}
	case kind == msgUpdate && size != 1:
		c.fatal(decodeError, fmt.Sprintf("KeyUpdate of %d bytes, want 1", size))
	case kind == msgUpdate && len(p) == 0: // its body comes with the next record
	case kind == msgUpdate && len(p) > 1:
		c.fatal(unexpectedMessage, "KeyUpdate is not the end of its record")
	case kind == msgUpdate:
		m.have = 0
		c.onUpdate(p[0])
		return nil
	default:
		c.fatal(unexpectedMessage, fmt.Sprintf("handshake message of type %d after the handshake", kind))
	}
	return p
}

func (c *Conn) onUpdate(request byte) {
	if request > 1 {
		c.fatal(illegalParameter, fmt.Sprintf("KeyUpdate asks for %d, want 0 or 1", request))
		return
	}
	if !c.in.post.updates.take(time.Now()) {
		c.fatal(unexpectedMessage, fmt.Sprintf("more than %d key updates in a short time", updatesAtOnce))
		return
	}
	if err := c.in.next(); err != nil {
		c.fatal(internalError, err.Error())
		return
	}
	if request == 1 {
		c.owe(oweAnswer)
	}
}
