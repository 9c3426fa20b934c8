package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/internal/burst"

	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

var suites = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384}

// secrets makes the two states of a connection: a is the client.
func states(id uint16) (a, b State) {
	s, _ := suiteOf(id)
	up, down := bytes.Repeat([]byte{1}, s.secret), bytes.Repeat([]byte{2}, s.secret)
	a = State{Suite: id, Client: true, In: Half{Secret: down}, Out: Half{Secret: up}}
	b = State{Suite: id, In: Half{Secret: up}, Out: Half{Secret: down}}
	return a, b
}

func sockets(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	return tcppair.New(t)
}

func newConn(t testing.TB, nc net.Conn, st State) *Conn {
	t.Helper()
	c, err := New(nc, st)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// pair is two ends over loopback.
func pair(t testing.TB, id uint16) (client, server *Conn) {
	t.Helper()
	x, y := sockets(t)
	a, b := states(id)
	return newConn(t, x, a), newConn(t, y, b)
}

// peer seals records by hand for a Conn whose other end is a bare socket.
type peer struct {
	net.Conn
	out half
}

// handmade is a Conn (a server unless client) and the bare other end.
func handmade(t testing.TB, id uint16, client bool) (*Conn, *peer) {
	t.Helper()
	x, y := sockets(t)
	a, b := states(id)
	if client {
		a, b = b, a
	}
	s, _ := suiteOf(id)
	p := &peer{Conn: x, out: half{suite: s}}
	if err := p.out.install(a.Out.Secret, 0); err != nil {
		t.Fatal(err)
	}
	return newConn(t, y, b), p
}

// record is content of a kind with padding, sealed as the next one.
func (p *peer) record(kind byte, content []byte, padding int) []byte {
	inner := append(append([]byte(nil), content...), kind)
	return p.sealed(append(inner, make([]byte, padding)...))
}

// sealed seals exactly inner.
func (p *peer) sealed(inner []byte) []byte {
	n := len(inner) + tagSize
	head := []byte{typeData, 3, 3, byte(n >> 8), byte(n)}
	return p.out.aead.Seal(head, p.out.tick(), inner, head)
}

// alertOf reads what c's end sent last as alert.
func (p *peer) alertOf(t *testing.T, id uint16, c *Conn) byte {
	t.Helper()
	_ = p.SetReadDeadline(time.Now().Add(10 * time.Second))
	_ = c.nc.(*net.TCPConn).CloseWrite()
	raw, _ := io.ReadAll(p.Conn)
	s, _ := suiteOf(id)
	in := half{suite: s}
	st, peerState := states(id)
	if c.in.post.client {
		peerState = st
	}
	if err := in.install(peerState.Out.Secret, 0); err != nil {
		t.Fatal(err)
	}
	var last []byte
	for len(raw) >= headerSize {
		n := headerSize + int(raw[3])<<8 + int(raw[4])
		out, err := in.aead.Open(nil, in.tick(), raw[headerSize:n], raw[:headerSize])
		if err != nil {
			t.Fatalf("what was sent does not open: %v", err)
		}
		last, raw = out, raw[n:]
	}
	if len(last) != 3 || last[2] != typeAlert {
		t.Fatalf("last record %x is no alert", last)
	}
	return last[1]
}

func random(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(p)
	return p
}

// roomy copies p to where one byte behind may be changed.
func roomy(p []byte) []byte { return append(append(make([]byte, 0, len(p)+1), p...), 0xee)[:len(p)] }

// TestSizes: every legal size of content arrives, with and without padding, in
// records one by one and together.
func TestSizes(t *testing.T) {
	for _, id := range suites {
		c, p := handmade(t, id, false)
		want := random(maxContent)
		go func() {
			var out []byte
			for n := 0; n <= maxContent; n++ {
				if n%50 != 0 && n > 300 && n < maxContent-300 && testing.Short() {
					continue
				}
				pad := 0
				if n%3 == 0 {
					pad = rand.IntN(maxContent - n + 1)
				}
				if out = append(out, p.record(typeData, want[:n], pad)...); len(out) > 1<<20 || n%97 == 0 {
					_, _ = p.Write(out)
					out = out[:0]
				}
			}
			_, _ = p.Write(append(out, p.record(typeAlert, []byte{levelWarning, 0}, 0)...))
		}()
		n, at := 1, 0
		err := c.Feed(func(got []byte) (int, error) {
			done := len(got)
			for len(got) > 0 {
				if n%50 != 0 && n > 300 && n < maxContent-300 && testing.Short() {
					n++
					continue
				}
				m := min(n-at, len(got))
				if !bytes.Equal(got[:m], want[at:at+m]) {
					return 0, fmt.Errorf("record of %d bytes differs behind %d", n, at)
				}
				if at += m; at == n {
					n, at = n+1, 0
				}
				got = got[m:]
			}
			return done, nil
		})
		if err != nil || n != maxContent+1 {
			t.Errorf("suite %#x: %v at %d", id, err, n)
		}
	}
}

// TestBitFlips: a flip of any bit of a record ends the connection, and only
// what came before it is delivered.
func TestBitFlips(t *testing.T) {
	for _, size := range []int{0, 1, 60} {
		for _, id := range suites {
			_, p := handmade(t, id, false)
			first, second := p.record(typeData, []byte("good"), 0), p.record(typeData, random(size), 3)
			for bit := range len(second) * 8 {
				bad := bytes.Clone(second)
				bad[bit/8] ^= 1 << (bit % 8)
				got, err := drain(t, id, append(bytes.Clone(first), bad...), true)
				if string(got) != "good" {
					t.Fatalf("bit %d: delivered %q", bit, got)
				}
				ae, alert := errors.AsType[*AlertError](err)
				// A flipped length may also make the rest look cut.
				if !alert && (!errors.Is(err, io.ErrUnexpectedEOF) || bit/8 < 3 || bit/8 > 4) {
					t.Fatalf("bit %d: %v", bit, err)
				}
				if alert && bit/8 >= headerSize && ae.Alert != badRecordMAC {
					t.Fatalf("bit %d: %v", bit, err)
				}
			}
		}
	}
}

// drain gives wire to a server's Conn and returns what it delivers and says.
func drain(t testing.TB, id uint16, wire []byte, feed bool) ([]byte, error) {
	t.Helper()
	_, st := states(id)
	c, err := New(&canned{r: bytes.NewReader(wire)}, st)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if feed {
		var got []byte
		err := c.Feed(func(p []byte) (int, error) { got = append(got, p...); return len(p), nil })
		return got, err
	}
	return io.ReadAll(c)
}

// canned is a connection that has nothing but r.
type canned struct {
	net.Conn
	r io.Reader
	w bytes.Buffer
}

func (c *canned) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *canned) Write(p []byte) (int, error)      { return c.w.Write(p) }
func (c *canned) Close() error                     { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }

// TestTruncation: wherever the stream is cut, it ends in an error, unless that
// is behind close_notify.
func TestTruncation(t *testing.T) {
	for _, id := range suites {
		_, p := handmade(t, id, false)
		one, two := p.record(typeData, []byte("one"), 0), p.record(typeData, []byte("two"), 7)
		wire := append(append(bytes.Clone(one), two...), p.record(typeAlert, []byte{levelWarning, 0}, 0)...)
		for n := range len(wire) + 1 {
			want := ""
			if n >= len(one) {
				want = "one"
			}
			if n >= len(one)+len(two) {
				want = "onetwo"
			}
			for _, feed := range []bool{true, false} {
				got, err := drain(t, id, wire[:n], feed)
				if whole := n == len(wire); string(got) != want || whole != (err == nil) || !whole && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("cut behind %d: %q, %v", n, got, err)
				}
			}
		}
	}
}

// TestRefuses: each breach of the protocol gets its alert, once, and ends both
// directions.
func TestRefuses(t *testing.T) {
	ticket := append([]byte{msgTicket, 0, 0, 10}, make([]byte, 10)...)
	update := []byte{msgUpdate, 0, 0, 1, 0}
	data := func(n int) func(*peer) []byte {
		return func(p *peer) []byte {
			var out []byte
			for range n {
				out = append(out, p.record(typeData, nil, 0)...)
			}
			return out
		}
	}
	kind := func(k byte, content []byte) func(*peer) []byte {
		return func(p *peer) []byte { return p.record(k, content, 0) }
	}
	raw := func(b ...byte) func(*peer) []byte { return func(*peer) []byte { return b } }
	for name, tc := range map[string]struct {
		client bool
		send   func(p *peer) []byte
		want   tls.AlertError
	}{
		"change cipher spec":       {send: raw(typeChange, 3, 3, 0, 1, 1), want: unexpectedMessage},
		"bare alert":               {send: raw(typeAlert, 3, 3, 0, 2, 2, 40), want: unexpectedMessage},
		"bare handshake":           {send: raw(typeHandshake, 3, 3, 0, 4, 0, 0, 0, 0), want: unexpectedMessage},
		"unknown outer type":       {send: raw(99, 3, 3, 0, 1, 0), want: unexpectedMessage},
		"too long":                 {send: raw(typeData, 3, 3, 0x41, 1), want: recordOverflow},
		"shorter than a tag":       {send: raw(typeData, 3, 3, 0, 3, 1, 2, 3), want: badRecordMAC},
		"empty":                    {send: raw(typeData, 3, 3, 0, 0), want: badRecordMAC},
		"other version":            {send: func(p *peer) []byte { r := p.record(typeData, []byte("x"), 0); r[2] = 4; return r }, want: badRecordMAC},
		"repeated":                 {send: func(p *peer) []byte { r := p.record(typeData, nil, 0); return append(r, r...) }, want: badRecordMAC},
		"left out":                 {send: func(p *peer) []byte { p.out.tick(); return p.record(typeData, nil, 0) }, want: badRecordMAC},
		"too much inside":          {send: func(p *peer) []byte { return p.record(typeData, make([]byte, maxContent+1), 0) }, want: recordOverflow},
		"too much padding":         {send: func(p *peer) []byte { return p.record(typeData, make([]byte, 1), maxContent) }, want: recordOverflow},
		"only padding":             {send: func(p *peer) []byte { return p.sealed(make([]byte, 9)) }, want: unexpectedMessage},
		"nothing at all":           {send: func(p *peer) []byte { return p.sealed(nil) }, want: unexpectedMessage},
		"inner change cipher spec": {send: kind(typeChange, []byte{1}), want: unexpectedMessage},
		"unknown inner type":       {send: kind(24, []byte{1}), want: unexpectedMessage},
		"empty records":            {send: data(maxIdle + 1), want: unexpectedMessage},
		"empty alert":              {send: kind(typeAlert, nil), want: decodeError},
		"two alerts in one":        {send: kind(typeAlert, []byte{1, 90, 1, 90}), want: decodeError},
		"empty handshake":          {send: kind(typeHandshake, nil), want: unexpectedMessage},
		"ticket to a server":       {send: kind(typeHandshake, ticket), want: unexpectedMessage},
		"client hello":             {send: kind(typeHandshake, []byte{1, 0, 0, 1, 0}), want: unexpectedMessage},
		"certificate request":      {client: true, send: kind(typeHandshake, []byte{13, 0, 0, 1, 0}), want: unexpectedMessage},
		"update of two bytes":      {send: kind(typeHandshake, []byte{msgUpdate, 0, 0, 2, 0, 0}), want: decodeError},
		"update that asks for 2":   {send: kind(typeHandshake, []byte{msgUpdate, 0, 0, 1, 2}), want: illegalParameter},
		"update not at the end":    {client: true, send: kind(typeHandshake, append(bytes.Clone(update), ticket...)), want: unexpectedMessage},
		"two updates in one":       {send: kind(typeHandshake, append(bytes.Clone(update), update...)), want: unexpectedMessage},
		"data inside of a message": {client: true, send: func(p *peer) []byte {
			return append(p.record(typeHandshake, ticket[:3], 0), p.record(typeData, []byte("x"), 0)...)
		}, want: unexpectedMessage},
		"alert inside of a message": {client: true, send: func(p *peer) []byte {
			return append(p.record(typeHandshake, ticket[:8], 0), p.record(typeAlert, []byte{1, 0}, 0)...)
		}, want: unexpectedMessage},
		"a huge ticket": {client: true, send: kind(typeHandshake, []byte{msgTicket, 0xff, 0xff, 0xff}), want: unexpectedMessage},
		"tickets without end": {client: true, send: func(p *peer) []byte {
			var out []byte
			big := append([]byte{msgTicket, 0, 0x3f, 0}, make([]byte, 0x3f00)...)
			for range 20 {
				out = append(out, p.record(typeHandshake, big, 0)...)
			}
			return out
		}, want: unexpectedMessage},
		"updates without end": {send: func(p *peer) []byte {
			var out []byte
			for range updatesAtOnce + 5 {
				out = append(out, p.record(typeHandshake, update, 0)...)
				out = append(out, p.recordAfterUpdate()...)
			}
			return out
		}, want: unexpectedMessage},
	} {
		t.Run(name, func(t *testing.T) {
			for _, id := range suites {
				c, p := handmade(t, id, tc.client)
				if _, err := p.Write(tc.send(p)); err != nil {
					t.Fatal(err)
				}
				n, err := c.Read(make([]byte, 10))
				for err == nil && strings.HasPrefix(name, "updates") {
					n, err = c.Read(make([]byte, 1))
				}
				ae, ok := errors.AsType[*AlertError](err)
				if n != 0 || !ok || ae.Alert != tc.want || ae.Remote {
					t.Fatalf("%d bytes, %v, want alert %d", n, err, uint8(tc.want))
				}
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ae) {
					t.Errorf("read again: %v", err)
				}
				if _, err := c.Write([]byte("x")); !errors.Is(err, ae) {
					t.Errorf("write: %v", err)
				}
				if got := p.alertOf(t, id, c); got != byte(tc.want) {
					t.Errorf("alert %d was sent, want %d", got, uint8(tc.want))
				}
			}
		})
	}
}

// recordAfterUpdate is a byte of content under the peer's next key.
func (p *peer) recordAfterUpdate() []byte {
	if err := p.out.next(); err != nil {
		panic(err)
	}
	return p.record(typeData, []byte("x"), 0)
}

// TestTicketsIgnored: tickets come several in a record or spread over many.
func TestTicketsIgnored(t *testing.T) {
	for _, id := range suites {
		c, p := handmade(t, id, true)
		ticket := append([]byte{msgTicket, 0, 1, 0}, random(256)...)
		out := p.record(typeHandshake, bytes.Repeat(ticket, 3), 0)
		for i := range ticket {
			if i%9 == 8 || i == len(ticket)-1 {
				out = append(out, p.record(typeHandshake, ticket[i-i%9:i+1], i%4)...)
			}
		}
		out = append(out, p.record(typeAlert, []byte{levelWarning, byte(userCanceled)}, 0)...)
		out = append(out, p.record(typeData, []byte("data"), 0)...)
		if _, err := p.Write(out); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 10)
		if n, err := c.Read(got); err != nil || string(got[:n]) != "data" {
			t.Errorf("%q, %v", got[:n], err)
		}
	}
}

// TestRemoteAlert: an alert of the peer is named, and nothing is answered.
func TestRemoteAlert(t *testing.T) {
	c, p := handmade(t, suites[0], false)
	if _, err := p.Write(p.record(typeAlert, []byte{levelFatal, 42}, 0)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1))
	ae, ok := errors.AsType[*AlertError](err)
	if !ok || !ae.Remote || !strings.Contains(err.Error(), "bad certificate") {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, ae) {
		t.Errorf("write: %v", err)
	}
	_ = c.Close()
	if rest, err := io.ReadAll(p.Conn); err != nil || len(rest) != 0 {
		t.Errorf("answered %d bytes, %v", len(rest), err)
	}
}

// TestHalfClose: close_notify ends one direction only.
func TestHalfClose(t *testing.T) {
	a, b := pair(t, suites[0])
	if _, err := a.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Errorf("again: %v", err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write behind the end: %v", err)
	}
	if got, err := io.ReadAll(b); err != nil || string(got) != "last words" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := b.Write([]byte("answer")); err != nil {
		t.Error(err)
	}
	_ = b.Close()
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
		t.Errorf("%q, %v", got, err)
	}
	if err := b.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

// TestDeadline: a read that ran out of time may be repeated, in the middle of
// a record too.
func TestDeadline(t *testing.T) {
	c, p := handmade(t, suites[0], false)
	rec := p.record(typeData, []byte("whole"), 0)
	for _, part := range [][]byte{rec[:3], rec[3:20]} {
		_, _ = p.Write(part)
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := c.Read(make([]byte, 9)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if err := c.Feed(func([]byte) (int, error) { return 0, errors.New("something") }); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	_ = c.SetReadDeadline(time.Time{})
	_, _ = p.Write(rec[20:])
	got := make([]byte, 9)
	if n, err := c.Read(got); err != nil || string(got[:n]) != "whole" {
		t.Errorf("%q, %v", got[:n], err)
	}
}

// TestIdleHoldsNothing: nothing that was used stays in use.
func TestIdleHoldsNothing(t *testing.T) {
	before := burst.Out()
	a, b := pair(t, suites[0])
	done := make(chan error, 1)
	total := 0
	all := make(chan struct{})
	go func() {
		done <- b.Feed(func(p []byte) (int, error) {
			if total += len(p); total == 3<<20 {
				close(all)
			}
			return len(p), nil
		})
	}()
	if _, err := a.Write(random(3 << 20)); err != nil {
		t.Fatal(err)
	}
	<-all
	for deadline := time.Now().Add(5 * time.Second); burst.Out() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d slabs are out", burst.Out()-before)
		}
	}
	_ = a.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
