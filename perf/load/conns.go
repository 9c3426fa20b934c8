package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/perf/latency"
)

// connecting opens connections one after the other on each of its strands.
type connecting struct{ spec Spec }

func (connecting) close() {}

func (w connecting) phase(ctx context.Context, d time.Duration) (Report, error) {
	return strands(ctx, w.spec.Conns, d, func(ctx context.Context) error {
		return oneByte(ctx, w.spec.Targets[0])
	})
}

// strands repeats an operation on n strands until d is over.
func strands(ctx context.Context, n int, d time.Duration, op func(ctx context.Context) error) (Report, error) {
	began := time.Now()
	end := began.Add(d)
	ctx, cancel := context.WithDeadline(ctx, end.Add(patience))
	defer cancel()
	reports := make([]Report, n)
	var work sync.WaitGroup
	for i := range reports {
		r := &reports[i]
		r.Latency = &latency.Histogram{}
		work.Go(func() {
			for now := time.Now(); now.Before(end) && ctx.Err() == nil && r.Errors < maxErrors; {
				err := op(ctx)
				then := time.Now()
				if err != nil {
					r.fail(err)
				} else {
					r.Ops++
					r.Latency.Record(then.Sub(now))
				}
				now = then
			}
		})
	}
	work.Wait()
	sum := Report{Seconds: time.Since(began).Seconds()}
	for _, r := range reports {
		sum.add(r)
	}
	return sum, ctx.Err()
}

// maxErrors of a strand: after that it is no measurement any more.
const maxErrors = 10

// oneByte connects, sends a byte, gets it back, and sees the server close
// first: the port is free again at once on this side.
func oneByte(ctx context.Context, target string) error {
	ctx, cancel := context.WithTimeout(ctx, patience/2)
	defer cancel()
	c, err := dialOne(ctx, target, func(c *net.TCPConn) error { return greetBack(modeOne)(0, c) })
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience / 2))
	switch n, err := c.Read(make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("%s sent more than one byte", target)
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

// cold opens one connection to each target, so that each needs a tunnel of its
// own, and waits for the tunnels to be given up.
type cold struct{ spec Spec }

func (cold) close() {}

func (w cold) phase(ctx context.Context, d time.Duration) (Report, error) {
	r := Report{Latency: &latency.Histogram{}}
	for end := time.Now().Add(d); time.Now().Before(end); {
		for _, target := range w.spec.Targets {
			began := time.Now()
			if err := oneByte(ctx, target); err != nil {
				r.fail(err)
				continue
			}
			r.Ops++
			r.Latency.Record(time.Since(began))
		}
		if r.Errors >= maxErrors {
			break
		}
		if !pause(ctx, w.spec.Gap) {
			return r, context.Cause(ctx)
		}
	}
	return r, nil
}

// idle holds connections.
type idle struct{ set }

func newIdle(ctx context.Context, s Spec) (*idle, error) {
	conns, err := dial(ctx, s.Targets[0], s.Conns, greetBack(modeHold))
	return &idle{set: conns}, err
}

func (w *idle) phase(ctx context.Context, d time.Duration) (Report, error) {
	pause(ctx, d)
	return Report{Ops: uint64(len(w.set))}, ctx.Err()
}

// slow is readers that hardly read: every second one at the server, where this
// client sends, the others here, where the server sends.
type slow struct {
	set
	cancel context.CancelFunc
	work   sync.WaitGroup
}

func newSlow(ctx context.Context, s Spec) (*slow, error) {
	conns, err := dial(ctx, s.Targets[0], s.Conns, func(i int, c *net.TCPConn) error {
		if i%2 == 0 {
			return greetBack(modeSlowSink)(i, c)
		}
		_, err := c.Write([]byte{modeFlood, more})
		return err
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &slow{set: conns, cancel: cancel}
	for i, c := range w.set {
		w.work.Go(func() {
			if i%2 == 1 {
				trickle(ctx, c)
				return
			}
			buf := make([]byte, unit)
			for {
				if _, err := c.Write(buf); err != nil {
					return // closed
				}
			}
		})
	}
	return w, nil
}

func (w *slow) phase(ctx context.Context, d time.Duration) (Report, error) {
	pause(ctx, d)
	return Report{}, ctx.Err()
}

func (w *slow) close() {
	w.cancel()
	w.set.close()
	w.work.Wait()
}

// handshaking makes full TLS handshakes as an HBONE client does, and nothing
// else on the connection.
type handshaking struct {
	spec Spec
	conf *tls.Config
}

func newHandshaking(s Spec) (*handshaking, error) {
	cert, err := tls.X509KeyPair([]byte(s.TLS.Certificate), []byte(s.TLS.Key))
	if err != nil {
		return nil, fmt.Errorf("load tls: %w", err)
	}
	return &handshaking{spec: s, conf: &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		// The server's certificate names a workload, not a host; verifying it is
		// the client's work, which is not measured.
		InsecureSkipVerify: true,
		// The same exchange with every implementation, or the comparison is
		// of key exchanges.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256},
	}}, nil
}

func (handshaking) close() {}

func (w *handshaking) phase(ctx context.Context, d time.Duration) (Report, error) {
	return strands(ctx, w.spec.Conns, d, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, patience/2)
		defer cancel()
		dialer := tls.Dialer{Config: w.conf}
		c, err := dialer.DialContext(ctx, "tcp", w.spec.Targets[0])
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		// A server that refuses the client's certificate says so only now:
		// in TLS 1.3 the client's handshake is over before the server's. The
		// server's first bytes are its HTTP/2 settings.
		_ = c.SetDeadline(time.Now().Add(patience / 2))
		if _, err := c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 9))
		return err
	})
}

func merge(a, b *latency.Histogram) *latency.Histogram {
	if a == nil || b == nil {
		if a == nil {
			return b
		}
		return a
	}
	a.Merge(b)
	return a
}
