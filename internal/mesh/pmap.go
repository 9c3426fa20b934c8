package mesh

import (
	"hash/maphash"
	"iter"
	"math/bits"
)

// pmap is a persistent hash map: a trie of 32-way nodes over the key's hash.
// A copy costs nothing; a change copies only the nodes on the key's path, and
// within one batch (an *owner) each node at most once.
type pmap[K comparable, V any] struct {
	root *pnode[K, V]
	size int
	seed maphash.Seed
}

// owner marks the nodes that a batch made itself and may therefore still change.
// It must not be of zero size: two owners must have two addresses.
type owner struct{ _ byte }

const (
	pbits = 5
	pmask = 1<<pbits - 1
	// pdepth levels use up all 64 bits of the hash; below them lie plain lists.
	pdepth = (64 + pbits - 1) / pbits
)

// pnode holds children and entries, each in a compact slice ordered by slot.
// Invariant: kids and leaves have no common bit; len(kid) and len(leaf) are the bit counts (TestMapAgainstBuiltin).
type pnode[K comparable, V any] struct {
	owner  *owner
	kids   uint32
	leaves uint32
	kid    []*pnode[K, V]
	leaf   []pentry[K, V]
}

type pentry[K comparable, V any] struct {
	key K
	val V
}

func newMap[K comparable, V any](seed maphash.Seed) pmap[K, V] { return pmap[K, V]{seed: seed} }

func (m pmap[K, V]) hash(k K) uint64 { return maphash.Comparable(m.seed, k) }

func (m pmap[K, V]) get(k K) (V, bool) {
	n, h := m.root, m.hash(k)
	for depth := 0; n != nil; depth++ {
		if depth == pdepth {
			for i := range n.leaf {
				if n.leaf[i].key == k {
					return n.leaf[i].val, true
				}
			}
			break
		}
		bit := uint32(1) << (h & pmask)
		h >>= pbits
		if n.leaves&bit != 0 {
			e := &n.leaf[bits.OnesCount32(n.leaves&(bit-1))]
			if e.key == k {
				return e.val, true
			}
			break
		}
		if n.kids&bit == 0 {
			break
		}
		n = n.kid[bits.OnesCount32(n.kids&(bit-1))]
	}
	var zero V
	return zero, false
}

// set stores a value; nodes not owned by o are copied first.
func (m *pmap[K, V]) set(o *owner, k K, v V) {
	if m.root == nil {
		m.root = &pnode[K, V]{owner: o}
	}
	var added bool
	m.root, added = m.root.set(m, o, 0, m.hash(k), pentry[K, V]{k, v})
	if added {
		m.size++
	}
}

// del forgets a key.
func (m *pmap[K, V]) del(o *owner, k K) {
	if m.root == nil {
		return
	}
	if _, ok := m.get(k); !ok {
		return
	}
	m.size--
	m.root = m.root.del(o, 0, m.hash(k), k)
}

func (n *pnode[K, V]) editable(o *owner) *pnode[K, V] {
	if n.owner == o {
		return n
	}
	return &pnode[K, V]{
		owner: o, kids: n.kids, leaves: n.leaves,
		kid:  append([]*pnode[K, V](nil), n.kid...),
		leaf: append([]pentry[K, V](nil), n.leaf...),
	}
}

func (n *pnode[K, V]) set(m *pmap[K, V], o *owner, depth int, h uint64, e pentry[K, V]) (*pnode[K, V], bool) {
	n = n.editable(o)
	if depth == pdepth {
		for i := range n.leaf {
			if n.leaf[i].key == e.key {
				n.leaf[i].val = e.val
				return n, false
			}
		}
		n.leaf = append(n.leaf, e)
		return n, true
	}
	bit := uint32(1) << (h & pmask)
	at := bits.OnesCount32(n.leaves & (bit - 1))
	below := bits.OnesCount32(n.kids & (bit - 1))
	switch {
	case n.kids&bit != 0:
		child, added := n.kid[below].set(m, o, depth+1, h>>pbits, e)
		n.kid[below] = child
		return n, added
	case n.leaves&bit == 0:
		n.leaves |= bit
		n.leaf = insertAt(n.leaf, at, e)
		return n, true
	case n.leaf[at].key == e.key:
		n.leaf[at].val = e.val
		return n, false
	}
	// Two keys want the slot: both move one level down.
	old := n.leaf[at]
	n.leaves &^= bit
	n.leaf = removeAt(n.leaf, at)
	child := &pnode[K, V]{owner: o}
	child, _ = child.set(m, o, depth+1, m.hash(old.key)>>uint(pbits*(depth+1)), old)
	child, _ = child.set(m, o, depth+1, h>>pbits, e)
	n.kids |= bit
	n.kid = insertAt(n.kid, below, child)
	return n, true
}

// del removes a key that is known to be there; nil means that nothing is left of the node.
func (n *pnode[K, V]) del(o *owner, depth int, h uint64, k K) *pnode[K, V] {
	n = n.editable(o)
	if depth == pdepth {
		for i := range n.leaf {
			if n.leaf[i].key == k {
				n.leaf = removeAt(n.leaf, i)
				break
			}
		}
		return n.orNil()
	}
	bit := uint32(1) << (h & pmask)
	if n.leaves&bit != 0 {
		n.leaf = removeAt(n.leaf, bits.OnesCount32(n.leaves&(bit-1)))
		n.leaves &^= bit
		return n.orNil()
	}
	below := bits.OnesCount32(n.kids & (bit - 1))
	if child := n.kid[below].del(o, depth+1, h>>pbits, k); child != nil {
		n.kid[below] = child
		return n
	}
	n.kid = removeAt(n.kid, below)
	n.kids &^= bit
	return n.orNil()
}

func (n *pnode[K, V]) orNil() *pnode[K, V] {
	if len(n.kid) == 0 && len(n.leaf) == 0 {
		return nil
	}
	return n
}

func insertAt[T any](s []T, i int, v T) []T {
	var zero T
	s = append(s, zero)
	copy(s[i+1:], s[i:])
	s[i] = v
	return s
}

func removeAt[T any](s []T, i int) []T {
	copy(s[i:], s[i+1:])
	var zero T
	s[len(s)-1] = zero
	return s[:len(s)-1]
}

// all yields the entries in no useful order.
func (m pmap[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if m.root != nil {
			m.root.all(yield)
		}
	}
}

func (n *pnode[K, V]) all(yield func(K, V) bool) bool {
	for i := range n.leaf {
		if !yield(n.leaf[i].key, n.leaf[i].val) {
			return false
		}
	}
	for _, k := range n.kid {
		if !k.all(yield) {
			return false
		}
	}
	return true
}
