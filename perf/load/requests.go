package load

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/perf/latency"
)

// Protocol is what requests are spoken in.
type Protocol string

// The protocols.
const (
	HTTP1 Protocol = "http1" // GET, answered with answerSize bytes
	HTTP2 Protocol = "http2" // the same, in clear text and with prior knowledge
	GRPC  Protocol = "grpc"  // a unary call, messages of messageSize both ways
)

const (
	answerSize  = 1000
	messageSize = 100
)

// asker makes requests on one connection, one after the other.
type asker interface {
	// ask returns when the whole answer is there.
	ask() error
	// moved is how many bytes of bodies an answer and its request have.
	moved() uint64
}

func newAsker(c net.Conn, s Spec) (asker, error) {
	if s.Protocol == HTTP1 {
		return newAsker1(c, s), nil
	}
	return newAsker2(c, s)
}

// requesting makes requests on some connections that stay open.
type requesting struct {
	set
	askers []asker
	spec   Spec
}

func newRequesting(ctx context.Context, s Spec) (*requesting, error) {
	if s.Kind == RequestsOpen {
		runtime.GOMAXPROCS(runtime.NumCPU() + 2) // for the pacer, as newOpen
	}
	w := &requesting{spec: s, askers: make([]asker, s.Conns)}
	var err error
	w.set, err = dial(ctx, s.Targets[0], s.Conns, func(i int, c *net.TCPConn) error {
		a, err := newAsker(c, s)
		if err == nil {
			err = a.ask() // proxies open their sides only now
		}
		w.askers[i] = a
		return err
	})
	return w, err
}

func (w *requesting) phase(ctx context.Context, d time.Duration) (Report, error) {
	if w.spec.Kind == RequestsOpen {
		return w.open(ctx, d)
	}
	at := make(map[*net.TCPConn]asker, len(w.set))
	for i, c := range w.set {
		at[c] = w.askers[i]
	}
	return together(w.set, d, func(c *net.TCPConn, end time.Time) (Report, error) {
		r, a := Report{Latency: &latency.Histogram{}}, at[c]
		for now := time.Now(); now.Before(end) && ctx.Err() == nil; {
			if err := a.ask(); err != nil {
				return r, err
			}
			then := time.Now()
			r.took(then.Sub(now), a)
			now = then
		}
		return r, nil
	})
}

func (r *Report) took(d time.Duration, a asker) {
	r.Latency.Record(d)
	r.Ops++
	r.Bytes += a.moved()
}

// open gives each request to a connection that is free; one that has to wait
// for such a connection is counted from the moment at which it was due.
func (w *requesting) open(ctx context.Context, d time.Duration) (Report, error) {
	step := time.Duration(float64(time.Second) / w.spec.Rate)
	total := int(d / step)
	due := make(chan time.Time, total) // the pacer never waits
	reports, errs := make([]Report, len(w.set)), make([]error, len(w.set))
	var work sync.WaitGroup
	for i, c := range w.set {
		_ = c.SetDeadline(time.Now().Add(d + patience))
		reports[i].Latency = &latency.Histogram{}
		work.Go(func() {
			for at := range due {
				if errs[i] != nil {
					continue // empties the queue
				}
				if errs[i] = w.askers[i].ask(); errs[i] == nil {
					reports[i].took(time.Since(at), w.askers[i])
				}
			}
		})
	}
	sum := Report{Late: &latency.Histogram{}}
	began := time.Now()
	err := onTime(ctx, began, step, total, func(_ int, at time.Time) error {
		sum.Late.Record(time.Since(at))
		due <- at
		return nil
	})
	close(due)
	work.Wait()
	sum.Seconds = time.Since(began).Seconds()
	for i, r := range reports {
		sum.add(r)
		if err == nil {
			err = errs[i]
		}
	}
	return sum, err
}

// path of a request.
func (s Spec) path() string {
	if s.Path != "" {
		return s.Path
	}
	return "/"
}

func wrongAnswer(format string, args ...any) error {
	return fmt.Errorf("answer: "+format, args...)
}
