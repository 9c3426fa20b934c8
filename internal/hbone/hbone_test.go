package hbone

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcpPair returns two ends of a loopback connection.
func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	type res struct {
		c   net.Conn
		err error
	}
	ch := make(chan res, 1)
	go func() { c, err := l.Accept(); ch <- res{c, err} }()
	a, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	return a, r.c
}

// tunnel is a client and a server on one connection.
func tunnel(t testing.TB, h Handler) (*Client, *Server) {
	t.Helper()
	a, b := tcpPair(t)
	srv := NewServer(Config{})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(t.Context(), b, h) }()
	cl, err := NewClient(a, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cl.Close()
		cl.Wait()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return cl, srv
}

func echo(_ context.Context, in *Incoming) {
	s, err := in.Accept([]Header{{Name: "baggage", Value: "a=b"}})
	if err != nil {
		return
	}
	if _, err := s.WriteTo(s); err == nil {
		_ = s.CloseWrite()
	}
}

func TestEchoBothHalves(t *testing.T) {
	cl, _ := tunnel(t, echo)
	s, r, err := cl.Connect(t.Context(), "10.0.0.1:80", []Header{{Name: "forwarded", Value: `for="1.2.3.4:5"`}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != 200 || r.Get("baggage") != "a=b" {
		t.Fatalf("response %+v", r)
	}
	payload := make([]byte, 40<<20)
	_, _ = rand.Read(payload)
	go func() {
		_, _ = s.Write(payload)
		_ = s.CloseWrite()
	}()
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("read %d of %d bytes, err %v", len(got), len(payload), err)
	}
	if n := cl.Streams(); n != 0 {
		t.Errorf("%d streams open after both halves ended", n)
	}
}

func TestManyStreams(t *testing.T) {
	cl, _ := tunnel(t, echo)
	var wg sync.WaitGroup
	for i := range 300 { // more than fit at once: the rest waits for a place
		wg.Go(func() {
			s, _, err := cl.Connect(t.Context(), fmt.Sprintf("10.0.0.1:%d", i+1), nil)
			if err != nil {
				t.Error(err)
				return
			}
			want := bytes.Repeat([]byte{byte(i)}, 100_000)
			go func() { _, _ = s.Write(want); _ = s.CloseWrite() }()
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %d bytes, %v", i, len(got), err)
			}
			_ = s.Close()
		})
	}
	wg.Wait()
}

func TestAnswerIsTheHandlers(t *testing.T) {
	release := make(chan struct{})
	cl, _ := tunnel(t, func(ctx context.Context, in *Incoming) {
		switch in.Authority() {
		case "denied:1":
			_ = in.Reject(401, nil)
		case "slow:1":
			<-release
			echo(ctx, in)
		}
	})
	for authority, want := range map[string]int{"denied:1": 401, "forgotten:1": 500} {
		_, r, err := cl.Connect(t.Context(), authority, nil)
		if se, ok := errors.AsType[*StatusError](err); !ok || se.Status != want || r.Status != want {
			t.Errorf("%s: response %+v, error %v; want %d", authority, r, err, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := cl.Connect(ctx, "slow:1", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an answer came before the handler gave it: %v", err)
	}
	close(release)
}

func TestHandlerContextEndsWithStream(t *testing.T) {
	ended := make(chan struct{})
	cl, _ := tunnel(t, func(ctx context.Context, _ *Incoming) { <-ctx.Done(); close(ended) })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, _, err := cl.Connect(ctx, "x:1", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	<-ended
}

func TestResetIsEndOfData(t *testing.T) {
	cl, _ := tunnel(t, func(_ context.Context, in *Incoming) {
		s, err := in.Accept(nil)
		if err != nil {
			return
		}
		_, _ = s.Write([]byte("last words"))
		_ = s.Close() // RST_STREAM CANCEL
	})
	s, _, err := cl.Connect(t.Context(), "x:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(s)
	if string(got) != "last words" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if !s.Aborted() {
		t.Error("reset stream says that it is not aborted")
	}
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("write after reset succeeded")
	}
}

func TestDeadlines(t *testing.T) {
	cl, _ := tunnel(t, echo)
	s, _, err := cl.Connect(t.Context(), "x:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err = s.Read(make([]byte, 1))
	if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		t.Fatalf("error %v is no timeout", err)
	}
	_ = s.SetReadDeadline(time.Time{})
	_, _ = s.Write([]byte("y"))
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Fatalf("after the deadline was taken back: %v", err)
	}
}

func TestDrainLosesNothing(t *testing.T) {
	cl, srv := tunnel(t, echo)
	open, _, err := cl.Connect(t.Context(), "x:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	srv.Drain()
	for !cl.GoingAway() {
		time.Sleep(time.Millisecond)
	}
	if _, _, err := cl.Connect(t.Context(), "y:1", nil); !errors.Is(err, ErrGoingAway) {
		t.Errorf("new tunnel on a drained connection: %v", err)
	}
	payload := make([]byte, 10<<20)
	_, _ = rand.Read(payload)
	go func() { _, _ = open.Write(payload); _ = open.CloseWrite() }()
	got, err := io.ReadAll(open)
	if err != nil || !bytes.Equal(got, payload) {
		t.Errorf("open tunnel lost bytes: %d of %d, %v", len(got), len(payload), err)
	}
	select {
	case <-cl.Closed():
	case <-time.After(5 * time.Second):
		t.Error("drained connection did not end")
	}
}

// TestLastBytesArrive: the side that finishes last on a drained connection
// does not cut its own bytes off by closing.
func TestLastBytesArrive(t *testing.T) {
	const size = 3 << 20
	for range 5 {
		got := make(chan int64, 1)
		cl, srv := tunnel(t, func(_ context.Context, in *Incoming) {
			s, err := in.Accept(nil)
			if err != nil {
				return
			}
			_ = s.CloseWrite() // from here on the client alone keeps the stream
			n := int64(0)
			for buf := make([]byte, 4<<10); err == nil; {
				var k int
				k, err = s.Read(buf)
				n += int64(k)
				time.Sleep(10 * time.Microsecond)
			}
			got <- n
		})
		s, _, err := cl.Connect(t.Context(), "x:1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(s); err != nil {
			t.Fatal(err)
		}
		srv.Drain()
		for !cl.GoingAway() {
			time.Sleep(time.Millisecond)
		}
		_, _ = s.Write(make([]byte, size))
		_ = s.CloseWrite()
		if n := <-got; n != size {
			t.Errorf("%d of %d bytes arrived", n, size)
		}
	}
}

// TestServesForeignClient has x/net/http2's client open tunnels to our server.
func TestServesForeignClient(t *testing.T) {
	a, b := tcpPair(t)
	srv := NewServer(Config{})
	done := make(chan error, 1)
	go func() {
		done <- srv.Serve(t.Context(), b, func(ctx context.Context, in *Incoming) {
			if in.Method() != "CONNECT" {
				_ = in.Reject(400, nil)
				return
			}
			echo(ctx, in)
		})
	}()
	tr := &http2.Transport{AllowHTTP: true} //nolint:staticcheck // it takes a connection that is there
	cc, err := tr.NewClientConn(a)          //nolint:staticcheck // it takes a connection that is there
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodConnect, "http://10.0.0.1:80", pr)
	resp, err := cc.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Baggage") != "a=b" {
		t.Fatalf("response %+v", resp)
	}
	payload := make([]byte, 20<<20)
	_, _ = rand.Read(payload)
	go func() { _, _ = pw.Write(payload); _ = pw.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("%d of %d bytes, %v", len(got), len(payload), err)
	}
	req, _ = http.NewRequestWithContext(t.Context(), http.MethodGet, "http://10.0.0.1/", nil)
	resp, err = cc.RoundTrip(req)
	if err != nil || resp.StatusCode != 400 {
		t.Fatalf("GET: %v, %v", resp, err)
	}
	_ = cc.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAsksForeignServer opens tunnels to x/net/http2's server.
func TestAsksForeignServer(t *testing.T) {
	a, b := tcpPair(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		//nolint:staticcheck // it takes a connection that is there
		(&http2.Server{}).ServeConn(b, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Host == "denied:1" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			buf := make([]byte, 32<<10)
			for {
				n, err := r.Body.Read(buf)
				_, _ = w.Write(buf[:n])
				w.(http.Flusher).Flush()
				if err != nil {
					return
				}
			}
		})})
	}()
	cl, err := NewClient(a, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, r, _ := cl.Connect(t.Context(), "denied:1", nil); r.Status != 401 {
		t.Errorf("status %d, want 401", r.Status)
	}
	s, _, err := cl.Connect(t.Context(), "10.0.0.1:80", nil)
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 20<<20)
	_, _ = rand.Read(payload)
	go func() { _, _ = s.Write(payload); _ = s.CloseWrite() }()
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("%d of %d bytes, %v", len(got), len(payload), err)
	}
	_ = cl.Close()
	cl.Wait()
	<-served
}

// TestPingTimeout: a peer that stops answering is noticed after one interval
// and one timeout, to the second.
func TestPingTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go func() { // a peer that greets, then only swallows
			fr := http2.NewFramer(b, nil)
			_ = fr.WriteSettings()
			_, _ = io.Copy(io.Discard, b)
		}()
		start := time.Now()
		cl, _ := NewClient(a, Config{})
		<-cl.Closed()
		if got := time.Since(start); got != 30*time.Second {
			t.Errorf("noticed after %v, want 30s", got)
		}
		cl.Wait()
		_ = b.Close()
	})
}

func TestHeadersAreChecked(t *testing.T) {
	cl, _ := tunnel(t, echo)
	for _, h := range []Header{{Name: ":path", Value: "/"}, {Name: "Upper", Value: "x"}, {Name: "a", Value: "x\r\ny"}, {Name: "", Value: "x"}} {
		if _, _, err := cl.Connect(t.Context(), "x:1", []Header{h}); err == nil {
			t.Errorf("header %q: %q was sent", h.Name, h.Value)
		}
	}
}

func ExampleClient_Connect() {
	a, b := net.Pipe()
	srv := NewServer(Config{})
	done := make(chan error)
	go func() {
		done <- srv.Serve(context.Background(), b, func(_ context.Context, in *Incoming) {
			s, _ := in.Accept(nil)
			_, _ = fmt.Fprintf(s, "you reached %s", netip.MustParseAddrPort(in.Authority()))
			_ = s.CloseWrite()
		})
	}()
	cl, _ := NewClient(a, Config{})
	s, _, _ := cl.Connect(context.Background(), "10.0.0.1:80", nil)
	said, _ := io.ReadAll(s)
	fmt.Printf("%s\n", said)
	_ = cl.Close()
	cl.Wait()
	<-done
	// Output: you reached 10.0.0.1:80
}
