package upstream

// Locality is where a host of this cluster is; the zero value when nobody said it.
func (c *Cluster) Locality(h *Host) Group {
	if c.list == nil || h.Group < 0 || h.Group >= len(c.list.Groups) {
		return Group{}
	}
	return c.list.Groups[h.Group]
}
