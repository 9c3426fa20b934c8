package filters

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Fault delays and aborts a share of requests on purpose.
type Fault struct {
	when    []match.Header
	delay   time.Duration
	delayed share
	abort   Abort
	aborted share
	// asked say that clients choose the delay and the abort by headers, up to the configured shares.
	delayAsked, abortAsked bool
}

// share is a share of requests that clients may make smaller by a header, counted in unit.
type share struct {
	match.Fraction
	unit uint64 // in millionths
}

// Headers by which clients ask for faults, where the configuration lets them.
const (
	askDelay      = "X-Envoy-Fault-Delay-Request" // milliseconds
	askDelayShare = "X-Envoy-Fault-Delay-Request-Percentage"
	askAbort      = "X-Envoy-Fault-Abort-Request" // HTTP status
	askAbortGRPC  = "X-Envoy-Fault-Abort-Grpc-Request"
	askAbortShare = "X-Envoy-Fault-Abort-Request-Percentage"
	// longestAsked bounds a delay that a client asks for.
	longestAsked = 24 * time.Hour
)

// asked is the share after the client's header, which can only make it smaller. What is no number counts for nothing, as in Envoy.
func (s share) asked(q *match.Request, header string) match.Fraction {
	if n, ok := number(q, header); ok {
		return match.Fraction(min(n*s.unit, uint64(s.Fraction)))
	}
	return s.Fraction
}

func number(q *match.Request, header string) (uint64, bool) {
	v, ok := q.Get(header)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 32)
	return n, err == nil
}

func compileShare(p *typev3.FractionalPercent) (share, error) {
	f, err := match.CompileFraction(p) // absent = none, as in Envoy
	one, _ := match.CompileFraction(&typev3.FractionalPercent{Numerator: 1, Denominator: p.GetDenominator()})
	return share{Fraction: f, unit: uint64(one)}, err
}

// Abort is the answer that a fault gives in the upstream's place. The zero value is none.
type Abort struct {
	Status int // HTTP status; 0 when GRPC is meant
	GRPC   int // gRPC status; -1 when HTTP is meant
}

func (*Fault) http() {}

// FaultPlan is what befalls one request.
type FaultPlan struct {
	Delay time.Duration // 0 = none
	Abort *Abort        // nil = none
}

// Plan decides for one request. It takes a random number for each share that is neither none nor all.
func (f *Fault) Plan(q *match.Request, rnd match.Rand) FaultPlan {
	var p FaultPlan
	if !match.All(f.when, q) {
		return p
	}
	if f.delayAsked {
		if ms, ok := number(q, askDelay); ok && ms > 0 && f.delayed.asked(q, askDelayShare).Hit(rnd) {
			p.Delay = min(time.Duration(ms)*time.Millisecond, longestAsked)
		}
	} else if f.delay > 0 && f.delayed.Hit(rnd) {
		p.Delay = f.delay
	}
	if f.abortAsked {
		if a := abortAsked(q); a != nil && f.aborted.asked(q, askAbortShare).Hit(rnd) {
			p.Abort = a
		}
	} else if f.aborted.Hit(rnd) {
		p.Abort = &f.abort
	}
	return p
}

// abortAsked is what the client asks for: an HTTP status, or else a gRPC status; nil = nothing that there is.
func abortAsked(q *match.Request) *Abort {
	if n, ok := number(q, askAbort); ok && n >= 200 && n <= 599 {
		return &Abort{Status: int(n), GRPC: -1}
	}
	if n, ok := number(q, askAbortGRPC); ok && n <= 1<<31-1 {
		return &Abort{GRPC: int(n), Status: HTTPOfGRPC(int(n))}
	}
	return nil
}

func compileFault(p *faultv3.HTTPFault) (*Fault, error) {
	if err := strict.Only(p, "delay", "abort", "headers", "disable_downstream_cluster_stats"); err != nil {
		return nil, err
	}
	f := &Fault{}
	var err error
	if f.when, err = match.CompileHeaders(p.GetHeaders()); err != nil {
		return nil, err
	}
	if d := p.GetDelay(); d != nil {
		if err := f.compileDelay(d); err != nil {
			return nil, fmt.Errorf("delay: %w", err)
		}
	}
	if a := p.GetAbort(); a != nil {
		if err := f.compileAbort(a); err != nil {
			return nil, fmt.Errorf("abort: %w", err)
		}
	}
	return f, nil
}

func (f *Fault) compileDelay(d *commonfault.FaultDelay) error {
	if err := strict.Only(d, "fixed_delay", "header_delay", "percentage"); err != nil {
		return err
	}
	var err error
	if f.delayed, err = compileShare(d.GetPercentage()); err != nil {
		return err
	}
	if d.GetHeaderDelay() != nil {
		f.delayAsked = true
		return nil
	}
	if d.GetFixedDelay() == nil {
		return fmt.Errorf("fixed_delay is not set: %w", strict.ErrUnsupported)
	}
	f.delay = d.GetFixedDelay().AsDuration()
	if f.delay <= 0 {
		return fmt.Errorf("fixed_delay %v is not positive", f.delay)
	}
	return nil
}

func (f *Fault) compileAbort(a *faultv3.FaultAbort) error {
	if err := strict.Only(a, "http_status", "grpc_status", "header_abort", "percentage"); err != nil {
		return err
	}
	switch e := a.GetErrorType().(type) {
	case *faultv3.FaultAbort_HttpStatus:
		if e.HttpStatus < 200 || e.HttpStatus > 599 {
			return fmt.Errorf("http_status %d is not in 200..599", e.HttpStatus)
		}
		f.abort = Abort{Status: int(e.HttpStatus), GRPC: -1}
	case *faultv3.FaultAbort_GrpcStatus:
		f.abort = Abort{GRPC: int(e.GrpcStatus), Status: HTTPOfGRPC(int(e.GrpcStatus))}
	case *faultv3.FaultAbort_HeaderAbort_:
		f.abortAsked = true
	default:
		return fmt.Errorf("error type %T: %w", e, strict.ErrUnsupported)
	}
	var err error
	f.aborted, err = compileShare(a.GetPercentage())
	return err
}

// HTTPOfGRPC is the HTTP status that stands for a gRPC status toward a client that does not speak gRPC.
func HTTPOfGRPC(code int) int {
	switch code {
	case 0: // OK
		return http.StatusOK
	case 1: // CANCELLED
		return 499
	case 3, 9, 11: // INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE
		return http.StatusBadRequest
	case 4: // DEADLINE_EXCEEDED
		return http.StatusGatewayTimeout
	case 5: // NOT_FOUND
		return http.StatusNotFound
	case 6, 10: // ALREADY_EXISTS, ABORTED
		return http.StatusConflict
	case 7: // PERMISSION_DENIED
		return http.StatusForbidden
	case 8: // RESOURCE_EXHAUSTED
		return http.StatusTooManyRequests
	case 12: // UNIMPLEMENTED
		return http.StatusNotImplemented
	case 14: // UNAVAILABLE
		return http.StatusServiceUnavailable
	case 16: // UNAUTHENTICATED
		return http.StatusUnauthorized
	}
	return http.StatusInternalServerError
}
