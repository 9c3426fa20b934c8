package quota

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// http2 is what gRPC is spoken over.
const http2 = 2

// maxReply bounds what is read of a service's answer.
const maxReply = 256 << 10

// Service asks rate limit services that are clusters of the configuration.
type Service struct {
	clusters *upstream.Store
	rand     match.Rand
}

// NewService makes a client of whatever service a filter names.
func NewService(clusters *upstream.Store, rand match.Rand) *Service {
	return &Service{clusters: clusters, rand: rand}
}

// errStreams is what a call that is no single question gets.
var errStreams = errors.New("streams are not spoken with a rate limit service")

// Ask puts one question to the service of g, within its time limit.
func (s *Service) Ask(ctx context.Context, g *filters.GlobalLimit, q filters.Question) (*rlsv3.RateLimitResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, g.Timeout)
	defer cancel()
	req := &rlsv3.RateLimitRequest{Domain: q.Domain, Descriptors: make([]*commonv3.RateLimitDescriptor, 0, len(q.Descriptors))}
	for _, d := range q.Descriptors {
		out := &commonv3.RateLimitDescriptor{}
		for _, e := range d.Entries {
			out.Entries = append(out.Entries, &commonv3.RateLimitDescriptor_Entry{Key: e.Key, Value: e.Value})
		}
		if l := d.Limit; l != nil {
			out.Limit = &commonv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: l.Requests, Unit: l.Unit}
		}
		req.Descriptors = append(req.Descriptors, out)
	}
	conn := &call{s: s, cluster: g.Cluster, authority: g.Authority}
	resp, err := rlsv3.NewRateLimitServiceClient(conn).ShouldRateLimit(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("rate limit service %q: %w", g.Cluster, err)
	}
	switch resp.GetOverallCode() {
	case rlsv3.RateLimitResponse_OK, rlsv3.RateLimitResponse_OVER_LIMIT:
		return resp, nil
	default:
		return nil, fmt.Errorf("rate limit service %q: answer %v means nothing", g.Cluster, resp.GetOverallCode())
	}
}

// call speaks gRPC over a cluster's own connections, so that endpoints, tunnels, limits and outliers are those of every request.
type call struct {
	s         *Service
	cluster   string
	authority string
}

// NewStream implements grpc.ClientConnInterface.
func (*call) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errStreams
}

// Invoke implements grpc.ClientConnInterface for calls without options.
func (c *call) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	in, okIn := args.(proto.Message)
	out, okOut := reply.(proto.Message)
	if !okIn || !okOut {
		return fmt.Errorf("call %s with %T and %T: no messages", method, args, reply)
	}
	req, err := c.request(ctx, method, in)
	if err != nil {
		return err
	}
	resp, err := c.s.clusters.Ask(ctx, c.cluster, c.s.rand, http2, req, maxReply)
	if err != nil {
		return err
	}
	return read(resp, out)
}

func (c *call) request(ctx context.Context, method string, in proto.Message) (*http.Request, error) {
	const prefix = 5 // not compressed, and the length
	body, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, prefix, 256), in)
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(body[1:], uint32(len(body)-prefix))
	h := http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"marrow-waypoint"}}
	if d, ok := ctx.Deadline(); ok {
		h.Set("Grpc-Timeout", strconv.FormatInt(max(time.Until(d).Milliseconds(), 1), 10)+"m")
	}
	authority := c.authority
	if authority == "" {
		authority = c.cluster
	}
	return &http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: method}, Host: upstream.AuthorityOf(authority), Header: h,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Proto: "HTTP/2.0", ProtoMajor: 2,
	}, nil
}

// read takes the one message out of an answer.
func read(resp *upstream.Reply, out proto.Message) error {
	if resp.Status != http.StatusOK {
		return status.Errorf(codes.Unavailable, "HTTP status %d", resp.Status)
	}
	if s := resp.Header.Get("Grpc-Status"); s != "" && s != "0" { // an answer of trailers alone
		return grpcError(s, resp.Header.Get("Grpc-Message"))
	}
	if s := resp.Trailer.Get("Grpc-Status"); s != "0" {
		return grpcError(s, resp.Trailer.Get("Grpc-Message"))
	}
	const prefix = 5
	body := resp.Body
	switch {
	case len(body) < prefix:
		return errors.New("answer has no message")
	case body[0] != 0:
		return errors.New("answer is compressed, which nobody asked for")
	case uint64(binary.BigEndian.Uint32(body[1:])) != uint64(len(body)-prefix):
		return errors.New("answer is not one whole message")
	}
	return proto.Unmarshal(body[prefix:], out)
}

func grpcError(code, message string) error {
	n, err := strconv.ParseUint(code, 10, 32)
	if err != nil || n == 0 {
		return status.Errorf(codes.Unknown, "grpc-status %q", code)
	}
	return status.Error(codes.Code(n), message)
}
