package h2

import "sync"

// slabSize is one piece of a stream's unread bytes; small frames share one.
const slabSize = 64 << 10

type slab struct {
	buf  [slabSize]byte
	r, w int
	next *slab
}

//nolint:gochecknoglobals // free lists have no state that anybody can observe
var (
	slabs   = sync.Pool{New: func() any { return new(slab) }}
	outputs = sync.Pool{New: func() any { b := make([]byte, 0, 32<<10); return &b }}
)

func (s *slab) free() {
	s.r, s.w, s.next = 0, 0, nil
	slabs.Put(s)
}

// queue is the unread bytes of a stream. Empty, it holds no memory.
type queue struct {
	head, tail *slab
	size       int
}

func (q *queue) push(p []byte) {
	q.size += len(p)
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == slabSize {
			s := slabs.Get().(*slab)
			if q.tail == nil {
				q.head = s
			} else {
				q.tail.next = s
			}
			q.tail = s
		}
		n := copy(q.tail.buf[q.tail.w:], p)
		q.tail.w += n
		p = p[n:]
	}
}

func (q *queue) read(p []byte) int {
	total := 0
	for len(p) > 0 && q.head != nil {
		n := copy(p, q.head.buf[q.head.r:q.head.w])
		q.head.r += n
		total += n
		p = p[n:]
		if q.head.r == q.head.w {
			q.pop().free()
		}
	}
	q.size -= total
	return total
}

// take removes the first slab; the caller frees it.
func (q *queue) take() *slab {
	s := q.pop()
	q.size -= s.w - s.r
	return s
}

func (q *queue) pop() *slab {
	s := q.head
	q.head = s.next
	if q.head == nil {
		q.tail = nil
	}
	return s
}

// drop forgets everything and says how much it was.
func (q *queue) drop() int {
	n := q.size
	for q.head != nil {
		q.pop().free()
	}
	q.size = 0
	return n
}
