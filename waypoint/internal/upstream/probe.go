package upstream

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// errIll is an answer that says outright that the endpoint is not well: no further check is waited for.
var errIll = errors.New("the endpoint says that it is not well")

const mostOfAnswer = 64 << 10 // bytes of an answer to a check

func unhex(s string) ([]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) == 0 {
		return nil, fmt.Errorf("%q is no hexadecimal text", s)
	}
	return b, nil
}

// ask puts one question to h over a connection of its own: through the tunnel and TLS that requests take.
func (c *Cluster) ask(ctx context.Context, h *Host) error {
	ctx, cancel := context.WithTimeout(ctx, c.Config.Check.Timeout)
	defer cancel()
	to := *h
	if p := h.Check.Port; p != 0 {
		to.Addr = netip.AddrPortFrom(h.Addr.Addr(), p)
	}
	switch p := c.Config.Check.Probe.(type) {
	case httpProbe:
		return c.askHTTP(ctx, &to, p)
	case grpcProbe:
		return c.askGRPC(ctx, &to, p)
	case tcpProbe:
		return c.askTCP(ctx, &to, p)
	}
	return fmt.Errorf("check %T", c.Config.Check.Probe) // cannot be: compileChecks makes no other
}

func (c *Cluster) authority(h *Host, given string) string {
	switch {
	case h.Check.Host != "":
		return h.Check.Host
	case given != "":
		return given
	}
	return AuthorityOf(c.Config.Name) // as Envoy names itself the cluster
}

func (c *Cluster) askHTTP(ctx context.Context, h *Host, p httpProbe) error {
	r, err := http.NewRequestWithContext(ctx, p.method, "http://"+h.Addr.String()+p.path, http.NoBody)
	if err != nil {
		return err
	}
	r.Host, r.Header = c.authority(h, p.host), p.put.Clone()
	if r.Header.Get("User-Agent") == "" {
		r.Header.Set("User-Agent", "Envoy/HC") // what applications know checks by
	}
	for _, name := range p.remove {
		r.Header.Del(name)
		if http.CanonicalHeaderKey(name) == "User-Agent" {
			r.Header["User-Agent"] = nil
		}
	}
	resp, err := c.exchange(h, p.two, r)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	switch {
	case among(p.good, resp.StatusCode):
		return nil
	case among(p.later, resp.StatusCode):
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return fmt.Errorf("status %d: %w", resp.StatusCode, errIll)
}

// exchange sends r over a fresh connection that ends with the answer's body.
func (c *Cluster) exchange(h *Host, two bool, r *http.Request) (*http.Response, error) {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!two)
	protocols.SetUnencryptedHTTP2(two)
	t := &http.Transport{
		Protocols: protocols, DisableCompression: true, DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.Dial(ctx, h, "", Via{Authority: r.Host})
		},
	}
	resp, err := t.RoundTrip(r)
	if err != nil {
		t.CloseIdleConnections()
		return nil, err
	}
	resp.Body = &lastBody{ReadCloser: resp.Body, over: t.CloseIdleConnections}
	return resp, nil
}

func (c *Cluster) askGRPC(ctx context.Context, h *Host, p grpcProbe) error {
	const head = 5 // bytes before a message: whether it is compressed, and its length
	msg, err := proto.Marshal(&grpc_health_v1.HealthCheckRequest{Service: p.service})
	if err != nil {
		return err
	}
	body := append(make([]byte, head), msg...)
	binary.BigEndian.PutUint32(body[1:], uint32(len(msg)))
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.Addr.String()+defaultGRPCPath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Host = c.authority(h, p.authority)
	r.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"Envoy/HC"}}
	resp, err := c.exchange(h, true, r)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, mostOfAnswer))
	_ = resp.Body.Close()
	status := resp.Trailer.Get("Grpc-Status")
	if status == "" {
		status = resp.Header.Get("Grpc-Status")
	}
	var out grpc_health_v1.HealthCheckResponse
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("status %d", resp.StatusCode)
	case status != "0":
		return fmt.Errorf("gRPC status %q: %w", status, errIll)
	case len(answer) < head || answer[0] != 0 || int(binary.BigEndian.Uint32(answer[1:])) != len(answer)-head:
		return errors.New("the answer is no single gRPC message")
	}
	if err := proto.Unmarshal(answer[head:], &out); err != nil {
		return err
	}
	if s := out.GetStatus(); s != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("%v: %w", s, errIll)
	}
	return nil
}

func (c *Cluster) askTCP(ctx context.Context, h *Host, p tcpProbe) error {
	conn, err := c.Dial(ctx, h, "", Via{})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if len(p.send) > 0 {
		if _, err := conn.Write(p.send); err != nil {
			return err
		}
	}
	var seen []byte
	buf := make([]byte, 4<<10)
	for !inOrder(seen, p.receive) {
		n, err := conn.Read(buf)
		seen = append(seen, buf[:n]...)
		switch {
		case err != nil && !inOrder(seen, p.receive):
			return err
		case len(seen) > mostOfAnswer:
			return errors.New("the answer is too long")
		}
	}
	return nil
}

// inOrder says whether all parts are in b, one after the other.
func inOrder(b []byte, parts [][]byte) bool {
	for _, p := range parts {
		i := bytes.Index(b, p)
		if i < 0 {
			return false
		}
		b = b[i+len(p):]
	}
	return true
}
