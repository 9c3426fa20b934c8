package conns

// Owners is how many contexts have connections.
func (t *Table) Owners() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.owners)
}
