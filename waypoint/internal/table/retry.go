package table

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previousv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Retry says when a failed attempt is made again.
type Retry struct {
	On          Cause
	Retries     int           // after the first attempt
	PerTry      time.Duration // 0 = none
	Codes       []int
	Base, Max   time.Duration // of the back-off
	Avoid       bool          // prefer an endpoint that was not tried yet
	AvoidPicks  int           // how many picks that is worth
	Headers     []match.Header
	OnlyRequest []match.Header
	Elsewhere   int         // after every so many attempts the priorities tried so far are passed over; 0 = never
	Limited     RateLimited // an answer that says when to come back
}

// RateLimited is how long an answer may tell to wait before the next attempt.
type RateLimited struct {
	Headers []ResetHeader
	Max     time.Duration
}

// ResetHeader is a header that tells when to come back.
type ResetHeader struct {
	Name string // canonical
	Unix bool   // the value is a point in time, not a number of seconds
}

// Wait is what an answer's headers say; ok is false when they say nothing that can be followed.
func (l *RateLimited) Wait(h http.Header, now time.Time) (wait time.Duration, ok bool) {
	for _, r := range l.Headers {
		n, err := strconv.ParseInt(strings.TrimSpace(h.Get(r.Name)), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/int64(time.Second) {
			continue
		}
		wait = time.Duration(n) * time.Second
		if r.Unix {
			wait = time.Unix(n, 0).Sub(now)
		}
		if wait >= 0 && wait <= l.Max {
			return wait, true
		}
	}
	return 0, false
}

// compileLimited compiles a back-off that the upstream rules.
func compileLimited(p *routev3.RetryPolicy_RateLimitedRetryBackOff) (RateLimited, error) {
	const longest = 300 * time.Second // as in Envoy
	l := RateLimited{Max: longest}
	if p == nil {
		return l, nil
	}
	if d := p.GetMaxInterval(); d != nil {
		l.Max = d.AsDuration()
	}
	for _, h := range p.GetResetHeaders() {
		r := ResetHeader{Name: http.CanonicalHeaderKey(h.GetName())}
		switch h.GetFormat() {
		case routev3.RetryPolicy_SECONDS:
		case routev3.RetryPolicy_UNIX_TIMESTAMP:
			r.Unix = true
		default:
			return l, fmt.Errorf("rate_limited_retry_back_off format %v: %w", h.GetFormat(), strict.ErrUnsupported)
		}
		l.Headers = append(l.Headers, r)
	}
	return l, nil
}

// Cause is a set of reasons for another attempt.
type Cause uint32

// The reasons that retry_on can name.
const (
	On5xx Cause = 1 << iota
	OnGateway
	OnReset
	OnResetBefore
	OnConnect
	OnRefused
	On4xx
	OnCodes
	OnHeaders
	OnRateLimited
	OnCancelled
	OnDeadline
	OnInternal
	OnExhausted
	OnUnavailable
)

func causeOf(word string) (Cause, bool) {
	switch word {
	case "5xx":
		return On5xx, true
	case "gateway-error":
		return OnGateway, true
	case "reset":
		return OnReset, true
	case "reset-before-request":
		return OnResetBefore, true
	case "connect-failure":
		return OnConnect, true
	case "refused-stream":
		return OnRefused, true
	case "retriable-4xx":
		return On4xx, true
	case "retriable-status-codes":
		return OnCodes, true
	case "retriable-headers":
		return OnHeaders, true
	case "envoy-ratelimited":
		return OnRateLimited, true
	case "http3-post-connect-failure":
		return 0, true // there is no HTTP/3 upstream here, so it never happens
	case "cancelled":
		return OnCancelled, true
	case "deadline-exceeded":
		return OnDeadline, true
	case "internal":
		return OnInternal, true
	case "resource-exhausted":
		return OnExhausted, true
	case "unavailable":
		return OnUnavailable, true
	}
	return 0, false
}

// Has reports whether any of want is a reason.
func (r *Retry) Has(want Cause) bool { return r.On&want != 0 }

// Status reports whether an answer with this status is a reason.
func (r *Retry) Status(code int) bool {
	switch {
	case r.Has(On5xx) && code >= 500 && code <= 599,
		r.Has(OnGateway) && code >= 502 && code <= 504,
		r.Has(On4xx) && code == 409,
		r.Has(OnCodes) && slices.Contains(r.Codes, code):
		return true
	}
	return false
}

// GRPC reports whether an answer with this gRPC status is a reason.
func (r *Retry) GRPC(status int) bool {
	switch status {
	case 1:
		return r.Has(OnCancelled)
	case 4:
		return r.Has(OnDeadline)
	case 8:
		return r.Has(OnExhausted)
	case 13:
		return r.Has(OnInternal)
	case 14:
		return r.Has(OnUnavailable)
	}
	return false
}

func compileRetry(p *routev3.RetryPolicy) (*Retry, error) {
	if p == nil {
		return nil, nil
	}
	if err := strict.Only(p, "retry_on", "num_retries", "per_try_timeout", "retry_host_predicate",
		"host_selection_retry_max_attempts", "retriable_status_codes", "retry_back_off", "retriable_headers",
		"retriable_request_headers", "retry_priority", "refresh_cluster_on_retry", "rate_limited_retry_back_off"); err != nil {
		return nil, err
	}
	r := &Retry{Retries: 1, PerTry: p.GetPerTryTimeout().AsDuration(), Base: 25 * time.Millisecond}
	if n := p.GetNumRetries(); n != nil {
		r.Retries = int(min(n.GetValue(), 1000))
	}
	for word := range strings.SplitSeq(p.GetRetryOn(), ",") {
		word = strings.TrimSpace(word)
		if word == "" {
			continue
		}
		if code, err := strconv.Atoi(word); err == nil {
			r.On, r.Codes = r.On|OnCodes, append(r.Codes, code)
			continue
		}
		c, ok := causeOf(word)
		if !ok {
			return nil, fmt.Errorf("retry_on %q: %w", word, strict.ErrUnsupported)
		}
		r.On |= c
	}
	for _, c := range p.GetRetriableStatusCodes() {
		r.Codes = append(r.Codes, int(c))
	}
	if b := p.GetRetryBackOff(); b != nil {
		r.Base, r.Max = b.GetBaseInterval().AsDuration(), b.GetMaxInterval().AsDuration()
		if r.Base <= 0 {
			return nil, fmt.Errorf("retry_back_off.base_interval %v is not positive", r.Base)
		}
	}
	if r.Max == 0 {
		r.Max = 10 * r.Base
	}
	for _, h := range p.GetRetryHostPredicate() {
		if h.GetName() != "envoy.retry_host_predicates.previous_hosts" {
			return nil, fmt.Errorf("retry_host_predicate %q: %w", h.GetName(), strict.ErrUnsupported)
		}
		r.Avoid = true
	}
	if rp := p.GetRetryPriority(); rp != nil {
		if rp.GetName() != "envoy.retry_priorities.previous_priorities" {
			return nil, fmt.Errorf("retry_priority %q: %w", rp.GetName(), strict.ErrUnsupported)
		}
		m := &previousv3.PreviousPrioritiesConfig{}
		if err := strict.Unpack(rp.GetTypedConfig(), m, "update_frequency"); err != nil {
			return nil, fmt.Errorf("retry_priority: %w", err)
		}
		r.Elsewhere = int(max(m.GetUpdateFrequency(), 1))
	}
	r.AvoidPicks = int(max(p.GetHostSelectionRetryMaxAttempts(), 1))
	var err error
	if r.Limited, err = compileLimited(p.GetRateLimitedRetryBackOff()); err != nil {
		return nil, err
	}
	if r.Headers, err = match.CompileHeaders(p.GetRetriableHeaders()); err != nil {
		return nil, err
	}
	r.OnlyRequest, err = match.CompileHeaders(p.GetRetriableRequestHeaders())
	return r, err
}
