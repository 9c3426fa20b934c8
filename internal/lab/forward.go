package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// ForwardProtocol is what a forwarded connection is upgraded to: the bytes of one TCP connection into the lab.
const ForwardProtocol = "marrow-forward"

// ForwardRequest names where a connection goes: a Service ("svc/web"), or a pod as in Target.
type ForwardRequest struct {
	Target Target `json:"target"`
	Port   int    `json:"port"`
}

// Forward accepts connections from l until it is closed or ctx ends, and takes each to the target in the lab. onErr is told
// of connections that could not be taken there.
func (c *Client) Forward(ctx context.Context, l net.Listener, r ForwardRequest, onErr func(error)) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		open.Go(func() {
			if err := c.forwardOne(ctx, conn, r); err != nil {
				onErr(err)
			}
		})
	}
}

func (c *Client) forwardOne(ctx context.Context, conn net.Conn, r ForwardRequest) error {
	defer func() { _ = conn.Close() }()
	up, in, err := c.Dial(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = up.Close() }()
	stop := context.AfterFunc(ctx, func() { _, _ = conn.Close(), up.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(up, conn)
		_ = up.CloseWrite()
	})
	_, _ = io.Copy(conn, in)
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	both.Wait()
	return nil
}

// Dial opens one connection into the lab. What comes back is read from the reader.
func (c *Client) Dial(ctx context.Context, r ForwardRequest) (*net.UnixConn, *bufio.Reader, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the request: %w", err)
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "unix", c.State.Socket())
	if err != nil {
		return nil, nil, fmt.Errorf("ask the lab: %w", err)
	}
	conn, ok := raw.(*net.UnixConn)
	if !ok {
		_ = raw.Close()
		return nil, nil, fmt.Errorf("%s is no unix socket", c.State.Socket())
	}
	fail := func(err error) (*net.UnixConn, *bufio.Reader, error) {
		_ = conn.Close()
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lab/v1/forward", bytes.NewReader(body))
	if err != nil {
		return fail(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", ForwardProtocol)
	if err := req.Write(conn); err != nil {
		return fail(fmt.Errorf("ask the lab: %w", err))
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return fail(fmt.Errorf("read the lab's answer: %w", err))
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer func() { _ = resp.Body.Close() }()
		return fail(readAPIError(resp))
	}
	return conn, in, nil
}
