package load

import (
	"context"
	"io"
	"net"
	"time"
)

// bulk moves bytes in one direction, over connections that stay open.
type bulk struct {
	set
	spec Spec
}

func newBulk(ctx context.Context, s Spec) (*bulk, error) {
	mode := byte(modeSink)
	if s.Kind == BulkDown {
		mode = modeFlood
	}
	conns, err := dial(ctx, s.Targets[0], s.Conns, func(_ int, c *net.TCPConn) error {
		_, err := c.Write([]byte{mode})
		return err
	})
	return &bulk{set: conns, spec: s}, err
}

func (b *bulk) phase(ctx context.Context, d time.Duration) (Report, error) {
	return together(b.set, d, func(c *net.TCPConn, end time.Time) (Report, error) {
		if b.spec.Kind == BulkDown {
			return b.receive(c, end)
		}
		return b.send(ctx, c, end)
	})
}

// pace is the time that one unit may take; 0 = none.
func (b *bulk) pace() time.Duration {
	if b.spec.Rate <= 0 {
		return 0
	}
	return time.Duration(unit * float64(b.spec.Conns) / b.spec.Rate * float64(time.Second))
}

// send writes units until end, then one more that the server answers: when the
// answer is there, all has arrived.
func (b *bulk) send(ctx context.Context, c *net.TCPConn, end time.Time) (Report, error) {
	buf := make([]byte, unit)
	var r Report
	next, step := time.Now(), b.pace()
	for done := false; !done; {
		now := time.Now()
		if wait := next.Sub(now); step > 0 && wait > 0 {
			pause(ctx, min(wait, max(0, end.Sub(now))))
		}
		next = next.Add(step)
		done = !time.Now().Before(end) || ctx.Err() != nil
		buf[0] = more
		if done {
			buf[0] = last
		}
		n, err := c.Write(buf)
		r.Bytes += uint64(n)
		if err != nil {
			return r, err
		}
	}
	_, err := io.ReadFull(c, buf[:1])
	return r, err
}

// receive asks for bytes, asks at end for no more, and reads up to the end of
// the unit that is marked as last.
func (b *bulk) receive(c *net.TCPConn, end time.Time) (Report, error) {
	var r Report
	if _, err := c.Write([]byte{more}); err != nil {
		return r, err
	}
	stop := time.AfterFunc(time.Until(end), func() {
		_, _ = c.Write([]byte{last}) // where this fails the reader sees it too
	})
	defer stop.Stop()
	buf := make([]byte, 256<<10)
	at, flagged := 0, false
	for {
		// Never beyond the last unit: nothing is behind it.
		n, err := c.Read(buf)
		r.Bytes += uint64(n)
		if err != nil {
			return r, err
		}
		for p := buf[:n]; len(p) > 0; {
			if at == 0 {
				flagged = p[0] == last
			}
			step := min(unit-at, len(p))
			p, at = p[step:], at+step
			if at < unit {
				continue
			}
			at = 0
			if flagged {
				return r, nil
			}
		}
	}
}
