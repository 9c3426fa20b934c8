package upstream

import "time"

// Result is how an attempt ended, as far as the endpoint's health goes.
type Result uint8

// The results.
const (
	Answered   Result = iota // with a status below 500
	ServerErr                // a 5xx other than a gateway's
	GatewayErr               // 502, 503 or 504
	LocalErr                 // no connection, a reset, a timeout
)

// ResultOf classifies an answer.
func ResultOf(status int) Result {
	switch {
	case status >= 502 && status <= 504:
		return GatewayErr
	case status >= 500:
		return ServerErr
	}
	return Answered
}

const (
	in5xx = iota
	inGateway
	inLocal
)

// Report tells how an attempt on h ended and takes h out of rotation if that is one failure too many.
func (c *Cluster) Report(h *Host, r Result) {
	o := c.Config.Outlier
	if o == nil {
		return
	}
	st := h.state
	st.mu.Lock()
	over := st.count(o, r)
	st.mu.Unlock()
	if over && c.mayEject(o) {
		now := c.store.now()
		st.mu.Lock()
		defer st.mu.Unlock()
		if now.Before(st.ejected) {
			return
		}
		st.times++
		st.ejected = now.Add(min(o.Base*time.Duration(st.times), o.Max))
		st.fails = [3]uint32{}
	}
}

// count updates the rows of failures and says whether one is full; the caller holds mu.
func (st *hostState) count(o *Outlier, r Result) bool {
	if r == Answered {
		st.fails = [3]uint32{}
		return false
	}
	if r == LocalErr && o.Split {
		st.fails[inLocal]++
		return o.ConsecutiveLocal > 0 && st.fails[inLocal] >= o.ConsecutiveLocal
	}
	st.fails[in5xx]++
	if r == ServerErr {
		st.fails[inGateway] = 0
	} else {
		st.fails[inGateway]++
	}
	return o.Consecutive5xx > 0 && st.fails[in5xx] >= o.Consecutive5xx ||
		o.ConsecutiveGateway > 0 && st.fails[inGateway] >= o.ConsecutiveGateway
}

// mayEject keeps the share of ejected hosts within the limit, though one may always go.
func (c *Cluster) mayEject(o *Outlier) bool {
	now, out := c.store.now(), 0
	for _, h := range c.Hosts {
		if !h.EjectedUntil(now).IsZero() {
			out++
		}
	}
	return out == 0 || (out+1)*100 <= int(o.MaxPercent)*len(c.Hosts)
}
