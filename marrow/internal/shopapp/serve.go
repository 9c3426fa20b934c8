package shopapp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/run"
)

// DefaultMarker is the text that a capture looks for.
const DefaultMarker = "marrow-clear-text-marker"

// ServeConfig says what the server is.
type ServeConfig struct {
	Name, Version, Marker string
	Listen                string   // HTTP; "" = none
	TCP                   string   // line echo; "" = none
	Call                  []string // URLs asked on each request, their answers included
	CallTimeout           time.Duration
}

// Answer is what the server says.
type Answer struct {
	Name    string            `json:"name"`
	Version string            `json:"version"`
	Marker  string            `json:"marker"`
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Proto   string            `json:"proto"`
	Remote  string            `json:"remote"`
	Body    int64             `json:"body,omitempty"` // bytes of the request's body
	Headers map[string]string `json:"headers,omitempty"`
	Calls   []Call            `json:"calls,omitempty"`
}

// Call is the answer of a service that the server asked.
type Call struct {
	URL    string          `json:"url"`
	Status int             `json:"status,omitempty"`
	Error  string          `json:"error,omitempty"`
	Answer json.RawMessage `json:"answer,omitempty"`
}

type server struct {
	cfg    ServeConfig
	client *http.Client
}

// Serve listens and answers until ctx ends. ready is told the addresses that
// it listens on, in the order HTTP, TCP.
func Serve(ctx context.Context, cfg ServeConfig, ready func(addrs ...net.Addr)) error {
	if cfg.Listen == "" && cfg.TCP == "" {
		return errors.New("nothing to serve: give --listen or --tcp")
	}
	if cfg.Marker == "" {
		cfg.Marker = DefaultMarker
	}
	if cfg.CallTimeout <= 0 {
		cfg.CallTimeout = 10 * time.Second
	}
	s := &server{cfg: cfg, client: &http.Client{
		Timeout: cfg.CallTimeout,
		// Each call is a connection of its own: one that was open before its
		// pod joined the mesh would stay outside of it.
		Transport: &http.Transport{DisableKeepAlives: true},
	}}
	g := run.NewGroup(ctx)
	var lc net.ListenConfig
	var addrs []net.Addr
	if cfg.Listen != "" {
		l, err := lc.Listen(ctx, "tcp", cfg.Listen)
		if err != nil {
			return fmt.Errorf("listen for HTTP: %w", err)
		}
		addrs = append(addrs, l.Addr())
		g.Go("http", func(ctx context.Context) error { return s.serveHTTP(ctx, l) })
	}
	if cfg.TCP != "" {
		l, err := lc.Listen(ctx, "tcp", cfg.TCP)
		if err != nil {
			g.Stop()
			return errors.Join(fmt.Errorf("listen for TCP: %w", err), g.Wait())
		}
		addrs = append(addrs, l.Addr())
		g.Go("tcp", func(ctx context.Context) error { return s.serveTCP(ctx, l) })
	}
	if ready != nil {
		ready(addrs...)
	}
	return g.Wait()
}

func (s *server) serveHTTP(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("/", s.answer)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second}
	var closing sync.WaitGroup
	closing.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer closing.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(l)
	if !stop() {
		closing.Wait()
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *server) answer(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, "read the request's body: "+err.Error(), http.StatusBadRequest)
		return
	}
	a := Answer{
		Name: s.cfg.Name, Version: s.cfg.Version, Marker: s.cfg.Marker,
		Method: r.Method, Path: r.URL.Path, Proto: r.Proto, Remote: r.RemoteAddr, Body: n,
	}
	if r.URL.Query().Has("headers") {
		a.Headers = map[string]string{"Host": r.Host}
		for k, v := range r.Header {
			a.Headers[k] = v[0]
		}
	}
	if text := r.URL.Query().Get("delay"); text != "" {
		if d, err := time.ParseDuration(text); err == nil {
			wait(r.Context(), d)
		}
	}
	for _, url := range s.cfg.Call {
		a.Calls = append(a.Calls, s.call(r, url))
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Marrow-App", s.cfg.Name+"/"+s.cfg.Version)
	w.WriteHeader(status(r))
	_ = json.NewEncoder(w).Encode(a) // a client that left needs no answer
}

// status lets a caller ask for an answer: ?status=503.
func status(r *http.Request) int {
	var code int
	if _, err := fmt.Sscanf(r.URL.Query().Get("status"), "%d", &code); err == nil && code >= 200 && code <= 599 {
		return code
	}
	return http.StatusOK
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// call asks another service with the trace headers of the request at hand.
func (s *server) call(r *http.Request, url string) Call {
	c := Call{URL: url}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		c.Error = err.Error()
		return c
	}
	for _, h := range []string{"X-Request-Id", "Traceparent", "X-User"} {
		if v := r.Header.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	req.Header.Set("X-Marker", s.cfg.Marker)
	resp, err := s.client.Do(req)
	if err != nil {
		c.Error = err.Error()
		return c
	}
	defer func() { _ = resp.Body.Close() }()
	c.Status = resp.StatusCode
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		c.Error = err.Error()
	}
	if json.Valid(raw) {
		c.Answer = raw
	} else if c.Error == "" && len(raw) > 0 {
		c.Error = string(raw)
	}
	return c
}

// serveTCP answers each line with the server's name, marker and the line.
func (s *server) serveTCP(ctx context.Context, l net.Listener) error {
	g := run.NewGroup(ctx)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			g.Stop()
			werr := g.Wait()
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return errors.Join(err, werr)
		}
		g.Go("echo "+c.RemoteAddr().String(), func(ctx context.Context) error {
			s.echo(ctx, c)
			return nil
		})
	}
}

func (s *server) echo(ctx context.Context, c net.Conn) {
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if _, err := fmt.Fprintf(c, "%s %s %s %s\n", s.cfg.Name, s.cfg.Version, s.cfg.Marker, lines.Text()); err != nil {
			return
		}
	}
}
