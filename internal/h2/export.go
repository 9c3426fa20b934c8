package h2

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/net/http2"
)

var (
	// ErrExported is the end, in this process, of a connection that goes on
	// elsewhere: its socket is open.
	ErrExported = errors.New("http2 connection was handed over")
	// ErrBusy refuses an Export for now.
	ErrBusy = errors.New("http2 connection cannot be handed over now")
)

// State is a connection between two bytes: what another Conn needs to go on
// with it, on a connection that has itself been handed over.
//
// It has nothing of header compression: Export has the peer empty its table,
// and the restored encoder empties ours.
type State struct {
	Client     bool
	Window     int64    // of a stream, as the peer has set it
	MaxFrame   uint32   // the peer takes
	MaxStreams uint32   // the peer allows
	MaxHeaders uint32   // the peer takes, in bytes
	Table      uint32   // of the peer's header decoder
	Send       int64    // what we may send on the whole connection
	Left       int64    // what the peer may send on the whole connection
	Next, Last uint32   // stream numbers: ours to come, the peer's so far
	Beyond     uint32   // the peer's highest after our final GOAWAY, not served
	Recent     []uint32 // streams that were reset
	Grants     []uint32 // and what may still come for each
	PeerGone   bool     // GOAWAY came
	Draining   bool     // GOAWAY was sent
	Final      bool     // and the last stream named
	Input      Input
	Streams    []StreamState // by number
}

// Input is where within a frame the input stands.
type Input struct {
	Hold      []byte // the beginning of a frame
	Skip      int    // bytes of an unknown frame to come
	Data      bool   // within a DATA frame
	Stream    uint32 // of it, 0 if it is thrown away
	Left, Pad int
	End       bool
}

// StreamState is one open stream.
type StreamState struct {
	ID        uint32
	Send      int64 // what we may send
	Left      int64 // what the peer may send
	Size      int64 // of its window
	LocalEnd  bool
	RemoteEnd bool
	Answered  bool
	Queued    []byte // arrived and not taken by the owner
}

// Export has the peer forget its header table, which takes a round trip in
// which all goes on; then it stops the connection between two bytes, writes
// what is queued, and returns what Restore needs. The Conn has then ended
// with ErrExported, its streams are cut, and the connection below is open and
// not read any more; a Write that it interrupts says how much of it was sent.
// Before this, the owner ends what waits in Sinks: one that is in use, or a
// peer that does not answer, refuses with ErrBusy, and all goes on.
func (c *Conn) Export() (State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.move.stopped != nil || c.move.acked != nil {
		return State{}, fmt.Errorf("export: %w: somebody else does it", ErrBusy)
	}
	if err := c.dropTable(); err != nil {
		return State{}, fmt.Errorf("export: %w", err)
	}
	if err := c.stopReading(); err != nil {
		return State{}, fmt.Errorf("export: %w", err)
	}
	if err := c.still(); err != nil {
		c.goOn()
		return State{}, fmt.Errorf("export: %w", err)
	}
	st := c.snapshot()
	for _, s := range c.set.open {
		n := s.in.drop() // or it would be read twice
		c.recv.queued -= int64(n)
		c.cfg.Totals.queue(-n)
	}
	c.end(&ConnError{Code: NoError, Err: ErrExported})
	return st, nil
}

// settings queues SETTINGS that the peer will acknowledge.
func (c *Conn) settings(s ...http2.Setting) {
	c.out.settings(s...)
	c.move.unacked++
}

// onAck notes that the peer has SETTINGS of ours.
func (c *Conn) onAck() error {
	if c.move.unacked == 0 {
		return c.guard.odd.spend(time.Now())
	}
	if c.move.unacked--; c.move.unacked == 0 && c.move.acked != nil {
		close(c.move.acked)
		c.move.acked = nil
	}
	return nil
}

// dropTable returns when the peer has agreed to a header table of size 0:
// whatever it sends from then on begins by emptying the table.
func (c *Conn) dropTable() error {
	if c.err != nil {
		return c.err
	}
	acked := make(chan struct{})
	c.move.acked = acked
	c.settings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
	c.kick()
	late := time.NewTimer(exportWait)
	defer late.Stop()
	c.mu.Unlock()
	var err error
	select {
	case <-acked:
	case <-c.done:
	case <-late.C:
		err = fmt.Errorf("%w: the peer has not acknowledged SETTINGS in %v", ErrBusy, exportWait)
	}
	c.mu.Lock()
	c.move.acked = nil
	if c.err != nil {
		return c.err
	}
	return err
}

// stopReading ends the reading goroutine without ending the connection.
func (c *Conn) stopReading() error {
	stopped := make(chan struct{})
	c.move.stopped = stopped
	_ = c.nc.SetReadDeadline(time.Now().Add(-time.Second))
	c.mu.Unlock()
	<-stopped
	c.mu.Lock()
	c.move.stopped = nil
	return c.err
}

// still returns when nothing is queued, written or delivered, and keeps it so
// for as long as the lock is held.
func (c *Conn) still() error {
	o := &c.out
	o.frozen = true
	until := time.Now().Add(exportWait)
	late := time.AfterFunc(exportWait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		o.idle.Broadcast()
	})
	defer late.Stop()
	for c.err == nil && (o.flushing || o.queue.size > 0) {
		if !time.Now().Before(until) {
			return fmt.Errorf("%w: %d bytes could not be written in %v", ErrBusy, o.queue.size, exportWait)
		}
		c.kick()
		o.idle.Wait()
	}
	if c.err != nil {
		return c.err
	}
	for _, s := range c.set.open {
		if s.to != nil && s.to.busy {
			return fmt.Errorf("%w: stream %d's sink is in use", ErrBusy, s.id)
		}
	}
	return nil
}

// goOn takes back what Export has done.
func (c *Conn) goOn() {
	c.out.frozen = false
	if c.err != nil {
		return
	}
	c.settings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: headerTable})
	_ = c.nc.SetReadDeadline(time.Time{})
	c.wg.Go(c.readLoop)
	c.kick()
}

func (c *Conn) snapshot() State {
	in := &c.in
	st := State{
		Client: c.role == client,
		Window: c.peer.window, MaxFrame: c.peer.maxFrame, MaxStreams: c.peer.maxStreams, MaxHeaders: c.peer.maxHeaders, Table: c.peer.table,
		Send: c.send, Left: c.recv.left, Next: c.set.next, Last: c.set.last, Beyond: c.set.beyond,
		PeerGone: c.life.peerGone, Draining: c.life.draining, Final: c.life.final,
		Input: Input{Hold: slices.Clone(in.hold), Skip: in.skip, Data: in.part.open, Left: in.part.left, Pad: in.part.pad, End: in.part.end},
	}
	for _, g := range c.set.recent {
		st.Recent, st.Grants = append(st.Recent, g.id), append(st.Grants, g.left)
	}
	if s := in.part.s; in.part.open && s != nil {
		st.Input.Stream = s.id
	}
	for _, s := range c.set.open {
		q := StreamState{
			ID: s.id, Send: s.send, Left: s.recv.left, Size: s.recv.size,
			LocalEnd: s.localEnd, RemoteEnd: s.remoteEnd, Answered: s.header.done,
		}
		for _, p := range s.in.parts[s.in.first:] {
			q.Queued = append(q.Queued, p.bytes()...)
		}
		st.Streams = append(st.Streams, q)
	}
	slices.SortFunc(st.Streams, func(a, b StreamState) int { return int(a.ID) - int(b.ID) })
	return st
}

// check refuses what no Export can have returned.
func (st *State) check() error {
	wrong := st.Send > maxWindow || st.Left < 0 || st.Left > maxWindow || st.Window < 0 || st.Window > maxWindow ||
		st.MaxFrame < defaultMaxFrame || st.Input.Skip < 0 || st.Input.Left < 0 || st.Input.Pad < 0 || len(st.Recent) > len(streamSet{}.recent) || len(st.Grants) > len(st.Recent)
	last := uint32(0)
	for _, s := range st.Streams {
		wrong = wrong || s.ID <= last || s.ID%2 == 0 || s.Left < 0 || s.Size > maxWindow || s.Left+int64(len(s.Queued)) > s.Size ||
			s.Send > maxWindow || s.LocalEnd && s.RemoteEnd || st.Client && s.ID >= st.Next || !st.Client && s.ID > st.Last
		last = s.ID
	}
	if wrong {
		return errors.New("restore: the state contradicts itself: it must be what Export returned")
	}
	return nil
}

// Restore goes on with an exported connection on nc, which must be where the
// exported one's was. It returns the open streams by number; their owners
// Deliver or Read on. Those that were not answered yet are not handled again.
func Restore(nc net.Conn, st State, cfg Config, h Handler) (*Conn, []*Stream, error) {
	if err := st.check(); err != nil {
		return nil, nil, err
	}
	r := server
	if st.Client {
		r = client
	}
	c := newConn(nc, cfg, r)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handle = h
	c.peer = peer{seen: true, table: min(st.Table, headerTable), window: st.Window, maxFrame: st.MaxFrame, maxStreams: st.MaxStreams, maxHeaders: st.MaxHeaders}
	c.send = st.Send
	c.set.next, c.set.last, c.set.beyond = st.Next, st.Last, st.Beyond
	for i, id := range st.Recent {
		left := uint32(maxWindow) // whoever wrote the state did not count
		if i < len(st.Grants) {
			left = st.Grants[i]
		}
		c.set.recent[i] = grant{id: id, left: left}
	}
	c.life.peerGone, c.life.draining, c.life.final = st.PeerGone, st.Draining, st.Final
	streams := c.restoreStreams(&st)
	in := &c.in
	in.phase, in.skip = atFrames, st.Input.Skip
	in.hold = append(in.hold, st.Input.Hold...)
	if st.Input.Data {
		in.part = dataFrame{s: c.set.open[st.Input.Stream], left: st.Input.Left, pad: st.Input.Pad, open: true, end: st.Input.End}
	}
	c.out.enc.SetMaxDynamicTableSize(0) // its first block says both
	c.out.enc.SetMaxDynamicTableSize(c.peer.table)
	c.settings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: headerTable})
	_ = nc.SetDeadline(time.Time{})
	c.wg.Go(c.readLoop)
	if st.Draining && !st.Final {
		c.ping.drain = time.AfterFunc(lingerTimeout, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.finalGoAway()
		})
	}
	c.kick()
	c.finishIfIdle()
	return c, streams, nil
}

// restoreStreams makes the streams and the windows. What was consumed and not
// given back is what is missing from each window's size, but for the rest of
// a DATA frame under way: that is charged and still to come.
func (c *Conn) restoreStreams(st *State) (streams []*Stream) {
	w := &c.recv
	coming := int64(0)
	if st.Input.Data {
		coming = int64(st.Input.Left)
	}
	w.size = max(w.size, st.Left)
	for i := range st.Streams {
		q := &st.Streams[i]
		s := c.newStream(q.ID)
		s.send, s.localEnd, s.remoteEnd, s.header.done = q.Send, q.LocalEnd, q.RemoteEnd, q.Answered
		s.recv = window{size: max(q.Size, c.cfg.base()), left: q.Left}
		s.in.push(q.Queued)
		s.recv.unsaid = s.recv.size - s.recv.left - int64(len(q.Queued))
		if q.ID == st.Input.Stream {
			s.recv.unsaid = max(0, s.recv.unsaid-coming)
		}
		w.extra += s.recv.size - c.cfg.base()
		w.queued += int64(len(q.Queued))
		c.cfg.Totals.queue(len(q.Queued))
		streams = append(streams, s)
	}
	w.left = st.Left
	w.held = min(max(0, w.queued-c.cfg.Queue), w.size-w.left)
	w.unsaid = max(0, w.size-w.left-w.held-coming)
	return streams
}

// moved reports whether the reading goroutine ended for Export, and tells it.
func (c *Conn) moved(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.move.stopped == nil {
		return false
	}
	if c.err == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.failRead(err)
	}
	close(c.move.stopped)
	return c.err == nil
}
