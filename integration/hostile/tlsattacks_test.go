//go:build lab

package hostile_test

import (
	"bytes"
	"context"
	"encoding/binary"

	"golang.org/x/net/http2"
)

// recordFlood writes records, many per packet, until ctx ends or the server does.
func (p *peer) recordFlood(ctx context.Context, next func(f *forger) []byte) {
	for ctx.Err() == nil && !p.over() {
		var b []byte
		for range 50 {
			b = append(b, next(p.forger)...)
			p.sent.Add(1)
		}
		if _, err := p.raw.Write(b); err != nil {
			return
		}
	}
}

// tlsAttacks are below HTTP/2: what a peer with a good certificate can do with records.
func tlsAttacks() []attack {
	forged := manners{forged: true}
	internal := goAway(http2.ErrCodeInternal) // the last word may come before the alert
	flood := func(name string, want []string, next func(f *forger) []byte) attack {
		return attack{name: name, manners: forged, want: append(want, internal), run: func(ctx context.Context, p *peer) { p.recordFlood(ctx, next) }}
	}
	once := func(name string, next func(f *forger) []byte) attack {
		return attack{name: name, manners: forged, want: []string{closed, internal}, run: func(_ context.Context, p *peer) {
			_, _ = p.raw.Write(next(p.forger))
			p.sent.Add(1)
		}}
	}
	return []attack{
		once("garbage records", func(*forger) []byte { return plain(recordApplication, 64, bytes.Repeat([]byte{0xa5}, 64)) }),
		once("garbage without records", func(*forger) []byte { return bytes.Repeat([]byte{0xff}, 4096) }),
		once("a record that claims too much", func(*forger) []byte { return plain(recordApplication, 1<<16-1, make([]byte, 1<<16-1)) }),
		once("a record of 16 KiB and one byte", func(f *forger) []byte { return f.record(recordApplication, make([]byte, 16<<10+1), 0) }),
		once("a flipped bit", func(f *forger) []byte {
			b := f.record(recordApplication, []byte("hello"), 0)
			b[7] ^= 1
			return b
		}),
		once("a record twice", func(f *forger) []byte {
			b := f.record(recordApplication, []byte{0, 0, 0, 4, 0, 0, 0, 0, 0}, 0)
			return append(b, b...)
		}),
		once("clear text after the handshake", func(*forger) []byte { return plain(recordApplication, 5, []byte("hello")) }),
		once("renegotiation: a ClientHello", func(f *forger) []byte { return f.record(recordHandshake, clientHello, 0) }),
		once("a Finished again", func(f *forger) []byte {
			return f.record(recordHandshake, append([]byte{20, 0, 0, 32}, make([]byte, 32)...), 0)
		}),
		once("a session ticket from the client", func(f *forger) []byte {
			return f.record(recordHandshake, append([]byte{4, 0, 0, 15}, make([]byte, 15)...), 0)
		}),
		once("a handshake message of 16 MiB", func(f *forger) []byte { return f.record(recordHandshake, []byte{4, 0xff, 0xff, 0xff}, 0) }),
		once("KeyUpdate with an unknown request", func(f *forger) []byte { return f.record(recordHandshake, []byte{24, 0, 0, 1, 7}, 0) }),
		once("KeyUpdate before other data", func(f *forger) []byte { return f.record(recordHandshake, []byte{24, 0, 0, 1, 0, 4}, 0) }),
		once("an empty handshake record", func(f *forger) []byte { return f.record(recordHandshake, nil, 0) }),
		once("nothing but padding", func(f *forger) []byte { return f.record(0, nil, 100) }),
		once("an unknown content type", func(f *forger) []byte { return f.record(99, []byte("hello"), 0) }),
		once("a fatal alert", func(f *forger) []byte { return f.record(recordAlert, []byte{2, 80}, 0) }),
		flood("zero-length records", []string{closed, tolerated}, func(f *forger) []byte { return f.record(recordApplication, nil, 0) }),
		flood("zero-length records in padding", []string{closed, tolerated}, func(f *forger) []byte { return f.record(recordApplication, nil, 16<<10) }),
		flood("warnings", []string{closed}, func(f *forger) []byte { return f.record(recordAlert, []byte{1, 90}, 0) }),
		flood("change_cipher_spec after the handshake", []string{closed}, func(*forger) []byte { return plain(recordCipherSpec, 1, []byte{1}) }),
		{name: "KeyUpdate flood", manners: forged, want: []string{closed, tolerated, internal}, run: func(ctx context.Context, p *peer) {
			p.recordFlood(ctx, func(f *forger) []byte { return f.update(true) })
		}},
		{name: "KeyUpdate flood by a deaf peer", manners: manners{forged: true, deaf: true}, want: []string{closed, tolerated, internal}, run: func(ctx context.Context, p *peer) {
			p.recordFlood(ctx, func(f *forger) []byte { return f.update(true) })
		}},
		{name: "a PING in records of one byte", manners: forged, want: []string{tolerated, calm}, run: func(ctx context.Context, p *peer) {
			ping := []byte{0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}
			i := 0
			p.recordFlood(ctx, func(f *forger) []byte {
				i++
				return f.record(recordApplication, ping[(i-1)%len(ping):(i-1)%len(ping)+1], 0)
			})
			for ; i%len(ping) != 0; i++ {
				_, _ = p.raw.Write(p.forger.record(recordApplication, ping[i%len(ping):i%len(ping)+1], 0))
			}
		}},
		{name: "padding to the brim", manners: forged, want: []string{tolerated, calm}, run: func(ctx context.Context, p *peer) {
			ping := []byte{0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}
			p.recordFlood(ctx, func(f *forger) []byte { return f.record(recordApplication, ping, 16<<10-len(ping)) })
		}},
	}
}

// clientHello begins a handshake as any client would: enough of one to be taken for it.
var clientHello = func() []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0, 0, 0)
	return append(binary.BigEndian.AppendUint32(nil, 1<<24|uint32(len(body))), body...)
}()
