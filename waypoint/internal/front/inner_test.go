package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/h2"
	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
	"github.com/marrowmesh/marrow/waypoint/internal/h2http"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
)

// tunnel is both ends of a stream: the client's, and the server's as front has it.
func tunnel(t *testing.T, serve func(in *innerConn)) net.Conn {
	t.Helper()
	a, b := tcppair.New(t)
	srv := h2.NewServer(b, h2.Config{}, func(s *h2.Stream, _ []h2.Field) {
		if s.Respond([]h2.Field{{Name: ":status", Value: "200"}}, false) == nil {
			serve(&innerConn{Conn: s, session: &phases.Session{Source: netip.MustParseAddrPort("192.0.2.1:7")}})
		}
		_ = s.Close()
	})
	cl := h2.NewClient(a, h2.Config{})
	t.Cleanup(func() {
		_ = cl.Close()
		cl.Wait()
		srv.Wait()
	})
	s, err := cl.Open(t.Context(), []h2.Field{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "a:1"}}, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Response(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestInnerHTTP2: requests of all sizes, many at once, over one connection in a tunnel.
func TestInnerHTTP2(t *testing.T) {
	srv := &h2http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%d %v %s ", len(b), err, r.RemoteAddr)
		_, _ = w.Write(b)
	})}
	ended := make(chan error, 1)
	c := tunnel(t, func(in *innerConn) {
		two, seen := speaksHTTP2(in.Conn)
		if !two {
			t.Errorf("begins with %q", seen)
		}
		in.Conn = &replayed{Conn: in.Conn, first: seen}
		ended <- srv.Serve(context.Background(), push(in), in.RemoteAddr().String())
	})
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	ask := func(i int) {
		body := strings.Repeat("x", i*20_000)
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web/", strings.NewReader(body))
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != fmt.Sprintf("%d <nil> 192.0.2.1:7 %s", len(body), body) {
			t.Errorf("%d: %.50q, %v", i, b, err)
		}
	}
	ask(0) // opens the connection
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() { ask(i) })
	}
	all.Wait()
	tr.CloseIdleConnections()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestPushed: Feed gets what was read before, what comes, and the end; a deadline ends it, another may follow.
func TestPushed(t *testing.T) {
	broken := errors.New("broken")
	over := make(chan struct{})
	c := tunnel(t, func(in *innerConn) {
		defer close(over)
		in.Conn = &replayed{Conn: in.Conn, first: []byte("before ")}
		pc := push(in)
		got := ""
		feed := func(enough string) error {
			return pc.Feed(func(p []byte) (int, error) {
				if got += string(p); got == enough {
					return len(p), pc.SetReadDeadline(time.Unix(1, 0))
				}
				return len(p), nil
			})
		}
		if err := feed("before now"); !errors.Is(err, os.ErrDeadlineExceeded) || got != "before now" {
			t.Errorf("%q, %v", got, err)
		}
		_ = pc.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		if err := feed(""); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after a while: %v", err)
		}
		_ = pc.SetReadDeadline(time.Time{})
		_ = in.CloseWrite() // tells the client to end
		if err := feed(""); err != nil {
			t.Error(err)
		}
	})
	_, _ = io.WriteString(c, "now")
	_, _ = io.Copy(io.Discard, c)
	_ = c.(interface{ CloseWrite() error }).CloseWrite()
	<-over
	failed := make(chan error, 1)
	c = tunnel(t, func(in *innerConn) {
		failed <- push(in).Feed(func([]byte) (int, error) { return 0, broken })
	})
	_, _ = io.WriteString(c, "x")
	if err := <-failed; !errors.Is(err, broken) {
		t.Error(err)
	}
	for code, wrong := range map[h2.Code]bool{h2.Cancel: false, h2.InternalError: true} {
		begun := make(chan struct{})
		c = tunnel(t, func(in *innerConn) {
			close(begun)
			failed <- push(in).Feed(func([]byte) (int, error) { return 0, nil })
		})
		<-begun
		_ = c.(*h2.Stream).CloseCode(code)
		if err := <-failed; (err != nil) != wrong {
			t.Errorf("given up with %v: %v", code, err)
		}
	}
}
