package conns

import "context"

// owner is a context with the connections that end with it. It has one hook on the context for all of them: one each would
// be several objects for each idle connection.
type owner struct {
	ctx    context.Context //nolint:containedctx // the life of the pod's connections
	first  *Live           // a list through Live.next and Live.prev
	unhook func() bool
}

// join puts l among those that end with ctx. The caller holds the table's lock.
func (t *Table) join(ctx context.Context, l *Live) {
	o := t.owners[ctx]
	if o == nil {
		o = &owner{ctx: ctx}
		t.owners[ctx] = o
		o.unhook = context.AfterFunc(ctx, func() { t.end(o) })
	}
	l.owner = o
	if l.next = o.first; l.next != nil {
		l.next.prev = l
	}
	o.first = l
}

// leave takes l out again; once, and with the table's lock.
func (t *Table) leave(l *Live) {
	o := l.owner
	if l.next != nil {
		l.next.prev = l.prev
	}
	switch {
	case l.prev != nil:
		l.prev.next = l.next
	case o.first == l:
		o.first = l.next
	}
	l.next, l.prev = nil, nil
	if o.first == nil && t.owners[o.ctx] == o {
		delete(t.owners, o.ctx)
		o.unhook()
	}
}

// end cancels all that end with o.
func (t *Table) end(o *owner) {
	cause := context.Cause(o.ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := o.first; l != nil; l = l.next {
		l.cancel(cause)
	}
}
