package inbound

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

const (
	// penaltyFirst is how long a peer is kept out that broke the rules for the
	// second time; each further time it is twice as long, at most penaltyMost.
	penaltyFirst = time.Second
	penaltyMost  = 30 * time.Second
	// penaltyMemory is how long a peer is remembered after its last deed.
	penaltyMemory = time.Minute
	// penaltyPeers bounds how many are remembered.
	penaltyPeers = 4096
)

// penalties keeps those peers out for a while who attack the tunnels' protocol.
// An attack ends with its connection; what makes it cost is the next one, whose
// handshake alone takes a millisecond of a core. So who breaks the rules of HTTP/2
// once loses a connection, and who does so again is not let in, for longer each
// time. What else comes from the same address meanwhile, tunnels that are open,
// goes on.
//
// Invariant: nobody is kept out for a first deed, nor for longer than penaltyMost
// after the last one (TestPenalties).
type penalties struct {
	mu sync.Mutex
	by map[offender]*penalty
}

// offender is a peer at one pod: what it did there keeps it out nowhere else, so
// that a pod which attacks its neighbour does not cut others off from theirs who
// share an address.
type offender struct {
	pod  string // its uid
	peer netip.Addr
}

type penalty struct {
	deeds   int
	last    time.Time
	until   time.Time
	refused int // connections, in this penalty
}

// note is a violation by a peer; it returns for how long the peer is kept out.
func (p *penalties) note(now time.Time, peer offender) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.by[peer]
	if e == nil || now.Sub(e.last) > penaltyMemory {
		if p.by == nil {
			p.by = map[offender]*penalty{}
		}
		if e == nil && len(p.by) >= penaltyPeers {
			p.forget(now)
		}
		e = &penalty{}
		p.by[peer] = e
	}
	e.deeds++
	e.last, e.refused = now, 0
	if e.deeds < 2 {
		return 0
	}
	d := penaltyMost
	if shift := e.deeds - 2; shift < 5 {
		d = penaltyFirst << shift
	}
	e.until = now.Add(d)
	return d
}

// forget makes room: for all who are remembered for nothing any more, else for whose deed is the oldest.
func (p *penalties) forget(now time.Time) {
	var oldest offender
	var last time.Time
	for a, e := range p.by {
		if now.Sub(e.last) > penaltyMemory {
			delete(p.by, a)
		} else if last.IsZero() || e.last.Before(last) {
			oldest, last = a, e.last
		}
	}
	if len(p.by) >= penaltyPeers {
		delete(p.by, oldest)
	}
}

// PenaltyError refuses a peer that has attacked.
type PenaltyError struct {
	Deeds int
	For   time.Duration // how much longer
}

func (e *PenaltyError) Error() string {
	return fmt.Sprintf("its tunnels were ended %d times for breaking the rules of HTTP/2: not let in for another %v",
		e.Deeds, e.For.Round(time.Millisecond))
}

// check says whether a peer is let in. first is the first refusal of a penalty: the others need not be written down.
func (p *penalties) check(now time.Time, peer offender) (refusal *PenaltyError, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.by[peer]
	if e == nil || !now.Before(e.until) {
		return nil, false
	}
	e.refused++
	return &PenaltyError{Deeds: e.deeds, For: e.until.Sub(now)}, e.refused == 1
}
