package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/pcap"
	"github.com/marrowmesh/marrow/marrow/internal/shopapp"
)

// settleTime lets packets that were sent reach the capture's reader.
const settleTime = 150 * time.Millisecond

// wiretap captures every interface of the nodes and counts a marker.
type wiretap struct {
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex
	taps  []*tap
	fault error
}

// tap is one node's capture. Its scanner is guarded by the wiretap's mutex.
type tap struct {
	node string
	scan *pcap.Scanner
}

// listen starts captures on all interfaces of each node: the uplink and the
// host's end of every pod's link.
func listen(ctx context.Context, c *lab.Client, marker string, nodes ...string) (*wiretap, error) {
	// A wiretap outlives the step that starts it.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &wiretap{cancel: cancel}
	started := make(chan struct{}, len(nodes))
	for _, n := range nodes {
		s, err := pcap.NewScanner([]byte(marker))
		if err != nil {
			cancel()
			return nil, err
		}
		t := &tap{node: n, scan: s}
		w.taps = append(w.taps, t)
		r, pipe := io.Pipe()
		w.work.Go(func() {
			_ = pipe.CloseWithError(c.Capture(ctx, pipe, lab.Target{Name: n}, "any"))
		})
		w.work.Go(func() { w.read(ctx, t, r, started) })
	}
	for range nodes {
		select {
		case <-started:
		case <-time.After(5 * time.Second):
			cancel()
			w.work.Wait()
			return nil, errors.Join(errors.New("a capture did not start within 5 s"), w.fault)
		}
	}
	return w, nil
}

// read feeds the scanner; the file's header is the sign that the capture runs.
func (w *wiretap) read(ctx context.Context, t *tap, r *io.PipeReader, started chan<- struct{}) {
	defer func() { _ = r.Close() }()
	in, err := pcap.NewReader(r)
	if err == nil {
		started <- struct{}{}
	}
	for err == nil {
		var p pcap.Packet
		if p, err = in.Next(); err == nil {
			w.mu.Lock()
			t.scan.Add(p)
			w.mu.Unlock()
		}
	}
	if ctx.Err() == nil && !errors.Is(err, io.EOF) {
		w.mu.Lock()
		w.fault = errors.Join(w.fault, err)
		w.mu.Unlock()
	}
}

// sight is what the wire showed since the wiretap began.
type sight struct {
	packets, marked int
	tunnels         int // packets to or from port 15008
	flows           []pcap.FlowReport
}

// look waits for packets on their way and reports all nodes together.
func (w *wiretap) look(ctx context.Context) (sight, error) {
	sleep(ctx, settleTime)
	w.mu.Lock()
	defer w.mu.Unlock()
	var s sight
	for _, t := range w.taps {
		r := t.scan.Report()
		s.packets += r.Packets
		s.marked += r.Occurrences
		s.flows = append(s.flows, r.With()...)
		for _, f := range r.Flows {
			if slices.Contains([]uint16{f.Src.Port(), f.Dst.Port()}, 15008) {
				s.tunnels += f.Packets
			}
		}
	}
	return s, w.fault
}

func (w *wiretap) stop() {
	if w == nil {
		return
	}
	w.cancel()
	w.work.Wait()
}

// record starts a complete recording of every interface of each node. A stream
// may miss packets; a recording counts those that it dropped.
func (w *world) record(ctx context.Context) error {
	for _, n := range w.nodes {
		r, err := w.c.Record(ctx, lab.Target{Name: n}, "any")
		if err != nil {
			return err
		}
		w.tapes = append(w.tapes, r)
	}
	return nil
}

// play ends the recordings and searches them: silent means that they are whole
// and that the application's text is nowhere in them.
func (w *world) play(ctx context.Context) (text string, silent bool, err error) {
	packets, dropped, marked := 0, 0, 0
	for _, t := range w.tapes {
		done, err := w.c.StopRecording(ctx, t.ID)
		if err != nil {
			return "", false, err
		}
		f, err := os.Open(done.Path)
		if err != nil {
			return "", false, err
		}
		report, err := pcap.Scan(f, []byte(shopapp.DefaultMarker))
		_ = f.Close() // it was only read
		if err != nil {
			return "", false, err
		}
		packets, dropped, marked = packets+report.Packets, dropped+done.Dropped, marked+report.Occurrences
	}
	text = fmt.Sprintf("recordings of all links since step b: %d packets, %d dropped, marker seen %d times", packets, dropped, marked)
	return text, packets > 0 && dropped == 0 && marked == 0, nil
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// until repeats check every 50 ms until it says true, at most for limit.
func until(ctx context.Context, limit time.Duration, check func() (bool, error)) (time.Duration, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	for {
		ok, err := check()
		if ok || ctx.Err() != nil {
			return time.Since(began), ok, err
		}
		sleep(ctx, 50*time.Millisecond)
	}
}
