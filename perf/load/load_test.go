package load

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server runs Serve until the test ends.
func server(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// phases runs a client with phases of the given lengths.
func phases(t *testing.T, s Spec, seconds ...float64) []Report {
	t.Helper()
	var in, out bytes.Buffer
	for _, sec := range seconds {
		if err := json.NewEncoder(&in).Encode(Command{Seconds: sec}); err != nil {
			t.Fatal(err)
		}
	}
	if err := Run(t.Context(), s, &in, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	dec := json.NewDecoder(&out)
	var reports []Report
	for i := range len(seconds) + 1 {
		var e Event
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if (i == 0) != (e.Report == nil) || e.Error != "" {
			t.Fatalf("event %d: %+v", i, e)
		}
		if e.Report != nil {
			reports = append(reports, *e.Report)
		}
	}
	return reports
}

func TestBulk(t *testing.T) {
	addr := server(t)
	for _, kind := range []Kind{BulkUp, BulkDown} {
		for _, r := range phases(t, Spec{Kind: kind, Targets: []string{addr}, Conns: 3}, 0.05, 0.1) {
			// The server answers, or ends, only behind whole units.
			if r.Bytes == 0 || r.Bytes%unit != 0 || r.Seconds < 0.05 || r.Errors != 0 {
				t.Errorf("%s: %+v", kind, r)
			}
		}
	}
}

func TestPacedBulk(t *testing.T) {
	addr := server(t)
	const rate = 50e6
	r := phases(t, Spec{Kind: BulkUp, Targets: []string{addr}, Conns: 2, Rate: rate}, 0.5)[0]
	if got := float64(r.Bytes) / r.Seconds; got < rate/2 || got > rate*1.3 {
		t.Errorf("%.0f bytes a second, want about %.0f", got, float64(rate))
	}
}

func TestClosedLoop(t *testing.T) {
	r := phases(t, Spec{Kind: Closed, Targets: []string{server(t)}, Conns: 4, Size: 1000}, 0.1)[0]
	if r.Ops == 0 || r.Latency.Count() != r.Ops || r.Bytes != 2000*r.Ops {
		t.Errorf("%+v", r)
	}
}

func TestOpenLoop(t *testing.T) {
	r := phases(t, Spec{Kind: Open, Targets: []string{server(t)}, Conns: 8, Size: 100, Rate: 1000}, 0.3)[0]
	if r.Ops != 300 || r.Latency.Count() != 300 || r.Late.Count() != 300 {
		t.Errorf("%d requests answered, want 300", r.Ops)
	}
}

// TestOpenLoopCountsFromIntended stalls a server for a while: all requests
// that were due meanwhile have waited, not only the one on the wire.
func TestOpenLoopCountsFromIntended(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 5+100)
		for i := 0; ; i++ {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if i == 0 && n > 5 {
				n -= 5
			} else if i == 0 {
				continue
			}
			if i == 20 {
				time.Sleep(200 * time.Millisecond)
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	r := phases(t, Spec{Kind: Open, Targets: []string{l.Addr().String()}, Conns: 1, Size: 100, Rate: 500}, 0.6)[0]
	<-served
	if r.Ops != 300 {
		t.Fatalf("%d answers", r.Ops)
	}
	// 200 ms at 500 a second: about 100 requests, a third, waited 100 ms on average.
	if p80 := r.Latency.Quantile(0.8); p80 < 50*time.Millisecond {
		t.Errorf("the stall does not show: p80 is %v, max %v", p80, r.Latency.Max())
	}
	if late := r.Late.Quantile(0.9); late > 50*time.Millisecond {
		t.Errorf("the generator waited with the server: late by %v", late)
	}
}

func TestConnections(t *testing.T) {
	addr := server(t)
	r := phases(t, Spec{Kind: Connect, Targets: []string{addr}, Conns: 4}, 0.1)[0]
	if r.Ops == 0 || r.Errors != 0 || r.Opens < r.Ops {
		t.Errorf("%+v", r)
	}
	r = phases(t, Spec{Kind: Cold, Targets: []string{addr, addr}, Conns: 1, Gap: 20 * time.Millisecond}, 0.1)[0]
	if r.Ops < 4 || r.Ops%2 != 0 || r.Errors != 0 {
		t.Errorf("%+v", r)
	}
	r = phases(t, Spec{Kind: Idle, Targets: []string{addr}, Conns: 300}, 0.01)[0]
	if r.Ops != 300 {
		t.Errorf("%+v", r)
	}
}

// TestSlowReaders must end although nothing reads what they send.
func TestSlowReaders(t *testing.T) {
	phases(t, Spec{Kind: Slow, Targets: []string{server(t)}, Conns: 4}, 0.05)
}

func TestHandshakes(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"h2"}}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := c.Read(make([]byte, 100)); err == nil {
				_, _ = c.Write(make([]byte, 9))
			}
			c.Close()
		}
	}()
	material := &TLS{
		Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		Key:         string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})),
	}
	r := phases(t, Spec{Kind: Handshake, Targets: []string{l.Addr().String()}, Conns: 1, TLS: material}, 0.1)[0]
	l.Close()
	<-done
	if r.Ops == 0 || r.Errors != 0 {
		t.Errorf("%+v", r)
	}
}

// TestPhaseEnds meets a server that swallows everything.
func TestPhaseEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	var out bytes.Buffer
	in := strings.NewReader(`{"seconds":0.1}` + "\n")
	err = Run(t.Context(), Spec{Kind: BulkUp, Targets: []string{l.Addr().String()}, Conns: 1}, in, &out)
	if err == nil || !strings.Contains(out.String(), `"error"`) {
		t.Errorf("%v: %s", err, out.String())
	}
	r := phases(t, Spec{Kind: Connect, Targets: []string{l.Addr().String()}, Conns: 2}, 0.05)[0]
	if r.Errors == 0 || r.Error == "" {
		t.Errorf("%+v", r)
	}
}

func TestSpecCheck(t *testing.T) {
	err := Spec{Kind: "x"}.Check()
	for _, want := range []string{`"x"`, "targets", "connections"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if err := (Spec{Kind: Open, Targets: []string{"a"}, Conns: 1, Size: 1}).Check(); err == nil {
		t.Error("an open loop without a rate")
	}
}

func TestCounters(t *testing.T) {
	c := parseCounters("Ip: A\nIp: 1\nTcp: RtoMax ActiveOpens RetransSegs\nTcp: -1 17 3\n")
	if c.opens != 17 || c.retransmits != 3 {
		t.Errorf("%+v", c)
	}
}

// TestRequests asks more than any window holds.
func TestRequests(t *testing.T) {
	addr := server(t)
	for _, p := range []Protocol{HTTP1, HTTP2, GRPC} {
		s := Spec{Kind: Requests, Protocol: p, Path: "/item", Targets: []string{addr}, Conns: 2}
		for _, r := range phases(t, s, 0.3, 0.05) {
			if r.Ops == 0 || r.Errors != 0 || r.Latency.Count() != r.Ops || r.Bytes%r.Ops != 0 {
				t.Errorf("%s: %+v", p, r)
			}
		}
		s.Kind, s.Rate = RequestsOpen, 500
		for _, r := range phases(t, s, 0.1) {
			if r.Ops != 50 || r.Late.Count() != 50 {
				t.Errorf("%s at a rate: %d requests", p, r.Ops)
			}
		}
	}
}

// TestWrongAnswers: nothing but the whole right answer counts.
func TestWrongAnswers(t *testing.T) {
	body := strings.Repeat("x", answerSize)
	ok := "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
	frame := func(kind, flags byte, payload string) string {
		return string(appendFrame(nil, kind, flags, 1, []byte(payload)))
	}
	for name, c := range map[string]struct {
		protocol Protocol
		answer   string
		good     bool
	}{
		"right":          {HTTP1, ok + body, true},
		"refused":        {HTTP1, "HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\n" + body, false},
		"short":          {HTTP1, ok + body[1:], false},
		"long":           {HTTP1, ok + body + "x", false},
		"no length":      {HTTP1, "HTTP/1.1 200 OK\r\n\r\n" + body, false},
		"other length":   {HTTP1, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxxx", false},
		"frames":         {HTTP2, frame(frameHeaders, flagEndHeaders, "\x88") + frame(frameData, flagEnd, body), true},
		"other status":   {HTTP2, frame(frameHeaders, flagEndHeaders, "\x8d") + frame(frameData, flagEnd, body), false},
		"few bytes":      {HTTP2, frame(frameHeaders, flagEndHeaders, "\x88") + frame(frameData, flagEnd, "x"), false},
		"reset":          {HTTP2, frame(frameHeaders, flagEndHeaders, "\x88") + frame(frameReset, 0, "\x00\x00\x00\x08"), false},
		"trailers only":  {GRPC, frame(frameHeaders, flagEndHeaders|flagEnd, "\x88"), false},
		"with a message": {GRPC, frame(frameHeaders, flagEndHeaders, "\x88") + frame(frameData, 0, string(grpcMessage())) + frame(frameHeaders, flagEndHeaders|flagEnd, ""), true},
	} {
		a, b := net.Pipe()
		go func() {
			buf := make([]byte, 4096)
			for n := 0; n < 60 && c.protocol != HTTP1 || n == 0; {
				k, err := b.Read(buf)
				if err != nil {
					break
				}
				n += k
			}
			go func() { _, _ = b.Write([]byte(c.answer)); _ = b.Close() }()
			for {
				if _, err := b.Read(buf); err != nil {
					return
				}
			}
		}()
		asker, err := newAsker(a, Spec{Protocol: c.protocol, Targets: []string{"host:80"}})
		if err == nil {
			err = asker.ask()
		}
		if (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		_ = a.Close()
	}
}
