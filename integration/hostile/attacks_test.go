//go:build lab

package hostile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"time"

	"golang.org/x/net/http2"
)

// attack is one row: what a connection does, and what may become of it.
type attack struct {
	name    string
	manners manners
	run     func(ctx context.Context, p *peer) // until ctx ends or the connection does
	mob     func(ctx context.Context, m *mob) error
	want    []string // each connection ends in one of these ways
	deafApp bool     // as a server: the application that called does not read
	grow    int64    // MiB of memory that the proxy may take more than before; 0 = 48
}

const mostGrowth = 48

func (a attack) growth() int64 {
	if a.grow > 0 {
		return a.grow << 20
	}
	return mostGrowth << 20
}

// finish says how the connection ended.
func (a attack) finish(p *peer) string {
	if a.manners.deaf {
		go p.read()
	}
	return p.end(6 * time.Second)
}

func attacks() []attack {
	return concat(streamAttacks(), headerAttacks(), controlAttacks(), windowAttacks(), frameAttacks(), tlsAttacks(), mobs())
}

func concat(tables ...[]attack) []attack {
	var out []attack
	for _, t := range tables {
		out = append(out, t...)
	}
	return out
}

var (
	calm     = goAway(http2.ErrCodeEnhanceYourCalm)
	protocol = goAway(http2.ErrCodeProtocol)
)

// streamAttacks open and end streams in ways that cost the server more than the client.
func streamAttacks() []attack {
	return []attack{
		// What the ratio of the table is worth on this machine at this hour.
		{name: "none, for comparison", want: []string{tolerated}, run: func(ctx context.Context, _ *peer) { <-ctx.Done() }},
		{name: "rapid reset", want: []string{calm}, run: func(ctx context.Context, p *peer) {
			p.flood(ctx, func(f *http2.Framer) error {
				id := p.stream()
				if err := headers(f, id, p.connect(echoPort)); err != nil {
					return err
				}
				return f.WriteRSTStream(id, http2.ErrCodeCancel)
			})
		}},
		{name: "reset after the answer", want: []string{tolerated, calm}, run: func(ctx context.Context, p *peer) {
			for n := int64(1); ctx.Err() == nil; n++ {
				id := p.open(echoPort)
				if !p.opened(ctx, n) {
					return
				}
				p.do(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) })
			}
		}},
		{name: "made you reset: WINDOW_UPDATE of 0", want: []string{calm}, run: func(ctx context.Context, p *peer) {
			p.flood(ctx, func(f *http2.Framer) error {
				id := p.stream()
				if err := headers(f, id, p.connect(echoPort)); err != nil {
					return err
				}
				return f.WriteWindowUpdate(id, 0)
			})
		}},
		{name: "made you reset: window overflow", want: []string{calm}, run: func(ctx context.Context, p *peer) {
			p.flood(ctx, func(f *http2.Framer) error {
				id := p.stream()
				if err := headers(f, id, p.connect(echoPort)); err != nil {
					return err
				}
				return f.WriteWindowUpdate(id, 1<<31-1)
			})
		}},
		{name: "made you reset: DATA after END_STREAM", want: []string{calm}, run: func(ctx context.Context, p *peer) {
			p.flood(ctx, func(f *http2.Framer) error {
				id := p.stream()
				if err := headers(f, id, p.connect(echoPort)); err != nil {
					return err
				}
				if err := f.WriteData(id, true, nil); err != nil {
					return err
				}
				return f.WriteData(id, false, []byte("more"))
			})
		}},
		{name: "streams over the limit", want: []string{calm}, run: func(ctx context.Context, p *peer) {
			p.flood(ctx, func(f *http2.Framer) error { return headers(f, p.stream(), p.connect(stallPort)) })
		}},
		{name: "refused requests", want: []string{tolerated, calm}, run: func(ctx context.Context, p *peer) {
			for n := int64(0); ctx.Err() == nil && p.opened(ctx, n); n++ {
				block := p.encode(":method", "CONNECT", ":authority", "192.0.2.1:80")
				p.do(func(f *http2.Framer) error { return headers(f, p.stream(), block) })
			}
		}},
		{name: "stream ids going down", want: []string{protocol, goAway(http2.ErrCodeStreamClosed)}, run: func(_ context.Context, p *peer) {
			p.do(func(f *http2.Framer) error { return headers(f, 101, p.connect(echoPort)) })
			p.do(func(f *http2.Framer) error { return headers(f, 99, p.connect(echoPort)) })
		}},
		{name: "DATA on closed streams", want: []string{calm}, run: func(ctx context.Context, p *peer) {
			id := p.open(echoPort)
			p.opened(ctx, 1)
			p.do(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) })
			p.flood(ctx, func(f *http2.Framer) error { return f.WriteData(id, false, []byte("x")) })
		}},
		{name: "DATA on an idle stream", want: []string{protocol}, run: func(_ context.Context, p *peer) {
			p.do(func(f *http2.Framer) error { return f.WriteData(77, false, []byte("x")) })
		}},
	}
}

// stream is the next stream's id, for attacks that do not care.
func (p *peer) stream() uint32 {
	p.next += 2
	return p.next - 2
}

// headerAttacks make header blocks cost memory or time.
func headerAttacks() []attack {
	half := func(f *http2.Framer, p *peer) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.connect(echoPort)})
	}
	junk := []byte("\x00\x05x-bad\x7f\xff\x03" + strings.Repeat("y", 1000)) // a literal that is longer than what is there
	codes := []string{calm, protocol, goAway(http2.ErrCodeCompression), goAway(http2.ErrCodeFrameSize)}
	return []attack{
		{name: "CONTINUATION without end", want: codes, run: func(ctx context.Context, p *peer) {
			block := p.encode("x-more", strings.Repeat("z", 60))
			p.do(func(f *http2.Framer) error { return half(f, p) })
			p.flood(ctx, func(f *http2.Framer) error { return f.WriteContinuation(1, false, block) })
		}},
		{name: "empty CONTINUATIONs", want: codes, run: func(ctx context.Context, p *peer) {
			p.do(func(f *http2.Framer) error { return half(f, p) })
			p.flood(ctx, func(f *http2.Framer) error { return f.WriteContinuation(1, false, nil) })
		}},
		{name: "huge CONTINUATIONs", want: codes, run: func(ctx context.Context, p *peer) {
			big := bytes.Repeat(junk, 64)
			p.do(func(f *http2.Framer) error { return half(f, p) })
			p.flood(ctx, func(f *http2.Framer) error { return f.WriteContinuation(1, false, big) })
		}},
		{name: "CONTINUATION of another stream", want: []string{protocol}, run: func(_ context.Context, p *peer) {
			p.do(func(f *http2.Framer) error { return half(f, p) })
			p.do(func(f *http2.Framer) error { return f.WriteContinuation(3, true, nil) })
		}},
		{name: "header bomb", want: codes, run: func(ctx context.Context, p *peer) {
			// One large field in the table, then a byte for each time it is meant.
			name := strings.Repeat("n", 2000)
			first := p.connect(echoPort, name, strings.Repeat("v", 2000))
			bomb := append(p.connect(echoPort), bytes.Repeat([]byte{0x80 | 62}, 15<<10)...)
			p.do(func(f *http2.Framer) error { return headers(f, p.stream(), first) })
			p.flood(ctx, func(f *http2.Framer) error { return headers(f, p.stream(), bomb) })
		}},
		{name: "broken compression", want: codes, run: func(_ context.Context, p *peer) {
			p.do(func(f *http2.Framer) error {
				return headers(f, p.stream(), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
			})
		}},
		{name: "table size beyond the limit", want: codes, run: func(_ context.Context, p *peer) {
			p.do(func(f *http2.Framer) error { return headers(f, p.stream(), []byte{0x3f, 0xe1, 0xff, 0xff, 0x07}) })
		}},
		{name: "trailers", want: []string{tolerated}, run: func(ctx context.Context, p *peer) {
			id := p.open(echoPort)
			if !p.opened(ctx, 1) {
				return
			}
			block := p.encode("x-trailer", "1")
			p.do(func(f *http2.Framer) error {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: true})
			})
			<-ctx.Done()
		}},
		{name: "trailers without end", want: []string{calm, protocol}, run: func(ctx context.Context, p *peer) {
			id := p.open(echoPort)
			if !p.opened(ctx, 1) {
				return
			}
			p.flood(ctx, func(f *http2.Framer) error { return headers(f, id, p.encode("x-trailer", "1")) })
		}},
		{name: "self-dependent priorities", want: []string{calm, protocol}, run: func(ctx context.Context, p *peer) {
			p.flood(ctx, func(f *http2.Framer) error {
				id := p.stream()
				return f.WritePriority(id, http2.PriorityParam{StreamDep: id, Exclusive: true})
			})
		}},
	}
}

// controlAttacks ask for answers, or for work, in frames that cost nothing to send.
func controlAttacks() []attack {
	flood := func(name string, want []string, write func(p *peer, f *http2.Framer) error) attack {
		return attack{name: name, want: want, run: func(ctx context.Context, p *peer) {
			p.flood(ctx, func(f *http2.Framer) error { return write(p, f) })
		}}
	}
	return []attack{
		flood("SETTINGS flood", []string{calm}, func(_ *peer, f *http2.Framer) error { return f.WriteSettings() }),
		flood("SETTINGS acknowledgements", []string{calm, protocol}, func(_ *peer, f *http2.Framer) error { return f.WriteSettingsAck() }),
		flood("PING flood", []string{calm}, func(_ *peer, f *http2.Framer) error { return f.WritePing(false, [8]byte{}) }),
		flood("PING answers that nobody wanted", []string{calm}, func(_ *peer, f *http2.Framer) error { return f.WritePing(true, [8]byte{}) }),
		flood("priority flood", []string{calm}, func(p *peer, f *http2.Framer) error {
			return f.WritePriority(p.stream(), http2.PriorityParam{StreamDep: 0, Weight: 200})
		}),
		flood("unknown frames", []string{calm}, func(_ *peer, f *http2.Framer) error { return f.WriteRawFrame(0xbe, 0, 0, []byte("x")) }),
		flood("GOAWAY spam", []string{calm, closed, goAway(http2.ErrCodeNo)}, func(_ *peer, f *http2.Framer) error {
			return f.WriteGoAway(0, http2.ErrCodeNo, []byte("again"))
		}),
		flood("resets of idle streams", []string{protocol}, func(p *peer, f *http2.Framer) error { return f.WriteRSTStream(p.stream(), http2.ErrCodeCancel) }),
		flood("PUSH_PROMISE", []string{protocol}, func(p *peer, f *http2.Framer) error {
			return f.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: p.connect(echoPort), EndHeaders: true})
		}),
		{name: "PING flood by a deaf peer", manners: manners{deaf: true}, want: []string{calm, closed}, run: func(ctx context.Context, p *peer) {
			p.flood(ctx, func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) })
		}},
		{name: "slow SETTINGS by a deaf peer", manners: manners{deaf: true}, want: []string{tolerated, calm, closed}, run: func(ctx context.Context, p *peer) {
			for ctx.Err() == nil && p.do(func(f *http2.Framer) error { return f.WriteSettings() }) {
				pause(ctx, 110*time.Millisecond)
			}
		}},
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// frameAttacks are frames that no framer writes.
func frameAttacks() []attack {
	raw := func(length int, kind http2.FrameType, flags http2.Flags, stream uint32, payload []byte) []byte {
		b := []byte{byte(length >> 16), byte(length >> 8), byte(length), byte(kind), byte(flags), 0, 0, 0, 0}
		binary.BigEndian.PutUint32(b[5:], stream)
		return append(b, payload...)
	}
	once := func(name string, want []string, frame []byte) attack {
		return attack{name: name, want: want, run: func(ctx context.Context, p *peer) {
			p.open(echoPort)
			p.opened(ctx, 1)
			p.do(func(*http2.Framer) error { _, err := p.w.Write(frame); return err })
		}}
	}
	size := []string{goAway(http2.ErrCodeFrameSize), protocol, calm}
	return []attack{
		once("a frame of 16 MiB", size, raw(1<<24-1, http2.FrameData, 0, 1, nil)),
		once("HEADERS of 16 MiB", size, raw(1<<24-1, http2.FrameHeaders, 4, 3, nil)),
		once("SETTINGS of 16 MiB", size, raw(1<<24-6, http2.FrameSettings, 0, 0, nil)),
		once("an unknown frame of 16 MiB", size, raw(1<<24-1, 0xbe, 0, 0, nil)),
		once("PING of 9 bytes", size, raw(9, http2.FramePing, 0, 0, make([]byte, 9))),
		once("more padding than frame", size, raw(4, http2.FrameData, http2.FlagDataPadded, 1, []byte{200, 0, 0, 0})),
		once("the server's preface back", size, []byte(http2.ClientPreface)),
		{name: "DATA of padding alone", want: []string{calm}, run: func(ctx context.Context, p *peer) {
			id := p.open(sinkPort)
			p.opened(ctx, 1)
			pad := make([]byte, 255)
			p.flood(ctx, func(f *http2.Framer) error { return f.WriteDataPadded(id, false, nil, pad) })
		}},
		{name: "empty DATA", want: []string{calm}, run: func(ctx context.Context, p *peer) {
			id := p.open(sinkPort)
			p.opened(ctx, 1)
			p.flood(ctx, func(f *http2.Framer) error { return f.WriteData(id, false, nil) })
		}},
		{name: "DATA of one byte", want: []string{tolerated}, run: func(ctx context.Context, p *peer) {
			id := p.open(sinkPort)
			p.opened(ctx, 1)
			for left := 60000; left > 0 && ctx.Err() == nil; left -= 1000 {
				p.do(func(f *http2.Framer) error {
					for range 1000 {
						if err := f.WriteData(id, false, []byte("x")); err != nil {
							return err
						}
					}
					return nil
				})
			}
		}},
		{name: "no preface", manners: manners{bare: true}, want: append(size, closed), run: func(_ context.Context, p *peer) {
			p.do(func(*http2.Framer) error {
				_, err := p.w.WriteString("GET / HTTP/1.1\r\nHost: victim\r\n\r\n")
				return err
			})
		}},
	}
}
