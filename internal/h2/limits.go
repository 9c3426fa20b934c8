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
	used  float64 // below 0: what the peer has earned
	last  time.Time
}

func (b *budget) spend(now time.Time) error { return b.take(now, 1) }

func (b *budget) take(now time.Time, n float64) error {
	if b.used > 0 {
		b.used = max(0, b.used-now.Sub(b.last).Seconds()*b.rate)
	}
	b.used += n
	b.last = now
	if b.used > b.burst {
		return violation(EnhanceYourCalm, "too many %s: more than %.0f at once or %.0f per second", b.name, b.burst, b.rate)
	}
	return nil
}

// earn lets the peer do it n times more, of which it can save up some.
func (b *budget) earn(n, saved float64) { b.used = max(b.used-n, -saved) }

// guard holds one budget per kind of abuse. What every frame costs that moves
// nothing, and how much of it a connection bears for ever:
//
//	frame                                   budget          for ever, per second
//	SETTINGS                                settings        10
//	PING                                    pings           1000
//	answer to no PING or SETTINGS of ours   odd             200
//	PRIORITY                                odd             200
//	unknown kind                            odd, waste      200, 1 MiB
//	GOAWAY, from the third on               odd, waste      200, 1 MiB
//	WINDOW_UPDATE                           updates         100, and 2 for each stream and each 256
//	                                                        bytes of DATA, begun, that we send
//	  that has us send less than 256 bytes  crumbs as well  1000
//	RST_STREAM before an answer             resets          100, free where it was waited for for 250 ms
//	RST_STREAM on a closed stream           odd             200, and one for each reset of ours
//	what makes us reset a stream            odd or resets   200 or 100
//	DATA, empty, without end                empty           100
//	DATA after our reset                    -               none: the stream's window, once
//	DATA on another closed stream           odd, waste      200, 1 MiB
//	HEADERS over the limits of streams      refused         100
//	HEADERS of a closed stream              odd             200, where it is no violation
//	HEADERS that we decode for nothing      headers as well 256 KiB
//
// The rates are far above what an honest peer does: a PING every 10 seconds and
// some to measure the path, two updates for each frame of DATA at most.
type guard struct {
	resets   budget // streams reset before they were answered (rapid reset)
	settings budget
	pings    budget
	empty    budget // DATA without bytes and without end
	odd      budget // priority, unknown frames, frames and headers of closed streams
	refused  budget // streams over the limit
	crumbs   budget // WINDOW_UPDATEs that let a waiting stream send next to nothing
	updates  budget // WINDOW_UPDATEs for nothing that we sent
	waste    budget // bytes that nobody asked for
	headers  budget // bytes of header blocks that were decoded for nothing
}

// updatesSaved is how many WINDOW_UPDATEs a peer can earn: two for each byte
// of the window of RFC 9113, should we have sent them one by one, and again as
// many.
const updatesSaved = 4 * (defaultWindow + 1)

func newGuard(cfg Config) guard {
	streams := float64(cfg.MaxStreams)
	return guard{
		resets:   budget{name: "streams reset before an answer", burst: 2*streams + 100, rate: 100},
		settings: budget{name: "SETTINGS frames", burst: 100, rate: 10},
		pings:    budget{name: "PING frames", burst: 1000, rate: 1000},
		empty:    budget{name: "empty DATA frames", burst: 1000, rate: 100},
		odd:      budget{name: "frames without purpose", burst: 1000, rate: 200},
		refused:  budget{name: "streams over the limit", burst: 2*streams + 100, rate: 100},
		crumbs:   budget{name: "tiny WINDOW_UPDATE frames", burst: 2000, rate: 1000},
		updates:  budget{name: "WINDOW_UPDATE frames for nothing", burst: 2000, rate: 100},
		// When more streams are reset at once than are remembered, all that the
		// connection's window has may be under way for them.
		waste: budget{name: "bytes without purpose", burst: 2 * float64(cfg.ConnWindow), rate: 1 << 20},
		// Decoding takes up to 0.1 us per byte: 0.4 s at once, then 3 % of a core.
		headers: budget{name: "bytes of useless headers", burst: 4 << 20, rate: 256 << 10},
	}
}

// pointless counts a frame of size bytes that does nothing.
func (g *guard) pointless(now time.Time, size float64) error {
	if err := g.odd.spend(now); err != nil {
		return err
	}
	return g.waste.take(now, size)
}

// update counts a WINDOW_UPDATE. One that was earned is free of the clock too:
// there is one for nearly every frame of a tunnel.
func (g *guard) update() error {
	if g.updates.used <= -1 {
		g.updates.used++
		return nil
	}
	return g.updates.spend(time.Now())
}
