package h2

import (
	"time"
)

//nolint:gochecknoglobals // constants, but for the type
var (
	livePing  = [8]byte{'m', 'a', 'r', 'r', 'o', 'w', 0, 1}
	drainPing = [8]byte{'m', 'a', 'r', 'r', 'o', 'w', 0, 2}
)

// pinger proves that the peer lives. It has no goroutine, only a timer.
type pinger struct {
	timer   *time.Timer
	drain   *time.Timer
	waiting bool   // for an answer
	seen    uint64 // times that bytes had come when we began to wait
}

func (p *pinger) start(c *Conn) {
	if c.cfg.PingInterval < 0 {
		return
	}
	p.timer = time.AfterFunc(c.cfg.PingInterval, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pingTick()
	})
}

func (p *pinger) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.drain != nil {
		p.drain.Stop()
	}
}

func (c *Conn) pingTick() {
	if c.err != nil || c.ping.timer == nil {
		return
	}
	c.credit(0, 0) // others may have read meanwhile what we hold our window back for
	seen := c.in.feeds.Load()
	switch {
	case !c.ping.waiting:
		c.ping.waiting, c.ping.seen = true, seen
		c.out.ping(false, livePing)
		c.kick()
	case c.ping.seen == seen:
		c.fail(&ConnError{Code: NoError, Reason: "no answer to ping", Err: ErrPingTimeout})
		return
	default:
		// Slow, not dead: bytes came, so the answer is queued behind others.
		c.ping.seen = seen
	}
	c.ping.timer.Reset(c.cfg.PingTimeout)
}

// pong takes an answer to a ping. One that answers nothing costs as any frame
// without purpose.
func (c *Conn) pong(data [8]byte) error {
	switch {
	case data == drainPing && c.life.draining:
		c.finalGoAway()
	case data == livePing && c.ping.waiting:
		c.ping.waiting = false
		c.ping.timer.Reset(c.cfg.PingInterval)
	default:
		return c.guard.odd.spend(time.Now())
	}
	return nil
}
