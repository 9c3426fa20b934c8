package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// worker makes one kind of load.
type worker interface {
	// phase loads for d and returns when everything has arrived.
	phase(ctx context.Context, d time.Duration) (Report, error)
	close()
}

// patience is how much longer than its load a phase may take to come to rest,
// and how long connecting may take.
const patience = 20 * time.Second

// Run is the client: it connects, tells so, and then makes a phase of load for
// every command on in, until in ends.
func Run(ctx context.Context, spec Spec, in io.Reader, out io.Writer) error {
	tell := json.NewEncoder(out)
	err := run(ctx, spec, in, tell)
	if err != nil {
		_ = tell.Encode(Event{Error: err.Error()}) // whoever does not read sees the exit status
	}
	return err
}

func run(ctx context.Context, spec Spec, in io.Reader, tell *json.Encoder) error {
	if err := spec.Check(); err != nil {
		return err
	}
	if err := enoughFiles(spec.Conns); err != nil {
		return err
	}
	w, err := newWorker(ctx, spec)
	if err != nil {
		return err
	}
	defer w.close()
	if err := tell.Encode(Event{}); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var c Command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return fmt.Errorf("command %q: %w", lines.Text(), err)
		}
		r, err := onePhase(ctx, w, time.Duration(c.Seconds*float64(time.Second)))
		if err != nil {
			return err
		}
		if err := tell.Encode(Event{Report: &r}); err != nil {
			return err
		}
	}
	return lines.Err()
}

func onePhase(ctx context.Context, w worker, d time.Duration) (Report, error) {
	before := tcpCounters()
	began := time.Now()
	r, err := w.phase(ctx, d)
	if err != nil {
		return r, err
	}
	if r.Seconds == 0 {
		r.Seconds = time.Since(began).Seconds()
	}
	after := tcpCounters()
	r.Opens, r.Retransmits = after.opens-before.opens, after.retransmits-before.retransmits
	return r, nil
}

func newWorker(ctx context.Context, s Spec) (worker, error) {
	switch s.Kind {
	case BulkUp, BulkDown:
		return newBulk(ctx, s)
	case Closed:
		return newClosed(ctx, s)
	case Open:
		return newOpen(ctx, s)
	case Connect:
		return connecting{s}, nil
	case Cold:
		return cold{s}, nil
	case Idle:
		return newIdle(ctx, s)
	case Slow:
		return newSlow(ctx, s)
	case Handshake:
		return newHandshaking(s)
	case Requests, RequestsOpen:
		return newRequesting(ctx, s)
	}
	return nil, fmt.Errorf("load kind %q is not known", s.Kind)
}

// set is some connections that live as long as the worker.
type set []*net.TCPConn

func (s set) close() {
	for _, c := range s {
		_ = c.Close()
	}
}

// dialParallel is how many connections are being opened at a time.
const dialParallel = 64

// dial opens n connections and sends a greeting on each.
func dial(ctx context.Context, target string, n int, greet func(i int, c *net.TCPConn) error) (set, error) {
	const each = 2 * time.Millisecond // a slow mesh on a busy machine still opens 500 a second
	ctx, cancel := context.WithTimeout(ctx, patience+time.Duration(n)*each)
	defer cancel()
	out := make(set, n)
	errs := make([]error, min(n, dialParallel))
	var work sync.WaitGroup
	for k := range errs {
		work.Go(func() {
			for i := k; i < n && errs[k] == nil && ctx.Err() == nil; i += len(errs) {
				out[i], errs[k] = dialOne(ctx, target, func(c *net.TCPConn) error { return greet(i, c) })
			}
		})
	}
	work.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		var opened set
		for _, c := range out {
			if c != nil {
				opened = append(opened, c)
			}
		}
		opened.close()
		return nil, fmt.Errorf("%d of %d connections to %s are open: %w", len(opened), n, target, err)
	}
	return out, nil
}

func dialOne(ctx context.Context, target string, greet func(c *net.TCPConn) error) (*net.TCPConn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, err
	}
	c, ok := raw.(*net.TCPConn)
	if !ok {
		_ = raw.Close()
		return nil, fmt.Errorf("%s is no TCP address", target)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if err := greet(c); err != nil {
		_ = c.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

// greetBack sends a mode and waits for it to come back.
func greetBack(mode byte) func(int, *net.TCPConn) error {
	return func(_ int, c *net.TCPConn) error {
		b := []byte{mode}
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err := io.ReadFull(c, b)
		return err
	}
}

// together runs fn for every connection and adds their reports up. The first
// error that is not an operation's own ends the phase.
func together(s set, d time.Duration, fn func(c *net.TCPConn, end time.Time) (Report, error)) (Report, error) {
	began := time.Now()
	end := began.Add(d)
	reports, errs := make([]Report, len(s)), make([]error, len(s))
	var work sync.WaitGroup
	for i, c := range s {
		work.Go(func() {
			_ = c.SetDeadline(end.Add(patience))
			reports[i], errs[i] = fn(c, end)
		})
	}
	work.Wait()
	sum := Report{Seconds: time.Since(began).Seconds()}
	for _, r := range reports {
		sum.add(r)
	}
	return sum, errors.Join(errs...)
}

// add adds another worker's report of the same phase.
func (r *Report) add(o Report) {
	r.Bytes += o.Bytes
	r.Ops += o.Ops
	r.Errors += o.Errors
	if r.Error == "" {
		r.Error = o.Error
	}
	r.Opens += o.Opens
	r.Retransmits += o.Retransmits
	r.Latency = merge(r.Latency, o.Latency)
	r.Late = merge(r.Late, o.Late)
}

// Add adds the report of a client that loaded at the same time.
func (r *Report) Add(o Report) {
	r.Seconds = max(r.Seconds, o.Seconds)
	r.add(o)
}

// fail counts an operation that failed.
func (r *Report) fail(err error) {
	r.Errors++
	if r.Error == "" {
		r.Error = err.Error()
	}
}

// enoughFiles refuses to begin what would fail in the middle. Go has raised
// the soft limit to the hard one.
func enoughFiles(conns int) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	const others = 64
	if l.Cur < uint64(conns)+others {
		return fmt.Errorf("limit of open files is %d, %d connections need %d; raise it by `ulimit -Hn` or choose fewer", l.Cur, conns, conns+others)
	}
	return nil
}

// PreparePorts widens the range of ephemeral ports of this network namespace,
// which must be the caller's own: the default holds 28,000.
func PreparePorts() error {
	return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("20000 65000"), 0)
}

type counters struct{ opens, retransmits uint64 }

// tcpCounters are those of the network namespace; zero where there are none.
func tcpCounters() counters {
	raw, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return counters{}
	}
	return parseCounters(string(raw))
}

// parseCounters reads a line of names and a line of values.
func parseCounters(text string) counters {
	var names []string
	var c counters
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = words
			continue
		}
		for i := range min(len(names), len(words)) {
			v, err := strconv.ParseUint(words[i], 10, 64)
			if err != nil {
				continue // the name of the protocol, a negative limit
			}
			switch names[i] {
			case "ActiveOpens":
				c.opens = v
			case "RetransSegs":
				c.retransmits = v
			}
		}
	}
	return c
}
