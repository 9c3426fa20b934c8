package burst

import (
	"fmt"
	"sync"
	"sync/atomic"
)

const (
	// Head is how many bytes of a slab are in front of its data.
	Head = 16
	// Tail is how many bytes of a slab are behind its data.
	Tail = 64
	// MaxRead is the largest single read of a Feeder that has neighbours.
	MaxRead = 256<<10 - Head - Tail
	// MaxAlone is the largest single read of a Feeder that has none.
	MaxAlone = 1<<20 - Head - Tail
	// Max is the largest size that Get takes.
	Max = 1280<<10 - Head - Tail
)

// Slab is pooled memory; its data live in B[Head:len(B)-Tail].
type Slab struct {
	B     []byte
	class uint8
}

// classes are whole sizes, Head and Tail included: what the allocator rounds
// to anyway.
//
//nolint:gochecknoglobals // a constant, but for the type
var classes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 320 << 10, 1 << 20, 1280 << 10}

//nolint:gochecknoglobals // free lists have no state that anybody can act on
var (
	pools [len(classes)]sync.Pool
	out   atomic.Int64
	big   atomic.Int64 // of them, larger than MaxRead asks for
)

// firstBig is the first class beyond what MaxRead takes, with a frame's room.
const firstBig = 5

// Get returns a slab with room for at least size bytes, at most Max. Its
// content is undefined.
func Get(size int) *Slab {
	for class, whole := range classes {
		if size > whole-Head-Tail {
			continue
		}
		out.Add(1)
		if class >= firstBig {
			big.Add(1)
		}
		if s, ok := pools[class].Get().(*Slab); ok {
			return s
		}
		return &Slab{B: make([]byte, whole), class: uint8(class)}
	}
	panic(fmt.Sprintf("burst: slab of %d bytes asked for, at most %d", size, Max))
}

// Free gives the slab back; the caller must not touch it any more.
func (s *Slab) Free() {
	out.Add(-1)
	if s.class >= firstBig {
		big.Add(-1)
	}
	pools[s.class].Put(s)
}

// Room is how many bytes of data the slab has room for.
func (s *Slab) Room() int { return len(s.B) - Head - Tail }

// Out is how many slabs are in use in the whole process.
func Out() int64 { return out.Load() }
