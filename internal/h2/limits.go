package h2

import (
	"time"
)

// budget is how often a peer may do something that costs us more than it
// costs the peer: burst at once, then rate per second.
type budget struct {
	name  string
	burst float64
	rate  float64
	used  float64
	last  time.Time
}

func (b *budget) spend(now time.Time) error {
	b.used = max(0, b.used-now.Sub(b.last).Seconds()*b.rate) + 1
	b.last = now
	if b.used > b.burst {
		return violation(EnhanceYourCalm, "too many %s: more than %.0f at once or %.0f per second", b.name, b.burst, b.rate)
	}
	return nil
}

// guard holds one budget per kind of abuse.
type guard struct {
	resets   budget // streams reset before they were answered (rapid reset)
	settings budget
	pings    budget
	empty    budget // DATA without bytes and without end
	odd      budget // priority, unknown frames, frames and headers of closed streams
	refused  budget // streams over the limit
	crumbs   budget // WINDOW_UPDATEs that let a waiting stream send next to nothing
}

func newGuard(maxStreams uint32) guard {
	streams := float64(maxStreams)
	return guard{
		resets:   budget{name: "streams reset before an answer", burst: 2*streams + 100, rate: 100},
		settings: budget{name: "SETTINGS frames", burst: 100, rate: 10},
		pings:    budget{name: "PING frames", burst: 1000, rate: 1000},
		empty:    budget{name: "empty DATA frames", burst: 1000, rate: 100},
		odd:      budget{name: "frames without purpose", burst: 1000, rate: 200},
		refused:  budget{name: "streams over the limit", burst: 2*streams + 100, rate: 100},
		crumbs:   budget{name: "tiny WINDOW_UPDATE frames", burst: 2000, rate: 1000},
	}
}
