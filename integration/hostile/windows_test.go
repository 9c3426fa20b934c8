//go:build lab

package hostile_test

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

func window(n uint32) []http2.Setting {
	return []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: n}}
}

// windowAttacks make the server keep what it may not send yet, or take more than it offered.
func windowAttacks() []attack {
	over := []string{goAway(http2.ErrCodeFlowControl), calm}
	return []attack{
		{name: "zero-window readers", manners: manners{settings: window(0)}, want: []string{tolerated}, run: func(ctx context.Context, p *peer) {
			p.openMany(ctx, 50, sourcePort)
			<-ctx.Done()
		}},
		{name: "one-byte windows", manners: manners{settings: window(1)}, want: []string{tolerated, calm}, run: func(ctx context.Context, p *peer) {
			p.onData = func(d *http2.DataFrame) {
				id, n := d.StreamID, uint32(len(d.Data()))
				if n > 0 {
					p.aside(func(f *http2.Framer) error { return f.WriteWindowUpdate(id, n) })
				}
			}
			p.openMany(ctx, 50, sourcePort)
			<-ctx.Done()
		}},
		{name: "WINDOW_UPDATE of one byte", manners: manners{settings: window(0)}, want: []string{calm, closed}, run: func(ctx context.Context, p *peer) {
			ids := p.openMany(ctx, 50, sourcePort)
			i := 0
			p.flood(ctx, func(f *http2.Framer) error {
				i++
				return f.WriteWindowUpdate(ids[i%len(ids)], 1)
			})
		}},
		{name: "WINDOW_UPDATE of the connection by one byte", want: []string{calm, closed}, run: func(ctx context.Context, p *peer) {
			p.openMany(ctx, 10, sourcePort)
			p.flood(ctx, func(f *http2.Framer) error { return f.WriteWindowUpdate(0, 1) })
		}},
		{name: "toggled initial window", manners: manners{settings: window(0)}, want: []string{calm}, run: func(ctx context.Context, p *peer) {
			p.openMany(ctx, 190, sourcePort)
			big := uint32(0)
			p.flood(ctx, func(f *http2.Framer) error {
				big = 64<<10 - big
				return f.WriteSettings(window(big)...)
			})
		}},
		{name: "initial window of 2 GiB twice", want: over, run: func(ctx context.Context, p *peer) {
			p.openMany(ctx, 10, stallPort)
			p.do(func(f *http2.Framer) error { return f.WriteWindowUpdate(1, 1<<30) })
			p.do(func(f *http2.Framer) error { return f.WriteSettings(window(1<<31 - 1)...) })
		}},
		{name: "connection window overflow", want: over, run: func(_ context.Context, p *peer) {
			p.do(func(f *http2.Framer) error { return f.WriteWindowUpdate(0, 1<<31-1) })
			p.do(func(f *http2.Framer) error { return f.WriteWindowUpdate(0, 1<<31-1) })
		}},
		{name: "DATA beyond the window", want: over, run: func(ctx context.Context, p *peer) {
			ids := p.openMany(ctx, 100, stallPort)
			piece, i := make([]byte, 16<<10), 0
			p.flood(ctx, func(f *http2.Framer) error {
				i++
				return f.WriteData(ids[i%len(ids)], false, piece)
			})
		}},
		{name: "a full window on every stream", want: []string{tolerated}, grow: 96, run: func(ctx context.Context, p *peer) {
			// What the protocol allows: all that the connection's window takes, to applications that do not read.
			ids := p.openMany(ctx, 190, stallPort)
			piece := make([]byte, 16<<10)
			for left := 15 << 20; left > 0 && ctx.Err() == nil; left -= len(piece) {
				id := ids[left/len(piece)%len(ids)]
				p.do(func(f *http2.Framer) error { return f.WriteData(id, false, piece) })
			}
			<-ctx.Done()
		}},
		{name: "199 stalled streams beside a fast one", manners: manners{settings: window(0)}, want: []string{tolerated}, run: fastBesideStalled},
		{name: "never-reading client", manners: manners{deaf: true, settings: window(1 << 30)}, want: []string{tolerated, calm, closed}, run: func(ctx context.Context, p *peer) {
			p.do(func(f *http2.Framer) error { return f.WriteWindowUpdate(0, 1<<30) })
			for range 190 {
				p.open(sourcePort)
			}
			for ctx.Err() == nil && p.do(func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) }) {
				pause(ctx, time.Millisecond)
			}
		}},
	}
}

// openMany opens n streams to a port and waits until they are answered.
func (p *peer) openMany(ctx context.Context, n int, port string) []uint32 {
	var ids []uint32
	for range n {
		ids = append(ids, p.open(port))
	}
	// The machine may be busy: the answers are waited for longer than the attack lasts.
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	p.opened(patient, int64(n))
	return ids
}

// fastBesideStalled must get its echoes on the one stream while all others of the same connection stand still. An echo
// that stays away shows as a connection that is stuck.
func fastBesideStalled(ctx context.Context, p *peer) {
	var back atomic.Int64
	fast := uint32(2*199 + 1)
	p.onData = func(d *http2.DataFrame) {
		if d.StreamID == fast {
			back.Add(int64(len(d.Data())))
		}
	}
	p.openMany(ctx, 199, sourcePort)
	p.open(echoPort)
	p.do(func(f *http2.Framer) error { return f.WriteWindowUpdate(fast, 1<<20) })
	for n := int64(100); ctx.Err() == nil && n < 1<<20; n += 100 {
		p.do(func(f *http2.Framer) error { return f.WriteData(fast, false, make([]byte, 100)) })
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		ok := p.until(late, func() bool { return back.Load() >= n })
		cancel()
		if !ok {
			p.reset() // no PING will be answered, which is what the table calls closed
			return
		}
	}
}
