package hbone

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/marrowmesh/marrow/internal/h2"
)

// Config is the settings of one connection; the zero value is the mesh's.
type Config = h2.Config

// Totals is what the tunnels of a process do together.
type Totals = h2.Totals

// Header is one header of a CONNECT or its answer, lower-case.
type Header = h2.Field

// Stream is one tunnel as a net.Conn with CloseWrite.
type Stream = h2.Stream

// ErrGoingAway refuses a tunnel that the peer did not begin to process:
// another connection may be tried.
var ErrGoingAway = h2.ErrGoingAway

// Response is the answer to a CONNECT.
type Response struct {
	Status int
	Header []Header
}

// Get returns the header's values joined by commas, "" if there is none.
func (r Response) Get(name string) string { return join(r.Header, name) }

// StatusError is an answer other than 200.
type StatusError struct {
	Status    int
	Authority string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("http status: %d (CONNECT %s)", e.Status, e.Authority)
}

// Client opens tunnels on one connection.
type Client struct{ conn *h2.Conn }

// NewClient starts HTTP/2 on c, which it owns from now on.
func NewClient(c net.Conn, cfg Config) (*Client, error) {
	return &Client{conn: h2.NewClient(c, cfg)}, nil
}

// Connect opens a tunnel to authority, waiting for a free stream if the
// connection is full, and then for the answer. Any status other than 200 is a
// *StatusError, with the Response beside it.
func (c *Client) Connect(ctx context.Context, authority string, hdr []Header) (*Stream, Response, error) {
	var few [8]Header // on the stack: Open keeps nothing of it
	fields := append(few[:0], Header{Name: ":method", Value: "CONNECT"}, Header{Name: ":authority", Value: authority})
	for _, h := range hdr {
		if err := checkHeader(h); err != nil {
			return nil, Response{}, fmt.Errorf("connect %s: %w", authority, err)
		}
		fields = append(fields, h)
	}
	s, err := c.conn.Open(ctx, fields, false)
	if err != nil {
		return nil, Response{}, fmt.Errorf("connect %s: %w", authority, err)
	}
	answer, err := s.Response(ctx)
	if err != nil {
		_ = s.Close()
		return nil, Response{}, fmt.Errorf("connect %s: %w", authority, err)
	}
	// A response has one pseudo-header, and it is the first.
	r := Response{Header: answer[1:]}
	r.Status, _ = strconv.Atoi(answer[0].Value)
	if r.Status != 200 {
		_ = s.Close()
		return nil, r, &StatusError{Status: r.Status, Authority: authority}
	}
	return s, r, nil
}

// Reserve promises one stream to the next Connect, false if the connection is
// full or going away. A promise that is not used goes back by Release.
func (c *Client) Reserve() bool { return c.conn.Reserve() }

// Release gives back what Reserve promised.
func (c *Client) Release() { c.conn.Unreserve() }

// Streams is how many tunnels are open or promised.
func (c *Client) Streams() int { return c.conn.Streams() }

// Closed is closed when the connection ended; Err says why.
func (c *Client) Closed() <-chan struct{} { return c.conn.Done() }

// Err is nil while the connection lives.
func (c *Client) Err() error { return c.conn.Err() }

// GoingAway reports that no new tunnel can be opened.
func (c *Client) GoingAway() bool { return c.conn.GoingAway() }

// Drain lets open tunnels finish, then ends the connection.
func (c *Client) Drain() { c.conn.Drain() }

// Close ends the connection and its tunnels now, without waiting.
func (c *Client) Close() error { return c.conn.Close() }

// Wait returns when the connection ended and left nothing behind.
func (c *Client) Wait() { c.conn.Wait() }

func checkHeader(h Header) error {
	token := h.Name != ""
	for i := 0; i < len(h.Name) && token; i++ {
		b := h.Name[i]
		token = b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0
	}
	if !token {
		return fmt.Errorf("header name %q is not a lower-case token", h.Name)
	}
	for i := range len(h.Value) {
		if b := h.Value[i]; b < ' ' && b != '\t' || b == 0x7f {
			return fmt.Errorf("header %s has control characters in its value %q", h.Name, h.Value)
		}
	}
	return nil
}

func join(hdr []Header, name string) string {
	out, found := "", false
	for _, h := range hdr {
		switch {
		case h.Name != name:
		case found:
			out += "," + h.Value
		default:
			out, found = h.Value, true
		}
	}
	return out
}
