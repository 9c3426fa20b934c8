package phases

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/telemetry"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Config is what a Handler needs.
type Config struct {
	Table     func() *table.Table
	Upstreams *upstream.Store
	Rand      match.Rand
	NewID     func() string // for X-Request-Id
	Telemetry *telemetry.Telemetry
	Log       *obs.Logger
	Host      string            // this pod's name, for %HOSTNAME%
	Group     *run.Group        // owns what outlives a request: mirrored copies
	Node      string            // the proxies' own cluster name, for rate limits
	Self      upstream.Workload // this proxy; at the mesh's border it is the source of what goes on into the mesh
	Limits    Limits
	Spans     Spans                       // nil = nobody takes spans
	Env       func(string) (string, bool) // variables that tags of spans name; nil = none
	Keys      Keys                        // of tokens' issuers; nil = none can be fetched
}

// Handler serves requests and opaque connections.
type Handler struct {
	cfg      Config
	draining atomic.Bool
	mirrors  atomic.Int64
}

// New makes a handler.
func New(cfg Config) *Handler {
	cfg.Limits.fill(cfg)
	return &Handler{cfg: cfg}
}

// Drain makes every further answer the last one of its connection.
func (h *Handler) Drain() { h.draining.Store(true) }

// exchange is one request on its way.
type exchange struct {
	h       *Handler
	w       http.ResponseWriter
	r       *http.Request
	session *Session
	table   *table.Table // the only one this request reads
	chain   *table.HTTPChain
	rules   *table.Rules
	route   *table.Route
	over    []filters.Overrides
	q       match.Request
	cors    http.Header // for the response
	authz   authorizing
	facts   facts
	ctx     context.Context //nolint:containedctx // it lives exactly as long as the exchange
	cancel  context.CancelCauseFunc
	body    *clientBody
	sent    bool // the client got response headers
	limited
	span traced
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{h: h, w: w, r: r, session: sessionOf(r.Context()), table: h.cfg.Table()}
	x.ctx, x.cancel = context.WithCancelCause(r.Context())
	defer x.cancel(nil)
	x.facts.start = time.Now()
	x.facts.x = x
	if r.ProtoMajor == 1 {
		// The upstream may answer while the client still sends; HTTP/2 always can.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	defer x.record()
	defer x.contain()
	if err := x.run(); err != nil {
		x.answer(err)
	}
}

// run takes the request through its phases.
func (x *exchange) run() error {
	if err := x.identify(); err != nil {
		return err
	}
	if err := x.match(); err != nil {
		return err
	}
	// The filters stand in the order of the configuration: authorization first, then what changes or refuses the request.
	for _, f := range x.chain.Filters {
		done, err := x.filter(filters.Effective(f, x.over...))
		if err != nil || done {
			return err
		}
	}
	return nil
}

// identify collects what the request is judged by.
func (x *exchange) identify() error {
	s := x.session
	if s == nil {
		return &failure{status: http.StatusForbidden, detail: "no_session", err: errNoSession}
	}
	x.body = &clientBody{ReadCloser: x.r.Body, total: &x.facts.received}
	x.q = match.Request{
		Method: x.r.Method, Scheme: "http", Authority: x.r.Host, Header: x.r.Header,
		Source: s.Source, Direct: s.packets(), Destination: s.Destination, Port: s.Port,
		Principal: s.principal(), Local: s.self(), Connect: s.Authority,
		GRPC: isGRPC(x.r.Header), ServerName: s.ServerName,
	}
	if x.q.GRPC {
		x.body.calls = &x.facts.asked
	}
	chain := s.chain(x.table, x.protocol())
	if chain == nil || chain.HTTP == nil {
		return noRoute("chain_not_found")
	}
	x.chain, x.facts.chain = chain.HTTP, chain.Name
	x.rules = x.table.RulesOf(chain.HTTP)
	x.sanitize()
	x.atEdge()
	x.beginTrace()
	return x.normalize()
}

// protocol is what the connection was found to speak, or what this request proves it does.
func (x *exchange) protocol() table.Protocol {
	if x.r.ProtoMajor == 2 {
		return table.HTTP2
	}
	return table.HTTP1
}

func (x *exchange) normalize() error {
	path, query, err := match.SplitTarget(x.r.RequestURI)
	if err == nil {
		err = match.CheckAuthority(x.q.Authority)
	}
	if err == nil {
		var redirect bool
		if path, redirect, err = x.chain.Normalization.Apply(path); err == nil && redirect {
			x.q.Path, x.q.Query = path, query
			x.w.Header().Set("Location", x.q.FullPath())
			return &failure{status: http.StatusTemporaryRedirect, detail: "path_normalization_redirect"}
		}
	}
	if err != nil {
		return &failure{status: http.StatusBadRequest, flag: "DPE", detail: "path_normalization_failed", err: err}
	}
	x.q.Path, x.q.Query = path, query
	if x.r.Method == http.MethodConnect {
		return &failure{status: http.StatusForbidden, detail: "connect_not_allowed", body: "CONNECT is not served here", close: true}
	}
	return nil
}

// match finds the route. Its absence is answered by the router, after authorization.
func (x *exchange) match() error {
	if x.rules == nil {
		return noRoute("route_configuration_not_found")
	}
	x.route = x.rules.Match(&x.q, x.h.cfg.Rand)
	if x.route == nil {
		x.over = x.rules.Overrides(&x.q)
		return nil
	}
	x.over = x.route.Overrides
	x.facts.route = x.route.Name
	if f, ok := x.route.Action.(*table.Forward); ok {
		// The share is drawn once: every attempt of a request goes to the same cluster.
		w := f.Pick(x.h.cfg.Rand)
		x.facts.weighted = w
		if w.Overrides != nil {
			x.over = append(append([]filters.Overrides{}, x.over...), w.Overrides)
		}
		x.facts.clusterName = w.Cluster
		if c := x.h.cfg.Upstreams.Get(w.Cluster); c != nil {
			x.facts.cluster = c
		}
	}
	return nil
}

// filter carries out what one filter says; done ends the request without an error.
func (x *exchange) filter(f filters.HTTP) (done bool, err error) {
	switch f := f.(type) {
	case *filters.JWT:
		return false, x.authenticate(f)
	case *filters.RBAC:
		v := f.Judge(&x.q)
		x.authz.tried(f, v)
		x.h.told(f, v, x.session, x.q.Path)
		if !v.Allowed {
			return false, &failure{status: http.StatusForbidden, detail: v.Detail(), body: "RBAC: access denied"}
		}
	case *filters.Mutate:
		f.Apply(&x.q)
	case *filters.ExtAuthz:
		return false, x.extAuthz(f)
	case *filters.Fault:
		if x.route == nil {
			return false, nil
		}
		return false, x.fault(f.Plan(&x.q, x.h.cfg.Rand))
	case *filters.CORS:
		p := f.Plan(&x.q, x.h.cfg.Rand)
		x.cors = p.Response
		if p.Answer {
			x.respondHeaders(http.StatusOK, http.Header{}, "cors_preflight")
			return true, nil
		}
	case *filters.LocalLimit:
		return false, x.localLimit(f)
	case *filters.GlobalLimit:
		return false, x.globalLimit(f)
	case *filters.SetMetadata:
		f.Apply(x.metadata())
	case *filters.Router:
		return true, x.router()
	case *filters.GRPCStats, *filters.GlobalRoute, filters.Off:
	}
	return false, nil
}

func (x *exchange) fault(p filters.FaultPlan) error {
	if p.Delay > 0 {
		x.facts.flag("DI")
		t := time.NewTimer(p.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-x.ctx.Done():
			return x.clientGone()
		}
	}
	return x.aborted(p)
}

func (x *exchange) aborted(p filters.FaultPlan) error {
	if p.Abort == nil {
		return nil
	}
	f := &failure{status: p.Abort.Status, flag: "FI", detail: "fault_filter_abort", body: "fault filter abort"}
	if p.Abort.GRPC >= 0 {
		f.grpc = &p.Abort.GRPC
	}
	return f
}

// router does what the route says.
func (x *exchange) router() error {
	if x.route == nil {
		return noRoute("route_not_found")
	}
	switch a := x.route.Action.(type) {
	case *table.Redirect:
		h := http.Header{"Location": {x.route.Location(&x.q)}}
		x.mutateResponse(h)
		x.respondHeaders(a.Status, h, "direct_response")
		return nil
	case *table.Direct:
		h := http.Header{}
		if a.Body != "" {
			h.Set("Content-Type", "text/plain")
		}
		x.mutateResponse(h)
		x.respond(a.Status, h, "direct_response", a.Body)
		return nil
	case *table.Forward:
		return x.forward(a)
	}
	return noRoute("route_not_found")
}

func isGRPC(h http.Header) bool {
	t := h.Get("Content-Type")
	return t == "application/grpc" || strings.HasPrefix(t, "application/grpc+") || strings.HasPrefix(t, "application/grpc;")
}
