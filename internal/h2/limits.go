package h2

import (
	"io"
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
	}
}

// meter bounds what one header block with all its CONTINUATIONs may cost,
// empty ones too, which the Framer would read for ever.
type meter struct {
	r    io.Reader
	left int // negative: no bound
}

func (m *meter) Read(p []byte) (int, error) {
	if m.left < 0 {
		return m.r.Read(p)
	}
	if len(p) > m.left {
		return 0, violation(EnhanceYourCalm, "header block of more than %d bytes in frames", 2*maxControlFrame)
	}
	n, err := m.r.Read(p)
	m.left -= n
	return n, err
}
