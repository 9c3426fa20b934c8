package hbone

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
)

const oneWay = 50 * time.Millisecond

// line is one direction of a connection with latency and no other cost.
type line struct {
	mu     sync.Mutex
	wake   sync.Cond
	queue  []packet
	closed bool
	until  time.Time // read deadline
	timer  *time.Timer
}

type packet struct {
	due  time.Time
	data []byte
}

func newLine() *line {
	l := &line{}
	l.wake.L = &l.mu
	return l
}

func (l *line) send(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, packet{time.Now().Add(oneWay), append([]byte(nil), p...)})
	time.AfterFunc(oneWay, l.poke)
}

func (l *line) poke() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake.Broadcast()
}

func (l *line) read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case !l.until.IsZero() && !now.Before(l.until):
			return 0, os.ErrDeadlineExceeded
		case len(l.queue) > 0 && !now.Before(l.queue[0].due):
			n := copy(p, l.queue[0].data)
			if l.queue[0].data = l.queue[0].data[n:]; len(l.queue[0].data) == 0 {
				l.queue = l.queue[1:]
			}
			return n, nil
		case l.closed && len(l.queue) == 0:
			return 0, io.EOF
		}
		l.wake.Wait()
	}
}

// slow is a connection whose bytes take oneWay to arrive.
type slow struct {
	net.Conn // never used: only to be complete
	in, out  *line
}

func slowPair() (a, b net.Conn) {
	x, y := newLine(), newLine()
	return slow{in: x, out: y}, slow{in: y, out: x}
}

func (s slow) Read(p []byte) (int, error)  { return s.in.read(p) }
func (s slow) Write(p []byte) (int, error) { s.out.send(p); return len(p), nil }
func (s slow) Close() error {
	for _, l := range []*line{s.in, s.out} {
		l.mu.Lock()
		l.closed = true
		l.wake.Broadcast()
		l.mu.Unlock()
	}
	return nil
}
func (s slow) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s slow) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s slow) SetWriteDeadline(time.Time) error { return nil }
func (s slow) SetDeadline(t time.Time) error    { return s.SetReadDeadline(t) }
func (s slow) SetReadDeadline(t time.Time) error {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	s.in.until = t
	if s.in.timer != nil {
		s.in.timer.Stop()
	}
	if !t.IsZero() {
		s.in.timer = time.AfterFunc(time.Until(t), s.in.poke)
	}
	s.in.wake.Broadcast()
	return nil
}

func certificate(t *testing.T, id string) *mtls.Certificate {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	u, _ := url.Parse(id)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, URIs: []*url.URL{u},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	c, err := mtls.NewCertificate(key, []string{text, text})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestOpenTakesThreeRTT: with 100 ms there and back, a fresh tunnel is open
// after TCP, TLS 1.3 and CONNECT: 300 ms; the next on the same connection
// after 100 ms.
func TestOpenTakesThreeRTT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cert := certificate(t, "spiffe://td/ns/a/sa/a") // of itself: both sides trust it
		start := time.Now()
		time.Sleep(2 * oneWay) // TCP
		a, b := slowPair()
		srv := NewServer(Config{})
		done := make(chan error, 1)
		go func() {
			c, _, err := mtls.Server(context.Background(), b, cert)
			if err != nil {
				done <- err
				return
			}
			done <- srv.Serve(context.Background(), c, echo)
		}()
		c, _, err := mtls.Client(t.Context(), a, cert, []identity.ID{cert.ID})
		if err != nil {
			t.Fatal(err)
		}
		cl, _ := NewClient(c, Config{})
		s, _, err := cl.Connect(t.Context(), "10.0.0.1:80", nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 6*oneWay {
			t.Errorf("fresh tunnel after %v, want %v", d, 6*oneWay)
		}
		start = time.Now()
		if _, _, err = cl.Connect(t.Context(), "10.0.0.1:80", nil); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 2*oneWay {
			t.Errorf("next tunnel after %v, want %v", d, 2*oneWay)
		}
		start = time.Now()
		_, _ = s.Write([]byte("x"))
		_, _ = s.Read(make([]byte, 1))
		if d := time.Since(start); d != 2*oneWay {
			t.Errorf("echo after %v, want %v", d, 2*oneWay)
		}
		_ = cl.Close()
		cl.Wait()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
