package extauthz

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
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Asker asks servers through the proxy's clusters.
type Asker struct {
	Upstreams *upstream.Store
	Rand      match.Rand
}

const (
	longestAnswer = 1 << 20
	checkMethod   = "/envoy.service.auth.v3.Authorization/Check"
	frameHead     = 5
)

// Ask asks f's server. It returns when there is an answer, the filter's time is over or ctx ends.
func (a Asker) Ask(ctx context.Context, f *filters.ExtAuthz, in filters.AuthzInput) filters.AuthzAnswer {
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	var answer filters.AuthzAnswer
	var err error
	if f.GRPC {
		answer, err = a.grpc(ctx, f, in)
	} else {
		answer, err = a.http(ctx, f, in)
	}
	if err != nil {
		if cause := ctx.Err(); errors.Is(cause, context.DeadlineExceeded) {
			return filters.Failed("cluster %q gave no answer within %v: %w", f.Cluster, f.Timeout, err)
		}
		return filters.Failed("cluster %q: %w", f.Cluster, err)
	}
	return answer
}

func (a Asker) http(ctx context.Context, f *filters.ExtAuthz, in filters.AuthzInput) (filters.AuthzAnswer, error) {
	target, host, h := f.HTTPCheck(in)
	u := &url.URL{}
	if path, query, _ := strings.Cut(target, "?"); strings.HasPrefix(path, "//") || !strings.HasPrefix(path, "/") {
		p, err := url.PathUnescape(path) // an opaque part that begins with two slashes would be read as a host
		if err != nil {
			return filters.AuthzAnswer{}, err
		}
		u.Path, u.RawPath, u.RawQuery = p, path, query
	} else {
		u.Opaque, u.RawQuery = path, query
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // otherwise the HTTP client names itself
	}
	r := &http.Request{Method: in.Request.Method, URL: u, Host: host, Header: h, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	setBody(r, in.Body)
	reply, err := a.Upstreams.Ask(ctx, f.Cluster, a.Rand, 1, r, longestAnswer)
	if err != nil {
		return filters.AuthzAnswer{}, err
	}
	return f.OfHTTP(reply.Status, reply.Header, string(reply.Body)), nil
}

func setBody(r *http.Request, body []byte) {
	r.Body, r.ContentLength = http.NoBody, int64(len(body))
	if len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
}

func (a Asker) grpc(ctx context.Context, f *filters.ExtAuthz, in filters.AuthzInput) (filters.AuthzAnswer, error) {
	var none filters.AuthzAnswer
	msg, err := proto.Marshal(f.Check(in))
	if err != nil {
		return none, fmt.Errorf("write the question: %w", err)
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg)))
	r := &http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: checkMethod}, Host: f.Authority,
		Header: http.Header{
			"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"marrow-waypoint"},
			"Grpc-Timeout": {strconv.FormatInt(max(f.Timeout.Milliseconds(), 1), 10) + "m"},
		},
		Proto: "HTTP/2.0", ProtoMajor: 2,
	}
	if f.Timeout >= 100_000*time.Second { // the header has eight digits
		delete(r.Header, "Grpc-Timeout")
	}
	setBody(r, append(frame, msg...))
	reply, err := a.Upstreams.Ask(ctx, f.Cluster, a.Rand, 2, r, longestAnswer)
	if err != nil {
		return none, err
	}
	answer, err := readCheck(reply)
	if err != nil {
		return none, err
	}
	return f.OfCheck(answer), nil
}

// readCheck reads the one message of an answer and its status.
func readCheck(r *upstream.Reply) (*authv3.CheckResponse, error) {
	status := r.Trailer.Get("Grpc-Status")
	message := r.Trailer.Get("Grpc-Message")
	if status == "" {
		status, message = r.Header.Get("Grpc-Status"), r.Header.Get("Grpc-Message")
	}
	switch {
	case r.Status != http.StatusOK:
		return nil, fmt.Errorf("HTTP status %d", r.Status)
	case !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
		return nil, fmt.Errorf("content type %q is not gRPC", r.Header.Get("Content-Type"))
	case status != "0":
		return nil, fmt.Errorf("gRPC status %q: %q", status, message)
	case len(r.Body) < frameHead || r.Body[0] != 0 || uint64(len(r.Body)-frameHead) != uint64(binary.BigEndian.Uint32(r.Body[1:])):
		return nil, errors.New("the answer is not one plain message")
	}
	out := &authv3.CheckResponse{}
	if err := proto.Unmarshal(r.Body[frameHead:], out); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return out, nil
}
