package mtls

import (
	"bytes"
	"context"
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/internal/burst"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func random(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(p)
	return p
}

// connect shakes hands over raw connections, each side by its Handshaker.
func connect(t testing.TB, a, b net.Conn, client, server Handshaker) (Conn, Conn) {
	t.Helper()
	ca := newAuthority(t, "root")
	cl, srv := ca.issue(t, idA, nil), ca.issue(t, idB, nil)
	done := make(chan outcome, 1)
	go func() {
		c, id, err := server.Server(context.Background(), b, srv)
		done <- outcome{c, id, err}
	}()
	c, _, err := client.Client(context.Background(), a, cl, []identity.ID{identity.MustParse(idB)})
	s := <-done
	if err != nil || s.err != nil {
		t.Fatal(err, s.err)
	}
	t.Cleanup(func() { _, _, _, _ = a.Close(), b.Close(), c.Close(), s.conn.Close() })
	return c, s.conn
}

func std() Handshaker { return New(Options{StdRecords: true}) }

func isOwn(c Conn) bool { _, ok := c.(*record.Conn); return ok }

// TestWhoKeepsRecords: ours by default, crypto/tls' when told.
func TestWhoKeepsRecords(t *testing.T) {
	a, b := pair(t)
	if c, s := connect(t, a, b, Handshaker{}, std()); !isOwn(c) || isOwn(s) {
		t.Errorf("%T, %T", c, s)
	}
	a, b = pair(t)
	if c, s := connect(t, a, b, std(), Handshaker{}); isOwn(c) || !isOwn(s) {
		t.Errorf("%T, %T", c, s)
	}
}

// TestFIPS: in FIPS mode, which a process is started in, crypto/tls keeps the
// records.
func TestFIPS(t *testing.T) {
	if fips140.Enabled() {
		a, b := pair(t)
		if c, s := connect(t, a, b, Handshaker{}, Handshaker{}); isOwn(c) || isOwn(s) {
			t.Errorf("%T, %T", c, s)
		}
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFIPS$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=on")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestFIPS")) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestAgainstStandard: between our records and crypto/tls', in both roles,
// what is written arrives, however it is cut, over sockets and pipes.
func TestAgainstStandard(t *testing.T) {
	for _, ourClient := range []bool{true, false} {
		rapid.Check(t, func(rt *rapid.T) {
			var a, b net.Conn
			if rapid.Bool().Draw(rt, "socket") {
				a, b = pair(t)
			} else {
				a, b = net.Pipe()
			}
			if chop := rapid.SampledFrom([]int{0, 1, 3, 700}).Draw(rt, "bytes at a time"); chop > 0 {
				a, b = chopped{a, chop, new(int)}, chopped{b, chop, new(int)}
			}
			var own, other Conn
			if ourClient {
				own, other = connect(t, a, b, Handshaker{}, std())
			} else {
				other, own = connect(t, a, b, std(), Handshaker{})
			}
			size := rapid.SampledFrom([]int{1, 9, 100, 4095, 16383, 16384, 16385, 70000, 300000})
			up := rapid.SliceOfN(size, 0, 8).Draw(rt, "ours")
			down := rapid.SliceOfN(size, 0, 8).Draw(rt, "theirs")
			ends := make(chan error, 3)
			go func() { ends <- writeSizes(own, up, true) }()
			go func() { ends <- writeSizes(other, down, false) }()
			go func() { ends <- readSizes(other, up) }()
			if err := readSizes(own, down); err != nil {
				rt.Fatalf("ours reads: %v", err)
			}
			for range 3 {
				if err := <-ends; err != nil {
					rt.Fatal(err)
				}
			}
			_, _ = a.Close(), b.Close()
		})
	}
}

// chopped gives the handshake's bytes, and some more, in small pieces.
type chopped struct {
	net.Conn
	size int
	read *int
}

func (c chopped) Read(p []byte) (int, error) {
	if *c.read < 10000 {
		p = p[:min(c.size, len(p))]
	}
	n, err := c.Conn.Read(p)
	*c.read += n
	return n, err
}

func writeSizes(c Conn, sizes []int, owned bool) error {
	w, _ := c.(*record.Conn)
	for i, n := range sizes {
		p := random(n)
		var err error
		if owned && i%2 == 0 {
			err = w.WriteOwned([][]byte{append(p[:n/2:n/2], 0)[:n/2], append(p[n/2:], 0)[:n-n/2]})
		} else {
			_, err = c.Write(p)
		}
		if err != nil {
			return fmt.Errorf("write %d: %w", i, err)
		}
	}
	return c.CloseWrite()
}

func readSizes(c Conn, sizes []int) error {
	var want, got []byte
	for _, n := range sizes {
		want = append(want, random(n)...)
	}
	var err error
	if own, ok := c.(*record.Conn); ok && len(sizes)%2 == 0 {
		err = own.Feed(func(p []byte) (int, error) {
			n := len(p) - len(p)/7
			if len(p) > 100000 {
				n = len(p)
			}
			got = append(got, p[:n]...)
			return n, nil
		})
		rest := want[min(len(got), len(want)):]
		if err == nil && bytes.Equal(got, want[:len(want)-len(rest)]) && len(rest) < 50000 {
			return nil // what Feed's reader left over at the end
		}
	} else {
		got, err = io.ReadAll(c)
	}
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%d bytes arrived of %d, or others", len(got), len(want))
	}
	return err
}

// joined sends what is written before go at once with what is written after:
// the peer finds both in one segment.
type joined struct {
	net.Conn
	hold bool
	held []byte
}

func (j *joined) Write(p []byte) (int, error) {
	if j.hold {
		j.held = append(j.held, p...)
		return len(p), nil
	}
	if len(j.held) > 0 {
		if _, err := j.Conn.Write(append(j.held, p...)); err != nil {
			return 0, err
		}
		j.held = nil
		return len(p), nil
	}
	return j.Conn.Write(p)
}

// TestDataBehindFinished: data that came in one segment with the last
// handshake record are neither lost nor read by the handshake. A client sends
// such data by right; a server may send them before it has the client's.
func TestDataBehindFinished(t *testing.T) {
	ca := newAuthority(t, "root")
	cl, srv := ca.issue(t, idA, nil), ca.issue(t, idB, nil)
	t.Run("to the server", func(t *testing.T) {
		a, b := pair(t)
		j := &joined{Conn: a}
		done := make(chan outcome, 1)
		go func() {
			c, id, err := Server(context.Background(), b, srv)
			done <- outcome{c, id, err}
		}()
		cfg := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cl.TLS}, NextProtos: []string{"h2"}}
		// From the server's certificate on, all is held back.
		cfg.VerifyConnection = func(tls.ConnectionState) error { j.hold = true; return nil }
		c := tls.Client(j, cfg)
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		big := random(100000)
		if _, err := c.Write([]byte("first words")); err != nil {
			t.Fatal(err)
		}
		j.hold = false
		if _, err := c.Write(big); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		s := <-done
		if s.err != nil || !isOwn(s.conn) {
			t.Fatal(s.err)
		}
		got, err := io.ReadAll(s.conn)
		if err != nil || !bytes.Equal(got, append([]byte("first words"), big...)) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		_, _ = s.conn.Close(), a.Close()
	})
	t.Run("to the client", func(t *testing.T) {
		// The records that a server sends in one go with its Finished: here those
		// of the whole flight and what follows are joined in front of the client.
		a, b := pair(t)
		k := &keyLog{}
		cfg := std().base(srv)
		cfg.ClientAuth, cfg.KeyLogWriter = tls.RequireAnyClientCert, k
		w := &appending{Conn: b, keys: k}
		ended := make(chan error, 1)
		go func() { ended <- tls.Server(w, cfg).HandshakeContext(context.Background()) }()
		c, _, err := Client(t.Context(), a, cl, []identity.ID{identity.MustParse(idB)})
		if serr := <-ended; err != nil || serr != nil || !isOwn(c) {
			t.Fatal(err, serr)
		}
		got := make([]byte, 100)
		n, err := io.ReadAtLeast(c, got, len(early))
		if err != nil || string(got[:n]) != early {
			t.Errorf("%q, %v", got[:n], err)
		}
		_, _ = c.Close(), b.Close()
	})
}

const early = "before you have finished"

// appending writes, together with the server's flight, application data under
// the keys that are known by then.
type appending struct {
	net.Conn
	keys *keyLog
	done bool
}

func (w *appending) Write(p []byte) (int, error) {
	if !w.done && w.keys.complete() {
		w.done = true
		sink := &sink{}
		own, err := record.New(sink, record.State{
			Suite: tls.TLS_AES_128_GCM_SHA256, In: record.Half{Secret: w.keys.client}, Out: record.Half{Secret: w.keys.server},
		})
		if err != nil {
			return 0, err
		}
		if _, err := own.Write([]byte(early)); err != nil {
			return 0, err
		}
		n := len(p)
		_, err = w.Conn.Write(append(append([]byte(nil), p...), sink.Bytes()...))
		return n, err
	}
	return w.Conn.Write(p)
}

type sink struct {
	net.Conn
	bytes.Buffer
}

func (s *sink) Read(p []byte) (int, error)  { return s.Buffer.Read(p) }
func (s *sink) Write(p []byte) (int, error) { return s.Buffer.Write(p) }

// TestRefusesTakeOver: on any doubt crypto/tls keeps the connection, and it
// works.
func TestRefusesTakeOver(t *testing.T) {
	for name, spoil := range map[string]func(*tap){
		"no secrets":           func(t *tap) { t.keys.client = nil },
		"a broken line":        func(t *tap) { _, _ = t.keys.Write([]byte("CLIENT_TRAFFIC_SECRET_0 00 xy\n")) },
		"a second secret":      func(t *tap) { _, _ = t.keys.Write([]byte("SERVER_TRAFFIC_SECRET_0 00 00\n")) },
		"a secret of bad size": func(t *tap) { t.keys.server = t.keys.server[:20] },
		"a huge flight":        func(t *tap) { t.overflow = true },
		"a record's middle":    func(t *tap) { t.left = 5 },
		"a record was sent":    func(t *tap) { t.sent = append(t.sent, sealed(t.keys.client)...) },
		"a record was read":    func(t *tap) { t.got = append(t.got, sealed(t.keys.server)...) },
	} {
		t.Run(name, func(t *testing.T) {
			ca := newAuthority(t, "root")
			cl, srv := ca.issue(t, idA, nil), ca.issue(t, idB, nil)
			a, b := pair(t)
			done := make(chan outcome, 1)
			go func() {
				c, id, err := std().Server(context.Background(), b, srv)
				done <- outcome{c, id, err}
			}()
			under := &tap{Conn: a}
			cfg := Handshaker{}.base(cl)
			cfg.InsecureSkipVerify, cfg.KeyLogWriter = true, &under.keys
			c := tls.Client(under, cfg)
			if err := c.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := <-done
			if _, err := s.conn.Write([]byte("early")); err != nil {
				t.Fatal(err)
			}
			_ = under.fill() // as if it had come with the last flight
			spoil(under)
			if own, err := under.takeOver(c, true); err == nil || own != nil {
				t.Fatal("taken over")
			}
			under.free, under.left = true, 0
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "early" {
				t.Fatalf("%q, %v", got, err)
			}
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s.conn, got); err != nil || string(got) != "hello" {
				t.Errorf("%q, %v", got, err)
			}
			_, _ = c.Close(), s.conn.Close()
		})
	}
}

// sealed is the first record under a secret.
func sealed(secret []byte) []byte {
	out := &sink{}
	c, err := record.New(out, record.State{Suite: tls.TLS_AES_128_GCM_SHA256, In: record.Half{Secret: secret}, Out: record.Half{Secret: secret}})
	if err != nil {
		panic(err)
	}
	_, _ = c.Write([]byte("x"))
	return out.Bytes()
}

// TestHandshakeHoldsNothing: neither success nor failure keeps a slab or the
// secrets.
func TestHandshakeHoldsNothing(t *testing.T) {
	before := burst.Out()
	ca, other := newAuthority(t, "root"), newAuthority(t, "other")
	shake(t, ca.issue(t, idA, nil), ca.issue(t, idB, nil), identity.MustParse(idB))
	shake(t, ca.issue(t, idA, nil), other.issue(t, idB, nil), identity.MustParse(idB))
	for range 100 {
		if burst.Out() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d slabs are out", burst.Out()-before)
}

// TestCutHandshake: an end in the middle of a record is what crypto/tls says.
func TestCutHandshake(t *testing.T) {
	ca := newAuthority(t, "root")
	for _, wire := range []string{"", "\x16", "\x16\x03\x01\x00\xff", "\x16\x03\x01\x00\x05abc", strings.Repeat("x", 9000)} {
		a, b := pair(t)
		_, _ = a.Write([]byte(wire))
		_ = a.(*net.TCPConn).CloseWrite()
		_, _, own := Server(t.Context(), b, ca.issue(t, idB, nil))
		_ = a.Close()
		a, b = pair(t)
		_, _ = a.Write([]byte(wire))
		_ = a.(*net.TCPConn).CloseWrite()
		_, _, plain := std().Server(t.Context(), b, ca.issue(t, idB, nil))
		_ = a.Close()
		if own == nil || errors.Unwrap(own).Error() != errors.Unwrap(plain).Error() {
			t.Errorf("%.20q: %v, crypto/tls says %v", wire, own, plain)
		}
	}
}

// flipping changes one bit of what it reads.
type flipping struct {
	net.Conn
	at, bit int
	read    int
}

func (f *flipping) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if k := f.at - f.read; k >= 0 && k < n {
		p[k] ^= 1 << f.bit
	}
	f.read += n
	return n, err
}

// TestFlipsInHandshake: whatever bit of the handshake or of what follows is
// changed on its way to us, no other byte than what was sent is delivered, and
// nothing is kept.
func TestFlipsInHandshake(t *testing.T) {
	ca := newAuthority(t, "root")
	cl, srv := ca.issue(t, idA, nil), ca.issue(t, idB, nil)
	before := burst.Out()
	step := 5
	if testing.Short() {
		step = 41
	}
	for _, toClient := range []bool{true, false} {
		passed := 0
		for at := rand.IntN(step); at < 1500; at += step {
			a, b := pair(t)
			limit := time.Now().Add(300 * time.Millisecond)
			_, _ = a.SetDeadline(limit), b.SetDeadline(limit)
			flip := &flipping{at: at, bit: at % 8}
			if toClient {
				flip.Conn, a = a, flip
			} else {
				flip.Conn, b = b, flip
			}
			done := make(chan error, 1)
			go func() {
				c, _, err := Server(context.Background(), b, srv)
				if err == nil {
					err = say(c)
				}
				_ = b.Close()
				done <- err
			}()
			c, _, err := Client(t.Context(), a, cl, []identity.ID{identity.MustParse(idB)})
			if err == nil {
				err = say(c)
			}
			_ = a.Close()
			serr := <-done
			for _, err := range []error{err, serr} {
				if errors.Is(err, errOther) {
					t.Fatalf("bit %d of byte %d: %v", at%8, at, err)
				}
			}
			if err == nil && serr == nil && flip.read > at {
				passed++
				t.Logf("bit %d of byte %d is not looked at", at%8, at)
			}
		}
		// A record's legacy version is nothing that anybody relies on.
		if passed > 10 {
			t.Errorf("%d changes went unnoticed", passed)
		}
	}
	if out := burst.Out(); out > before {
		t.Errorf("%d slabs are out", out-before)
	}
}

var errOther = errors.New("other bytes were delivered")

// say greets and wants to be greeted.
func say(c Conn) error {
	defer func() { _ = c.Close() }()
	const greeting = "hello, hello, hello"
	if _, err := c.Write([]byte(greeting)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if !strings.HasPrefix(greeting, string(got)) || err == nil && string(got) != greeting {
		return errOther
	}
	return err
}

// TestPostQuantum: under the policy nothing else is agreed on, without it our
// two ends take P-256, and clients that offer the hybrid get it.
func TestPostQuantum(t *testing.T) {
	ca := newAuthority(t, "root")
	cl, srv := ca.issue(t, idA, nil), ca.issue(t, idB, nil)
	pqc := New(Options{PostQuantum: true})
	for name, tc := range map[string]struct {
		client, server Handshaker
		offer          []tls.CurveID // instead of client's
		want           tls.CurveID   // 0: refused
	}{
		"default":        {want: tls.CurveP256},
		"policy":         {client: pqc, server: pqc, want: tls.X25519MLKEM768},
		"client's":       {client: pqc, want: tls.X25519MLKEM768},
		"server's":       {server: pqc},
		"ztunnel's":      {offer: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384}, want: tls.X25519MLKEM768},
		"X25519 alone":   {offer: []tls.CurveID{tls.X25519}, want: tls.X25519},
		"P-384 alone":    {offer: []tls.CurveID{tls.CurveP384}, want: tls.CurveP384},
		"P-521 alone":    {offer: []tls.CurveID{tls.CurveP521}},
		"X25519, policy": {server: pqc, offer: []tls.CurveID{tls.X25519}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			done := make(chan outcome, 1)
			go func() {
				c, id, err := tc.server.Server(context.Background(), b, srv)
				done <- outcome{c, id, err}
			}()
			cfg := tc.client.base(cl)
			cfg.InsecureSkipVerify, cfg.CurvePreferences = true, tc.client.offered()
			if tc.offer != nil {
				cfg.CurvePreferences = tc.offer
			}
			c := tls.Client(a, cfg)
			err := c.HandshakeContext(t.Context())
			s := <-done
			if got := c.ConnectionState().CurveID; (err == nil && s.err == nil) != (tc.want != 0) || tc.want != 0 && got != tc.want {
				t.Errorf("%v, %v, %v", got, err, s.err)
			}
			_, _ = a.Close(), b.Close()
		})
	}
}
