package zds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
)

const (
	retryFirst = 20 * time.Millisecond
	retryLimit = 15 * time.Second
)

// Handler is the proxy's side of the conversation. Calls come one at a time, in
// the order of the agent's messages; an error becomes a nack and the connection
// stays, unless it is ErrProtocol. The agent gives each call 5 seconds.
type Handler interface {
	// Session says that a connection began (its snapshot follows) or ended.
	Session(up bool)
	// Add owns the descriptor of the pod's network namespace, also when it
	// refuses.
	Add(ctx context.Context, uid string, info Info, netns int) error
	// Keep is an Add of a running pod, within the snapshot.
	Keep(ctx context.Context, uid string) error
	Del(ctx context.Context, uid string) error
	// Snapshot ends the list of what exists.
	Snapshot(ctx context.Context) error
}

// Client is the proxy's end of the socket.
type Client struct{ log *obs.Logger }

// NewClient makes a client; log may not be nil.
func NewClient(log *obs.Logger) *Client { return &Client{log: log} }

// Run keeps a connection to the agent until ctx ends (nil) or the agent breaks
// the protocol (ErrProtocol).
func (c *Client) Run(ctx context.Context, path string, h Handler) error {
	delay := retryFirst
	for ctx.Err() == nil {
		greeted, handled, err := c.once(ctx, path, h)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, ErrProtocol) {
			c.log.Error("the node agent broke the pod protocol", obs.F("socket", path), obs.Err(err))
			return err
		}
		if handled > 0 {
			// A working agent went away: ask at once, it is probably restarting.
			c.log.Info("connection to the node agent ended, connecting again", obs.F("socket", path), obs.Err(err))
			delay = retryFirst
			continue
		}
		if greeted {
			// It accepts us and then fails: a short pause keeps that from spinning.
			delay = retryFirst
		}
		c.log.Warn("no connection to the node agent", obs.F("socket", path), obs.F("retry_in", delay), obs.Err(err))
		wait(ctx, delay)
		delay = min(2*delay, retryLimit)
	}
	return nil //nolint:nilerr // ctx has ended, and what went wrong before is in the log
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// once lives for one connection. It says whether hello was sent, and counts the
// messages it understood.
func (c *Client) once(ctx context.Context, path string, h Handler) (greeted bool, handled int, err error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", path)
	if err != nil {
		return false, 0, err
	}
	conn := raw.(*net.UnixConn) // what dialling unixpacket gives
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	hello, err := encodeHello()
	if err != nil {
		return false, 0, err
	}
	if err := writePacket(conn, hello, -1); err != nil {
		return false, 0, fmt.Errorf("send hello: %w", err)
	}
	h.Session(true)
	defer h.Session(false)
	s := session{conn: conn, h: h, buf: make([]byte, packetLimit)}
	for {
		if err := s.next(ctx); err != nil {
			return true, s.handled, err
		}
	}
}

type session struct {
	conn     *net.UnixConn
	h        Handler
	buf      []byte
	snapshot bool // snapshot_sent was received
	handled  int
}

// next reads one message, does it and answers it. An error ends the session.
func (s *session) next(ctx context.Context) error {
	b, fds, err := readPacket(s.conn, s.buf)
	if err != nil && !errors.Is(err, ErrPacket) {
		return err // end of the connection: nobody reads an answer
	}
	var req request
	if err == nil {
		req, err = decodeRequest(b, fds)
	}
	fatal := err // unreadable or forbidden: answer, then end
	if err == nil {
		err = s.dispatch(ctx, req)
		if errors.Is(err, ErrProtocol) {
			fatal = err
		}
	}
	ack, encErr := encodeAck(err)
	if encErr != nil {
		return encErr
	}
	if err := writePacket(s.conn, ack, -1); err != nil {
		return errors.Join(fatal, fmt.Errorf("send ack: %w", err))
	}
	if fatal == nil {
		s.handled++
	}
	return fatal
}

func (s *session) dispatch(ctx context.Context, r request) error {
	switch r.kind {
	case kindAdd:
		return s.h.Add(ctx, r.uid, r.info, r.fd)
	case kindDel:
		return s.h.Del(ctx, r.uid)
	case kindKeep:
		if s.snapshot {
			return fmt.Errorf("%w: keep of %q after the snapshot", ErrProtocol, r.uid)
		}
		return s.h.Keep(ctx, r.uid)
	case kindSnapshot:
		if s.snapshot {
			return fmt.Errorf("%w: second snapshot_sent on one connection", ErrProtocol)
		}
		s.snapshot = true
		return s.h.Snapshot(ctx)
	}
	return fmt.Errorf("%w: kind %d", ErrProtocol, r.kind)
}
