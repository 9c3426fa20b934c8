package phases

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/quota"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/telemetry"
)

// Limits is where requests are counted; what is nil is made by New.
type Limits struct {
	Local   *quota.Local
	Service *quota.Service
}

func (l *Limits) fill(cfg Config) {
	if l.Local == nil {
		l.Local = quota.NewLocal(time.Now)
	}
	if l.Service == nil {
		l.Service = quota.NewService(cfg.Upstreams, cfg.Rand)
	}
}

// limited is what rate limits leave with an exchange.
type limited struct {
	tell http.Header // for the response, whoever gives it; added to what it has
}

func (l *limited) add(name, value string) {
	if l.tell == nil {
		l.tell = http.Header{}
	}
	l.tell.Add(name, value)
}

// tellLimits puts what the client is to know of its limits into the response.
func (l *limited) tellLimits(out http.Header) {
	for k, vs := range l.tell {
		if k == "Content-Type" {
			out[k] = vs
			continue
		}
		out[k] = append(out[k], vs...)
	}
}

func (x *exchange) limitFacts() *filters.LimitFacts {
	f := &filters.LimitFacts{Request: &x.q, Node: x.h.cfg.Node, Dynamic: x.q.Metadata}
	if x.route != nil {
		f.Route = x.route.Metadata
		if _, forwards := x.route.Action.(*table.Forward); forwards {
			f.Cluster = x.facts.clusterName
		}
	}
	return f
}

func (x *exchange) routeLimits() filters.RouteLimits {
	if x.route == nil {
		return filters.RouteLimits{}
	}
	return x.route.Limits
}

// metadata is what filters leave behind for others, ready to be written to.
func (x *exchange) metadata() map[string]*structpb.Struct {
	if x.q.Metadata == nil {
		x.q.Metadata = map[string]*structpb.Struct{}
	}
	return x.q.Metadata
}

func (x *exchange) countLimit(filter, limit string, v telemetry.Verdict) {
	if t := x.h.cfg.Telemetry; t != nil {
		t.Limited(filter, limit, v)
	}
}

// localLimit asks the buckets of this process.
func (x *exchange) localLimit(l *filters.LocalLimit) error {
	draws := l.Draws(x.limitFacts(), x.routeLimits(), x.h.cfg.Rand)
	if len(draws) == 0 {
		return nil
	}
	out := x.h.cfg.Limits.Local.Take(l.ID, draws)
	d := draws[out.At]
	if d.Headers {
		x.add("X-Ratelimit-Limit", strconv.FormatUint(out.Max, 10))
		x.add("X-Ratelimit-Remaining", strconv.FormatUint(out.Left, 10))
		x.add("X-Ratelimit-Reset", strconv.FormatInt(int64(out.Next/time.Second), 10))
	}
	switch {
	case out.Allowed:
		x.countLimit(l.Name, d.Name, telemetry.LimitOK)
		return nil
	case !l.Enforced(x.h.cfg.Rand):
		x.countLimit(l.Name, d.Name, telemetry.LimitObserved)
		l.Observed.Apply(x.r.Header)
		return nil
	}
	x.countLimit(l.Name, d.Name, telemetry.LimitOver)
	f := refusal(l.Answer, nil)
	if l.Retry {
		x.retryAfter(f, out.Next)
	}
	return f
}

// retryAfter says in a refusal with 429 when it is worth to ask again, unless somebody has said so.
func (x *exchange) retryAfter(f *failure, wait time.Duration) {
	const name = "Retry-After"
	if f.status == http.StatusTooManyRequests && f.header[name] == nil && x.tell[name] == nil {
		f.header[name] = []string{strconv.FormatInt(max(1, int64((wait+time.Second-1)/time.Second)), 10)}
	}
}

// longestReset is the longest wait of the limits that a request is over; false = there is none.
func longestReset(statuses []*rlsv3.RateLimitResponse_DescriptorStatus) (wait time.Duration, over bool) {
	for _, s := range statuses {
		if s.GetCode() == rlsv3.RateLimitResponse_OVER_LIMIT {
			wait, over = max(wait, s.GetDurationUntilReset().AsDuration()), true
		}
	}
	return wait, over
}

// refusal is the answer to a request over its limit.
func refusal(a filters.LimitAnswer, h http.Header) *failure {
	if h == nil {
		h = http.Header{}
	}
	a.Headers.Apply(h)
	return &failure{status: a.Status, flag: "RL", detail: a.Detail, body: a.Body, grpc: a.GRPC, header: h}
}

// globalLimit asks the rate limit service.
func (x *exchange) globalLimit(g *filters.GlobalLimit) error {
	q := g.Ask(x.limitFacts(), x.routeLimits(), filters.GlobalChange(g.Name, x.over...), x.h.cfg.Rand)
	if len(q.Descriptors) == 0 {
		return nil
	}
	resp, err := x.h.cfg.Limits.Service.Ask(x.ctx, g, q)
	if err != nil {
		return x.limitUnknown(g, err)
	}
	if m := resp.GetDynamicMetadata(); len(m.GetFields()) > 0 {
		x.metadata()[g.Metadata] = m
	}
	if g.Headers {
		x.tellQuota(resp.GetStatuses())
	}
	for k, vs := range headersOf(resp.GetResponseHeadersToAdd()) {
		for _, v := range vs {
			x.add(k, v)
		}
	}
	if resp.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT {
		if g.Marked {
			x.add("X-Envoy-Ratelimited", "true")
		}
		if g.Enforced(x.h.cfg.Rand) {
			x.countLimit(g.Name, limitName(q, resp), telemetry.LimitOver)
			a := g.Answer
			a.Body = string(resp.GetRawBody())
			f := refusal(a, nil)
			if wait, over := longestReset(resp.GetStatuses()); over && g.Retry {
				x.retryAfter(f, wait)
			}
			return f
		}
		x.countLimit(g.Name, limitName(q, resp), telemetry.LimitObserved)
	} else {
		x.countLimit(g.Name, "", telemetry.LimitOK)
	}
	for k, vs := range headersOf(resp.GetRequestHeadersToAdd()) {
		x.r.Header[k] = append(x.r.Header[k], vs...)
	}
	return nil
}

// limitUnknown is what follows when the service did not say.
func (x *exchange) limitUnknown(g *filters.GlobalLimit, err error) error {
	if x.r.Context().Err() != nil {
		return x.clientGone()
	}
	if !g.Deny(x.h.cfg.Rand) {
		x.countLimit(g.Name, "", telemetry.LimitError)
		x.h.cfg.Log.Debug("rate limit unknown, let through", obs.F("filter", g.Name), obs.F("path", x.q.Path), obs.Err(err))
		return nil
	}
	x.countLimit(g.Name, "", telemetry.LimitDenied)
	return &failure{status: g.Failed, flag: "RLSE", detail: "rate_limiter_error", err: err}
}

// limitName is the first descriptor over its limit, by the value of its first entry: a policy's name where ours made it.
func limitName(q filters.Question, resp *rlsv3.RateLimitResponse) string {
	for i, s := range resp.GetStatuses() {
		if s.GetCode() == rlsv3.RateLimitResponse_OVER_LIMIT && i < len(q.Descriptors) {
			if d := q.Descriptors[i]; d.Limit != nil { // only such a first entry is known to be from the configuration
				return d.Entries[0].Value
			}
		}
	}
	return ""
}

// headersOf drops what would break a message or route it elsewhere.
func headersOf(hs []*corev3.HeaderValue) http.Header {
	out := http.Header{}
	for _, h := range hs {
		v := h.GetValue()
		if raw := h.GetRawValue(); len(raw) > 0 {
			v = string(raw)
		}
		name := http.CanonicalHeaderKey(h.GetKey())
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(v) || name == "Host" || name == "Content-Length" || name == "Transfer-Encoding" {
			continue
		}
		out.Add(name, v)
	}
	return out
}

// tellQuota tells the client the limit of which least is left, and the windows of all of them.
func (x *exchange) tellQuota(statuses []*rlsv3.RateLimitResponse_DescriptorStatus) {
	var least *rlsv3.RateLimitResponse_DescriptorStatus
	var windows strings.Builder
	for _, s := range statuses {
		l := s.GetCurrentLimit()
		if l == nil {
			continue
		}
		if least == nil || s.GetLimitRemaining() < least.GetLimitRemaining() {
			least = s
		}
		if w := window(l.GetUnit()); w > 0 {
			windows.WriteString(", " + strconv.FormatUint(uint64(l.GetRequestsPerUnit()), 10) + ";w=" + strconv.FormatInt(w, 10))
			if l.GetName() != "" && httpguts.ValidHeaderFieldValue(l.GetName()) {
				windows.WriteString(`;name="` + l.GetName() + `"`)
			}
		}
	}
	if least == nil {
		return
	}
	x.add("X-Ratelimit-Limit", strconv.FormatUint(uint64(least.GetCurrentLimit().GetRequestsPerUnit()), 10)+windows.String())
	x.add("X-Ratelimit-Remaining", strconv.FormatUint(uint64(least.GetLimitRemaining()), 10))
	x.add("X-Ratelimit-Reset", strconv.FormatInt(min(least.GetDurationUntilReset().GetSeconds(), math.MaxInt32), 10))
}

// window is a unit in seconds; 0 = not known.
func window(u rlsv3.RateLimitResponse_RateLimit_Unit) int64 {
	const minute, hour, day = 60, 3600, 86400
	switch u {
	case rlsv3.RateLimitResponse_RateLimit_SECOND:
		return 1
	case rlsv3.RateLimitResponse_RateLimit_MINUTE:
		return minute
	case rlsv3.RateLimitResponse_RateLimit_HOUR:
		return hour
	case rlsv3.RateLimitResponse_RateLimit_DAY:
		return day
	case rlsv3.RateLimitResponse_RateLimit_WEEK:
		return 7 * day
	case rlsv3.RateLimitResponse_RateLimit_MONTH:
		return 30 * day
	case rlsv3.RateLimitResponse_RateLimit_YEAR:
		return 365 * day
	default:
		return 0
	}
}
