package h2

import "github.com/marrowmesh/marrow/internal/burst"

// part is the used bytes of one slab.
type part struct {
	slab *burst.Slab
	r, w int // within the slab's data
}

func (p *part) bytes() []byte { return p.slab.B[burst.Head+p.r : burst.Head+p.w] }

// add copies as much of p as there is room for.
func (p *part) add(b []byte) int {
	n := copy(p.slab.B[burst.Head+p.w:len(p.slab.B)-burst.Tail], b)
	p.w += n
	return n
}

// largestPart is the slab that a queue takes when it has much.
const largestPart = 64<<10 - burst.Head - burst.Tail

// queue is bytes in order, in slabs. Empty, it holds no slab.
type queue struct {
	parts []part
	first int // parts before it are gone
	size  int
}

// push appends a copy of p: behind what the last slab holds, then in new ones
// that are larger the more is there, so that a byte does not cost 64 KiB and
// a megabyte does not cost 256 slabs.
func (q *queue) push(p []byte) {
	if len(q.parts) > q.first {
		last := &q.parts[len(q.parts)-1]
		n := last.add(p)
		q.size += n
		p = p[n:]
	}
	if q.first > 0 && len(q.parts) == cap(q.parts) {
		n := copy(q.parts, q.parts[q.first:])
		clear(q.parts[n:])
		q.parts, q.first = q.parts[:n], 0
	}
	for len(p) > 0 {
		q.parts = append(q.parts, part{slab: burst.Get(min(max(len(p), q.size), largestPart))})
		n := q.parts[len(q.parts)-1].add(p)
		q.size += n
		p = p[n:]
	}
}

func (q *queue) read(p []byte) int {
	total := 0
	for len(p) > 0 && q.first < len(q.parts) {
		front := &q.parts[q.first]
		n := copy(p, front.bytes())
		front.r += n
		total += n
		p = p[n:]
		if front.r == front.w {
			q.pop().slab.Free()
		}
	}
	q.size -= total
	return total
}

// take removes the first part; the caller frees its slab.
func (q *queue) take() part {
	p := q.pop()
	q.size -= p.w - p.r
	return p
}

// unread puts back what take has just taken.
func (q *queue) unread(p part) {
	q.size += p.w - p.r
	if q.first > 0 {
		q.first--
		q.parts[q.first] = p
		return
	}
	q.parts = append([]part{p}, q.parts...)
}

func (q *queue) pop() part {
	p := q.parts[q.first]
	q.parts[q.first] = part{}
	if q.first++; q.first == len(q.parts) {
		q.parts, q.first = q.parts[:0], 0
		if cap(q.parts) > 4 {
			q.parts = nil
		}
	}
	return p
}

// drop forgets everything and says how much it was.
func (q *queue) drop() int {
	n := q.size
	for q.first < len(q.parts) {
		q.pop().slab.Free()
	}
	q.size = 0
	return n
}
