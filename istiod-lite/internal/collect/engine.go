package collect

// Engine runs derivations. Make one per pipeline with [NewEngine].
type Engine struct {
	steps []step // in the order of making, so that a step fetches only from earlier ones
	runs  map[string]int
}

// step is a derivation: what is left to do in it.
type step interface{ settle() }

// NewEngine returns an engine without tables.
func NewEngine() *Engine { return &Engine{runs: map[string]int{}} }

// Settle brings all derived tables up to date with the inputs.
func (e *Engine) Settle() {
	for _, s := range e.steps {
		s.settle()
	}
}

// Runs counts how often the functions of a derived table ran.
func (e *Engine) Runs(table string) int { return e.runs[table] }

// TotalRuns counts all runs.
func (e *Engine) TotalRuns() int {
	n := 0
	for _, r := range e.runs {
		n += r
	}
	return n
}

// Run is one computation of a derived row; it records what the computation fetches.
type Run struct{ cell *cell }

// cell is the memory of one key of one derivation.
type cell struct {
	mark  func() // puts the cell into its derivation's queue, once
	nodes []*node
}

// node stands for something that can be fetched: a row or a bucket, there or not.
type node struct {
	readers map[*cell]struct{}
	forget  func() // removes the node from its owner when nobody reads it any more
}

func (n *node) touch() {
	if n == nil {
		return
	}
	for c := range n.readers {
		c.mark()
	}
}

func (c *cell) read(n *node) {
	if _, known := n.readers[c]; known {
		return
	}
	n.readers[c] = struct{}{}
	c.nodes = append(c.nodes, n)
}

// release forgets what the last run fetched.
func (c *cell) release() {
	for _, n := range c.nodes {
		delete(n.readers, c)
		if len(n.readers) == 0 {
			n.forget()
		}
	}
	c.nodes = c.nodes[:0]
}

// nodes finds or makes the node of a key.
type nodes[K comparable] map[K]*node

func (m nodes[K]) get(k K) *node {
	n := m[k]
	if n == nil {
		n = &node{readers: map[*cell]struct{}{}, forget: func() { delete(m, k) }}
		m[k] = n
	}
	return n
}
