package phases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

const (
	// replayLimit is how much of a request's body is remembered for another attempt.
	replayLimit = 1 << 20
	// warmLimit is how long a request waits for the endpoints of a cluster that has just been announced.
	warmLimit = 5 * time.Second
)

// forwarding is a request on its way to a cluster.
type forwarding struct {
	*exchange
	f       *table.Forward
	cluster *upstream.Cluster
	body    *replay // nil = the body cannot be sent twice, or there is none
	tried   []*upstream.Host
	hash    uint64
	hashed  bool
	timeout atomic.Pointer[time.Timer] // of the whole exchange; nil = none yet
}

// attempt is one try at an endpoint.
type attempt struct {
	host   *upstream.Host
	ctx    context.Context //nolint:containedctx // it lives exactly as long as the attempt
	cancel context.CancelCauseFunc
	end    func() // counts the request down
	resp   *http.Response
	timer  *time.Timer
}

// finish lets go of everything an attempt holds.
func (a *attempt) finish() {
	if a.timer != nil {
		a.timer.Stop()
	}
	if a.resp != nil {
		_ = a.resp.Body.Close()
	}
	a.cancel(nil)
	if a.end != nil {
		a.end()
	}
}

// forward sends the request to the route's cluster and the answer to the client.
func (x *exchange) forward(f *table.Forward) error {
	w := &forwarding{exchange: x, f: f}
	if err := w.choose(); err != nil {
		return err
	}
	if x.facts.upgrade != "" {
		return w.upgrade()
	}
	w.prepareBody()
	w.mirror()
	w.startTimeout()
	defer w.stopTimeout()
	for n := 1; ; n++ {
		a, err := w.try(n)
		again, wait := w.again(a, err, n)
		if !again {
			defer a.finish()
			if err != nil {
				return err
			}
			return w.deliver(a)
		}
		a.finish()
		if err := w.pause(wait, n); err != nil {
			return err
		}
	}
}

// choose finds the cluster.
func (w *forwarding) choose() error {
	c := w.h.cfg.Upstreams.Get(w.facts.clusterName)
	if c == nil {
		return &failure{status: w.f.NotFound, flag: "NC", detail: "cluster_not_found"}
	}
	if !c.IsWarm() {
		ctx, cancel := context.WithTimeout(w.ctx, warmLimit)
		defer cancel()
		var err error
		if c, err = c.Warm(ctx); err != nil {
			return w.failed(err, w.ctx)
		}
	}
	w.cluster, w.facts.cluster = c, c
	w.hash, w.hashed = w.hashOf(w.f.Hash)
	return nil
}

// hashOf joins the route's hash keys into one number.
func (w *forwarding) hashOf(keys []table.HashKey) (sum uint64, ok bool) {
	for i := range keys {
		k := &keys[i]
		var v string
		switch {
		case k.Header != "":
			v, _ = w.q.Get(k.Header)
		case k.SourceIP:
			v = w.q.Client().String()
		case k.Query != "":
			if q, err := url.ParseQuery(w.q.Query); err == nil {
				v = q.Get(k.Query)
			}
		case k.Cookie != "":
			v = w.cookie(k)
		}
		if v == "" {
			continue
		}
		sum = (sum<<1 | sum>>63) ^ upstream.HashText(v)
		ok = true
		if k.Terminal {
			break
		}
	}
	return sum, ok
}

// cookie reads the key's cookie, or makes one that keeps this client where it is.
func (w *forwarding) cookie(k *table.HashKey) string {
	if c, err := w.r.Cookie(k.Cookie); err == nil && c.Value != "" {
		return c.Value
	}
	if k.TTL == nil {
		return ""
	}
	v := strconv.FormatUint(upstream.HashText(w.h.cfg.NewID()), 16)
	c := http.Cookie{Name: k.Cookie, Value: v, Path: k.Path, HttpOnly: true}
	if *k.TTL > 0 {
		c.MaxAge = int(k.TTL.Seconds())
	}
	if text := c.String(); text != "" {
		w.w.Header().Add("Set-Cookie", text+k.Attributes)
	}
	return v
}

func (w *forwarding) prepareBody() {
	if !w.hasBody() {
		return
	}
	if w.f.Retry != nil && w.f.Retry.Retries > 0 {
		w.body = newReplay(w.exchange.body, replayLimit)
	}
}

// startTimeout bounds the exchange from the moment at which the request is whole, as Envoy does: an open-ended stream of requests is
// not cut off while the client still speaks.
func (w *forwarding) startTimeout() {
	limit := timeLimit(w.f, &w.q)
	if limit <= 0 {
		return
	}
	start := func() {
		t := time.AfterFunc(limit, func() { w.cancel(errTimeout) })
		if old := w.timeout.Swap(t); old != nil { // the request became whole when its exchange was over
			t.Stop()
		}
	}
	if !w.hasBody() {
		start()
		return
	}
	if before := w.exchange.body.whole; before != nil {
		first := start
		start = func() { first(); before() }
	}
	w.exchange.body.whole = start
}

// stopTimeout is for the end of the exchange; none is started after it.
func (w *forwarding) stopTimeout() {
	if t := w.timeout.Swap(&time.Timer{}); t != nil {
		t.Stop()
	}
}

// timeLimit is how long the exchange may take; 0 = as long as it likes.
func timeLimit(f *table.Forward, q *match.Request) time.Duration {
	limit := f.Timeout
	if q.GRPC && f.MaxGRPC != nil {
		if d, ok := grpcTimeout(q.Header); ok {
			limit = d
			if *f.MaxGRPC > 0 {
				limit = min(limit, *f.MaxGRPC)
			}
		} else if *f.MaxGRPC > 0 {
			limit = *f.MaxGRPC
		}
	}
	return max(limit, 0)
}

// try makes one attempt. The attempt is never nil; finish has to be called on it.
func (w *forwarding) try(n int) (*attempt, error) {
	a := &attempt{}
	a.ctx, a.cancel = context.WithCancelCause(w.ctx)
	w.facts.attempts = n
	choice := upstream.Choice{Rand: w.h.cfg.Rand, Hash: w.hash, HasHash: w.hashed, Dialled: w.session.Destination}
	if r := w.f.Retry; r != nil && r.Avoid && n > 1 {
		choice.Avoid, choice.Picks = w.tried, r.AvoidPicks
	}
	choice.Spent = w.spent()
	var err error
	if a.host, err = w.cluster.Pick(choice); err != nil {
		w.facts.host = nil
		return a, w.failed(err, a.ctx)
	}
	w.tried, w.facts.host = append(w.tried, a.host), a.host
	if a.end, err = w.cluster.Begin(a.ctx, a.host, w.r.ProtoMajor); err != nil {
		return a, w.failed(err, a.ctx)
	}
	req, err := w.request(a, n)
	if err != nil {
		return a, err
	}
	if r := w.f.Retry; r != nil && r.PerTry > 0 {
		cancel := a.cancel
		a.timer = time.AfterFunc(r.PerTry, func() { cancel(errTry) })
	}
	began := time.Now()
	a.resp, err = w.cluster.Transport(a.host, w.via(req.Host)).RoundTrip(req) //nolint:bodyclose // finish closes it
	if err != nil {
		if w.r.Context().Err() == nil {
			w.cluster.Report(a.host, upstream.LocalErr)
		}
		return a, w.failed(err, a.ctx)
	}
	w.facts.service = time.Since(began)
	if err := a.sound(req); err != nil {
		w.cluster.Report(a.host, upstream.LocalErr)
		return a, w.failed(err, a.ctx)
	}
	w.cluster.Report(a.host, upstream.ResultOf(a.resp.StatusCode))
	return a, nil
}

// spent are the priorities that were tried long enough.
func (w *forwarding) spent() []uint32 {
	r := w.f.Retry
	if r == nil || r.Elsewhere == 0 {
		return nil
	}
	var out []uint32
	for _, h := range w.tried[:len(w.tried)/r.Elsewhere*r.Elsewhere] {
		out = append(out, h.Priority)
	}
	return out
}

// via is what the connection to the upstream depends on beside the endpoint.
func (x *exchange) via(authority string) upstream.Via {
	return upstream.Via{Major: x.r.ProtoMajor, Authority: authority, Source: x.session.Source, Destination: x.session.Destination}
}

// request makes what is sent to the upstream.
func (w *forwarding) request(a *attempt, n int) (*http.Request, error) {
	h, host, path := w.mutateRequest(w.f, n)
	w.injectTrace(h)
	target := &url.URL{Scheme: "http", Host: a.host.Addr.String(), RawQuery: w.q.Query}
	if strings.HasPrefix(path, "//") || !strings.HasPrefix(path, "/") {
		// An opaque part that begins with two slashes would be read as a host.
		p, err := url.PathUnescape(path)
		if err != nil {
			return nil, &failure{status: http.StatusBadRequest, flag: "DPE", detail: "path_rewrite_failed", err: err}
		}
		target.Path, target.RawPath = p, path
	} else {
		target.Opaque = path
	}
	var body io.ReadCloser
	switch {
	case !w.hasBody():
		body = http.NoBody
	case w.body != nil:
		next := w.body.next()
		if next == nil {
			return nil, &failure{status: http.StatusServiceUnavailable, flag: "UR", detail: "request_body_too_large_to_retry"}
		}
		body = next
	default:
		body = w.exchange.body
	}
	req := (&http.Request{
		Method: w.r.Method, URL: target, Host: host, Header: h, Body: body, ContentLength: w.r.ContentLength, Trailer: w.r.Trailer,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(w.trace(a))
	return req, nil
}

// trace listens for what the response alone does not tell.
func (w *forwarding) trace(a *attempt) context.Context {
	return httptrace.WithClientTrace(a.ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { w.facts.connected(info.Conn) },
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			if code == http.StatusContinue || code == http.StatusSwitchingProtocols {
				return nil // the server says it by itself when the body is read
			}
			if w.r.Context().Err() != nil || w.sent {
				return nil //nolint:nilerr // nobody waits for it any more
			}
			out := w.w.Header()
			added := make([]string, 0, len(header))
			for k, v := range header {
				if _, ours := out[k]; !ours {
					out[k] = v
					added = append(added, k)
				}
			}
			w.w.WriteHeader(code)
			for _, k := range added {
				delete(out, k)
			}
			return nil
		},
	})
}

// again decides whether another attempt is made, and after which pause.
func (w *forwarding) again(a *attempt, err error, n int) (bool, time.Duration) {
	r := w.f.Retry
	if r == nil || !w.retriable(a, err) || w.ctx.Err() != nil {
		return false, 0
	}
	if n > r.Retries {
		w.facts.flag("URX")
		return false, 0
	}
	if w.body != nil && !w.body.again() || w.body == nil && w.hasBody() {
		return false, 0
	}
	if a.resp != nil {
		if wait, ok := r.Limited.Wait(a.resp.Header, time.Now()); ok {
			return true, wait + time.Duration(w.h.cfg.Rand(uint64(wait/2)+1)) // so that not all come back at once
		}
	}
	base, longest := uint64(r.Base), uint64(r.Max)
	limit := min(base<<min(n-1, 20), longest)
	return true, time.Duration(w.h.cfg.Rand(max(limit, 1)))
}

func (w *forwarding) hasBody() bool { return w.r.Body != http.NoBody && w.r.ContentLength != 0 }

// retriable says whether this outcome is one that the policy wants tried again.
func (w *forwarding) retriable(a *attempt, err error) bool {
	r := w.f.Retry
	if len(r.OnlyRequest) > 0 && !slices.ContainsFunc(r.OnlyRequest, func(h match.Header) bool { return h.Match(&w.q) }) {
		return false
	}
	if err == nil {
		if _, limited := a.resp.Header["X-Envoy-Ratelimited"]; limited {
			return r.Has(table.OnRateLimited) // others leave it alone
		}
		if r.Status(a.resp.StatusCode) {
			return true
		}
		if v := a.resp.Header.Get("Grpc-Status"); v != "" && w.q.GRPC {
			if code, err := strconv.Atoi(v); err == nil && r.GRPC(code) {
				return true
			}
		}
		return r.Has(table.OnHeaders) && w.responseMatches(r, a.resp)
	}
	var ce *upstream.ConnectError
	switch {
	case w.r.Context().Err() != nil || errors.Is(context.Cause(w.ctx), errTimeout):
		return false
	case errors.Is(err, upstream.ErrNoHealthy), errors.Is(err, upstream.ErrOverflow):
		return false
	case a.host == nil || a.end == nil:
		return false
	case r.Has(table.On5xx | table.OnGateway | table.OnReset):
		return true
	case errors.As(err, &ce):
		return r.Has(table.OnConnect | table.OnResetBefore)
	case strings.Contains(err.Error(), "REFUSED_STREAM"):
		return r.Has(table.OnRefused)
	}
	return false
}

func (w *forwarding) responseMatches(r *table.Retry, resp *http.Response) bool {
	q := w.q
	q.Header = resp.Header
	return slices.ContainsFunc(r.Headers, func(h match.Header) bool { return h.Match(&q) })
}

// pause waits before the next attempt, which has to fit into the cluster's limit of retries.
func (w *forwarding) pause(wait time.Duration, n int) error {
	end, ok := w.cluster.BeginRetry()
	if !ok {
		return &failure{status: http.StatusServiceUnavailable, flag: "UO", detail: "retry_overflow", body: "too many retries"}
	}
	defer end()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		// The endpoints may have changed since the last attempt.
		if c := w.h.cfg.Upstreams.Get(w.facts.clusterName); c != nil {
			w.cluster, w.facts.cluster = c, c
		}
		return nil
	case <-w.ctx.Done():
		return w.failed(fmt.Errorf("before attempt %d: %w", n+1, context.Cause(w.ctx)), w.ctx)
	}
}

// deliver passes the upstream's answer to the client.
func (w *forwarding) deliver(a *attempt) error {
	if w.body != nil {
		w.body.release()
	}
	resp := a.resp
	h := resp.Header
	removeHop(h)
	w.facts.grpc = h.Get("Grpc-Status")
	h.Set("X-Envoy-Upstream-Service-Time", strconv.FormatInt(w.facts.service.Milliseconds(), 10))
	w.mutateResponse(h)
	for k := range resp.Trailer {
		w.w.Header().Add("Trailer", k)
	}
	announced := len(resp.Trailer)
	w.writeHeaders(resp.StatusCode, h, "via_upstream")
	if err := w.copyBody(a); err != nil {
		return err
	}
	for k, v := range resp.Trailer {
		if announced == 0 {
			k = http.TrailerPrefix + k
		}
		w.w.Header()[k] = v
	}
	if s := resp.Trailer.Get("Grpc-Status"); s != "" {
		w.facts.grpc = s
	}
	return nil
}

// connected remembers the connection that an attempt uses.
func (f *facts) connected(c net.Conn) {
	f.upstreamLocal = c.LocalAddr()
	if p, ok := c.(upstream.Peered); ok {
		f.upstreamPeer = p.Peer()
	}
}
