package mtls

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls/record"
)

// cpu reports the process' time per operation, which other processes disturb
// less than the clock.
func cpu(b *testing.B) func() {
	b.Helper()
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

// BenchmarkBulk moves 256 KiB at a time over loopback, as the tunnel does:
// with records of ours, sealed in place and shown where they are, and with
// crypto/tls'.
func BenchmarkBulk(b *testing.B) {
	for _, who := range []struct {
		name string
		h    Handshaker
	}{{"own", Handshaker{}}, {"std", std()}} {
		b.Run(who.name, func(b *testing.B) {
			x, y := pair(b)
			c, s := connect(b, x, y, who.h, who.h)
			p := random(256 << 10)
			done := make(chan error, 1)
			go func() { done <- drainBulk(s) }()
			b.SetBytes(int64(len(p)))
			bufs := [][]byte{append(p, 0)[:len(p)]}
			defer cpu(b)()
			for b.Loop() {
				var err error
				if own, ok := c.(*record.Conn); ok {
					err = own.WriteOwned(bufs)
				} else {
					_, err = c.Write(p)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			_ = c.CloseWrite()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}

func drainBulk(c Conn) error {
	if own, ok := c.(*record.Conn); ok {
		return own.Feed(func(p []byte) (int, error) { return len(p), nil })
	}
	buf := make([]byte, 256<<10)
	for {
		if _, err := c.Read(buf); err != nil {
			if err == io.EOF { //nolint:errorlint // crypto/tls returns it bare
				return nil
			}
			return err
		}
	}
}

// BenchmarkSmall is a round trip of 100 bytes over loopback.
func BenchmarkSmall(b *testing.B) {
	for _, who := range []struct {
		name string
		h    Handshaker
	}{{"own", Handshaker{}}, {"std", std()}} {
		b.Run(who.name, func(b *testing.B) {
			x, y := pair(b)
			c, s := connect(b, x, y, who.h, who.h)
			go func() {
				if own, ok := s.(*record.Conn); ok {
					_ = own.Feed(func(p []byte) (int, error) { _, err := own.Write(p); return len(p), err })
					return
				}
				_, _ = io.Copy(s, s)
			}()
			p := random(100)
			defer cpu(b)()
			for b.Loop() {
				if _, err := c.Write(p); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, p); err != nil {
					b.Fatal(err)
				}
			}
			_, _ = x.Close(), y.Close()
		})
	}
}

// BenchmarkExchange is a full mTLS handshake, both ends, by key exchange and
// by whether the peer's chain was verified before.
func BenchmarkExchange(b *testing.B) {
	ca := newAuthority(b, "root")
	cl, srv := ca.issue(b, idA, nil), ca.issue(b, idB, nil)
	for _, set := range []struct {
		name  string
		offer []tls.CurveID
	}{
		{"P256", []tls.CurveID{tls.CurveP256}},
		{"X25519", []tls.CurveID{tls.X25519}},
		{"X25519MLKEM768", []tls.CurveID{tls.X25519MLKEM768}},
		{"X25519MLKEM768+P256", []tls.CurveID{tls.X25519MLKEM768, tls.CurveP256}},
		{"X25519MLKEM768+X25519", []tls.CurveID{tls.X25519MLKEM768, tls.X25519}},
		{"SecP256r1MLKEM768", []tls.CurveID{tls.SecP256r1MLKEM768}},
	} {
		for _, remembered := range []bool{true, false} {
			for _, h := range []Handshaker{{}, std()} {
				if !remembered && h.own() {
					continue
				}
				b.Run(fmt.Sprintf("%s/remembered=%t/own=%t", set.name, remembered, h.own()), func(b *testing.B) {
					defer cpu(b)()
					for b.Loop() {
						if !remembered {
							cl.verified.seen, srv.verified.seen = nil, nil
						}
						exchange(b, h, cl, srv, set.offer)
					}
				})
			}
		}
	}
}

func exchange(b *testing.B, h Handshaker, cl, srv *Certificate, offer []tls.CurveID) {
	x, y := net.Pipe()
	done := make(chan error, 1)
	go func() {
		cfg := h.base(srv)
		cfg.ClientAuth = tls.RequireAnyClientCert
		cfg.VerifyConnection = func(s tls.ConnectionState) error { return verifyClient(srv, s.PeerCertificates) }
		cfg.CurvePreferences = offer
		_, _, err := h.handshake(context.Background(), y, cfg, false)
		done <- err
	}()
	cfg := h.base(cl)
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		return verifyServer(cl, s.PeerCertificates, []identity.ID{srv.ID})
	}
	cfg.CurvePreferences = offer
	_, _, err := h.handshake(context.Background(), x, cfg, true)
	if serr := <-done; err != nil || serr != nil {
		b.Fatal(err, serr)
	}
	_, _ = x.Close(), y.Close()
}
