package obs

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"
)

const (
	headerTimeout = 2 * time.Second
	idleTimeout   = 30 * time.Second
	// writeTimeout ends clients that do not read: each holds a whole answer.
	writeTimeout = 30 * time.Second
	headerLimit  = 8 << 10
	// shutdownLimit lets a scrape or dump in progress finish.
	shutdownLimit = 5 * time.Second
)

// Listen binds a TCP address for one of the servers here; a bind conflict is an
// error at start, not later.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// Serve answers HTTP/1.1 on l until ctx ends, then lets requests in progress
// finish for a few seconds. It closes l.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerLimit,
		ErrorLog:          log.New(discard{}, "", 0),
	}
	// Requests must not die with ctx before the grace is over, but a long
	// profile must see the end of the process: Close below ends it.
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownLimit)
		defer cancel()
		if s.Shutdown(grace) != nil {
			_ = s.Close()
		}
	})
	err := s.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	_ = s.Close()
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// ServeHTTP is Listen and Serve.
func ServeHTTP(ctx context.Context, addr string, h http.Handler) error {
	l, err := Listen(ctx, addr)
	if err != nil {
		return err
	}
	return Serve(ctx, l, h)
}

// discard drops the HTTP library's own chatter about broken clients.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
