package phases

import (
	"encoding/binary"
	"sync/atomic"
)

// messages counts the gRPC messages in a body as it passes: each is five bytes of head, which tell its length, and the rest.
type messages struct {
	n    atomic.Int64
	head [5]byte
	have int    // bytes of head
	left uint64 // bytes of the message that are still to come
}

// see takes the next piece of the body.
func (m *messages) see(p []byte) {
	for len(p) > 0 {
		if m.left > 0 {
			skip := min(m.left, uint64(len(p)))
			m.left, p = m.left-skip, p[skip:]
			continue
		}
		c := copy(m.head[m.have:], p)
		m.have, p = m.have+c, p[c:]
		if m.have == len(m.head) {
			m.have, m.left = 0, uint64(binary.BigEndian.Uint32(m.head[1:]))
			m.n.Add(1)
		}
	}
}
