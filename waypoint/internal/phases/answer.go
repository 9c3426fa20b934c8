package phases

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// failure is a request that ends without the upstream's answer.
type failure struct {
	status int    // 0 = the client is gone, nobody is answered
	flag   string // Envoy's response flag; empty = none
	detail string
	body   string
	grpc   *int        // gRPC status when it does not follow from status
	close  bool        // the connection cannot be used any more
	header http.Header // for the answer; nil = none
	err    error
}

func (f *failure) Error() string {
	if f.err != nil {
		return fmt.Sprintf("%d %s: %v", f.status, f.detail, f.err)
	}
	return fmt.Sprintf("%d %s", f.status, f.detail)
}

func (f *failure) Unwrap() error { return f.err }

var (
	errNoSession = errors.New("request did not come through a tunnel")
	errTimeout   = errors.New("request took longer than its route allows")
	errTry       = errors.New("attempt took longer than its route allows")
)

func noRoute(detail string) *failure {
	return &failure{status: http.StatusNotFound, flag: "NR", detail: detail}
}

func (x *exchange) clientGone() *failure {
	return &failure{flag: "DC", detail: "downstream_remote_disconnect", err: context.Cause(x.r.Context())}
}

// answer is where every failure ends: it tells the client and the record.
func (x *exchange) answer(err error) {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = &failure{status: http.StatusInternalServerError, detail: "internal_error", err: err}
	}
	x.facts.flag(f.flag)
	if f.err != nil {
		x.h.cfg.Log.Debug("request failed", obs.F("chain", x.facts.chain), obs.F("path", x.q.Path), obs.F("detail", f.detail), obs.Err(f.err))
	}
	if x.sent {
		// The client has part of an answer. Only breaking it off tells that it is not whole.
		x.facts.detail = f.detail
		x.facts.broken = true
		return
	}
	if f.status == 0 {
		x.facts.detail, x.facts.broken = f.detail, true
		return
	}
	x.facts.detail = f.detail
	h := http.Header{}
	maps.Copy(h, f.header)
	if f.close {
		h.Set("Connection", "close")
	}
	if f.flag == "UO" {
		h.Set("X-Envoy-Overloaded", "true") // so that other proxies do not try again
	}
	if x.q.GRPC {
		x.answerGRPC(f, h)
		return
	}
	if _, set := h["Content-Type"]; f.body != "" && !set {
		h.Set("Content-Type", "text/plain")
	}
	if x.chain != nil {
		x.mutateResponse(h)
	}
	x.respond(f.status, h, f.detail, f.body)
}

func (x *exchange) answerGRPC(f *failure, h http.Header) {
	code := grpcOfHTTP(f.status)
	if f.grpc != nil {
		code = *f.grpc
	}
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(code))
	if f.body != "" {
		h.Set("Grpc-Message", encodeGRPCMessage(f.body))
	}
	x.facts.grpc = strconv.Itoa(code)
	x.mutateResponse(h)
	x.writeHeaders(http.StatusOK, h, f.detail)
}

// grpcOfHTTP is the gRPC status that stands for an HTTP status of ours.
func grpcOfHTTP(status int) int {
	switch status {
	case http.StatusOK:
		return 0
	case http.StatusBadRequest:
		return 13 // INTERNAL
	case http.StatusUnauthorized:
		return 16 // UNAUTHENTICATED
	case http.StatusForbidden:
		return 7 // PERMISSION_DENIED
	case http.StatusNotFound:
		return 12 // UNIMPLEMENTED
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return 14 // UNAVAILABLE
	}
	return 2 // UNKNOWN
}

func encodeGRPCMessage(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// failed turns what went wrong with an attempt into what the client is told.
func (x *exchange) failed(err error, ctx context.Context) *failure {
	const resetBody = "upstream connect error or disconnect/reset before headers. "
	var ce *upstream.ConnectError
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errTimeout):
		return &failure{status: http.StatusGatewayTimeout, flag: "UT", detail: "response_timeout", body: "upstream request timeout", err: err}
	case errors.Is(cause, errTry):
		return &failure{status: http.StatusGatewayTimeout, flag: "UT", detail: "upstream_per_try_timeout", body: "upstream request timeout", err: err}
	case x.r.Context().Err() != nil:
		return x.clientGone()
	case errors.Is(err, upstream.ErrOverflow):
		return &failure{status: http.StatusServiceUnavailable, flag: "UO", detail: "upstream_reset_before_response_started{overflow}", body: resetBody + "reset reason: overflow", err: err}
	case errors.Is(err, upstream.ErrNoHealthy):
		return &failure{status: http.StatusServiceUnavailable, flag: "UH", detail: "no_healthy_upstream", body: "no healthy upstream", err: err}
	case errors.As(err, &ce):
		x.facts.transport = ce.Err.Error()
		reason := "remote connection failure"
		if ce.Timeout {
			reason = "connection timeout"
		}
		return &failure{
			status: http.StatusServiceUnavailable, flag: "UF", detail: "upstream_reset_before_response_started{" + strings.ReplaceAll(reason, " ", "_") + "}",
			body: resetBody + "reset reason: " + reason, err: err,
		}
	case x.body != nil && x.body.failed.Load():
		return &failure{status: http.StatusBadRequest, flag: "DPE", detail: "http1.codec_error", body: "the request's body cannot be read", close: true, err: err}
	case strings.Contains(err.Error(), "malformed HTTP"):
		return &failure{status: http.StatusBadGateway, flag: "UPE", detail: "upstream_reset_before_response_started{protocol_error}", body: resetBody + "reset reason: protocol error", err: err}
	}
	return &failure{status: http.StatusServiceUnavailable, flag: "UC", detail: "upstream_reset_before_response_started{connection_termination}", body: resetBody + "reset reason: connection termination", err: err}
}
