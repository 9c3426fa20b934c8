package phases

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Question is a request that nobody sent.
type Question struct {
	Peer        identity.ID // who would send it; zero = nobody known
	Local       identity.ID // this waypoint
	Source      netip.AddrPort
	Destination netip.AddrPort // invalid when Connect is a name
	Port        uint16
	Connect     string // authority of the CONNECT
	HTTP2       bool
	Method      string
	Authority   string
	Target      string // path with query
	Header      http.Header
}

// The outcomes of a request.
const (
	OutcomeForward = "forward" // to an endpoint of the cluster
	OutcomeAnswer  = "answer"  // by the waypoint, as the route says
	OutcomeRefuse  = "refuse"
	OutcomeOpaque  = "opaque" // bytes are passed on unread
)

// Answer is what would become of a request, and why. What depends on chance says so; the rest is certain for this configuration.
type Answer struct {
	Outcome   string      `json:"outcome"`
	Status    int         `json:"status,omitempty"` // of a request that the waypoint answers by itself
	Flags     string      `json:"flags,omitempty"`
	Detail    string      `json:"detail,omitempty"`
	Location  string      `json:"location,omitempty"`
	Chain     string      `json:"chain,omitempty"`
	Route     string      `json:"route,omitempty"`
	When      string      `json:"when,omitempty"` // the route's condition
	Policies  []Judgement `json:"policies,omitempty"`
	Clusters  []Share     `json:"clusters,omitempty"`
	Cluster   string      `json:"cluster,omitempty"` // the one that was drawn
	Endpoints []Candidate `json:"endpoints,omitempty"`
	Host      string      `json:"host,omitempty"` // the upstream's Host header
	Path      string      `json:"path,omitempty"` // the upstream's path
	Timeout   string      `json:"timeout,omitempty"`
	Retries   string      `json:"retries,omitempty"`
	Mirrors   []string    `json:"mirrors,omitempty"`
	Chance    bool        `json:"chance,omitempty"` // another draw may end otherwise
	Open      []string    `json:"open,omitempty"`   // filters that can only decide on a real request
	Why       []string    `json:"why"`
}

// Judgement is what one filter said.
type Judgement struct {
	Filter  string `json:"filter"`
	Allowed bool   `json:"allowed"`
	Policy  string `json:"policy,omitempty"` // that matched; empty = none
	Trial   string `json:"trial,omitempty"`  // what policies on trial would have said
}

// Share is a cluster with its part of the requests.
type Share struct {
	Cluster string `json:"cluster"`
	Weight  uint32 `json:"weight"`
}

// Candidate is an endpoint of the chosen cluster.
type Candidate struct {
	Address  string `json:"address"`
	Tunnel   string `json:"tunnel,omitempty"`
	Identity string `json:"identity,omitempty"`
	Workload string `json:"workload,omitempty"`
	Usable   bool   `json:"usable"`
	Why      string `json:"why,omitempty"` // it is not usable
	Priority uint32 `json:"priority,omitempty"`
}

// explanation is an exchange that ends where the real one would turn to the network.
type explanation struct {
	*exchange
	answer Answer
	draws  int
}

// Explain takes a question through the phases of a request, with the same table, matchers and filters, up to where the network would
// begin. Nothing is sent, counted or logged.
func (h *Handler) Explain(ctx context.Context, q *Question) *Answer {
	e := &explanation{answer: Answer{Why: []string{}}}
	ask := &Handler{cfg: h.cfg}
	ask.cfg.Rand = func(n uint64) uint64 { e.draws++; return h.cfg.Rand(n) }
	proto := 1
	if q.HTTP2 {
		proto = 2
	}
	e.exchange = &exchange{h: ask, w: &silent{header: http.Header{}}, table: h.cfg.Table()}
	e.r = &http.Request{
		Method: q.Method, Host: q.Authority, RequestURI: q.Target, Header: q.Header.Clone(), Body: http.NoBody, ProtoMajor: proto,
		Proto: fmt.Sprintf("HTTP/%d", proto),
	}
	if e.r.Header == nil {
		e.r.Header = http.Header{}
	}
	e.session = &Session{Peer: q.Peer, Local: q.Local, Source: q.Source, Destination: q.Destination, Port: q.Port, Authority: q.Connect}
	e.ctx, e.cancel = context.WithCancelCause(ctx)
	defer e.cancel(nil)
	e.span.off = true
	e.facts.start, e.facts.x = time.Now(), e.exchange
	if !e.opaque() {
		e.run()
	}
	e.answer.Chance = e.draws > 0
	return &e.answer
}

func (e *explanation) why(format string, args ...any) {
	e.answer.Why = append(e.answer.Why, fmt.Sprintf(format, args...))
}

// opaque tells of a destination whose bytes nobody reads.
func (e *explanation) opaque() bool {
	chain := e.session.chain(e.table, e.protocol())
	if chain == nil || chain.TCP == nil {
		return false
	}
	c := chain.TCP
	e.answer.Outcome, e.answer.Chain = OutcomeOpaque, chain.Name
	e.why("%s is served by chain %s, which passes bytes on and reads no requests", e.session.Authority, chain.Name)
	q := e.session.connection()
	for _, n := range c.Filters {
		if f, ok := n.(*filters.RBAC); ok {
			v := f.Judge(&q)
			e.judged("network authorization", v)
			if !v.Allowed {
				e.refused(&failure{status: http.StatusForbidden, detail: v.Detail()})
				return true
			}
		}
	}
	e.shares(c.Clusters)
	e.endpoints(c.Pick(e.h.cfg.Rand))
	return true
}

func (e *explanation) run() {
	if err := e.identify(); err != nil {
		e.chain()
		e.refused(err)
		return
	}
	e.chain()
	if err := e.match(); err != nil {
		e.refused(err)
		return
	}
	e.routes()
	for _, f := range e.exchange.chain.Filters {
		if e.filter(f.Name, filters.Effective(f, e.over...)) {
			return
		}
	}
}

// chain tells how the destination was found.
func (e *explanation) chain() {
	if e.exchange.chain == nil {
		e.why("%s is not a destination of this waypoint", e.session.Authority)
		return
	}
	e.answer.Chain = e.facts.chain
	who := e.session.principal()
	if who == "" {
		who = "nobody known"
	}
	e.why("%s dialled %s, which chain %s serves", who, e.session.Authority, e.facts.chain)
}

// routes tells which routes were tried.
func (e *explanation) routes() {
	host, tried := e.rules.Tried(&e.q)
	for i, t := range tried {
		name := t.Route.Name
		if name == "" {
			name = "without a name"
		}
		switch {
		case t.Route == e.route:
			e.answer.Route, e.answer.When = t.Route.Name, t.Route.When()
			e.why("route %d of %s, %s, takes it: %s", i+1, host, name, t.Route.When())
			return
		case t.Unmet != "":
			e.why("route %d, %s, does not: %s", i+1, name, t.Unmet)
		default:
			e.why("route %d, %s, takes a share of such requests, and not this one", i+1, name)
		}
	}
	e.why("no route of %s takes it", e.exchange.chain.RouteName)
}

// filter tells what one filter does; done is true when the request goes no further.
func (e *explanation) filter(name string, f filters.HTTP) (done bool) {
	switch f := f.(type) {
	case *filters.JWT:
		return e.tokens(name, f)
	case *filters.RBAC:
		v := f.Judge(&e.q)
		e.judged(name, v)
		if v.Allowed {
			return false // without the exchange's own judgement, which counts
		}
		_, err := e.exchange.filter(f)
		return e.refused(err)
	case *filters.Mutate:
		f.Apply(&e.q)
	case *filters.Fault:
		return e.fault(name, f)
	case *filters.CORS:
		done, err := e.exchange.filter(f)
		if done {
			e.answer.Outcome, e.answer.Status, e.answer.Detail = OutcomeAnswer, http.StatusOK, "cors_preflight"
			e.why("%s answers the preflight", name)
		}
		return done || e.refused(err)
	case *filters.Router:
		e.router()
		return true
	case *filters.GRPCStats:
	case filters.Off:
		e.why("%s is switched off for this route", name)
	default:
		e.answer.Open = append(e.answer.Open, name)
		e.why("%s decides only on a real request", name)
	}
	return false
}

func (e *explanation) judged(name string, v filters.Verdict) {
	j := Judgement{Filter: name, Allowed: v.Allowed, Policy: v.Policy}
	if v.Tried {
		j.Trial = fmt.Sprintf("allowed: %t, policy: %s", v.Would, none(v.Shadow))
	}
	e.answer.Policies = append(e.answer.Policies, j)
	verb := "lets it pass"
	if !v.Allowed {
		verb = "refuses it"
	}
	e.why("%s %s, matching policy: %s", name, verb, none(v.Policy))
}

func none(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func (e *explanation) fault(name string, f *filters.Fault) bool {
	if e.route == nil {
		return false
	}
	p := f.Plan(&e.q, e.h.cfg.Rand)
	if p.Delay > 0 {
		e.facts.flag("DI")
		e.why("%s holds it for %v", name, p.Delay)
		p.Delay = 0
	}
	if p.Abort == nil {
		return false
	}
	e.why("%s aborts it", name)
	return e.refused(e.aborted(p))
}

// refused ends the explanation with what the client would be told.
func (e *explanation) refused(err error) bool {
	if err == nil {
		return false
	}
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = &failure{status: http.StatusInternalServerError, detail: "internal_error", err: err}
	}
	e.facts.flag(f.flag)
	e.answer.Outcome, e.answer.Status, e.answer.Flags, e.answer.Detail = OutcomeRefuse, f.status, e.facts.flagText(), f.detail
	if e.q.GRPC && e.answer.Status != 0 {
		e.answer.Status = http.StatusOK // the refusal is in grpc-status
	}
	e.answer.Location = e.w.Header().Get("Location")
	e.why("the client gets %d %s", f.status, f.detail)
	return true
}

// router tells what the route does.
func (e *explanation) router() {
	if e.route == nil {
		e.refused(noRoute("route_not_found"))
		return
	}
	if e.facts.flags != nil {
		e.answer.Flags = e.facts.flagText()
	}
	switch a := e.route.Action.(type) {
	case *table.Redirect:
		e.answer.Outcome, e.answer.Status, e.answer.Detail = OutcomeAnswer, a.Status, "direct_response"
		e.answer.Location = e.route.Location(&e.q)
		e.why("the route redirects to %s", e.answer.Location)
	case *table.Direct:
		e.answer.Outcome, e.answer.Status, e.answer.Detail = OutcomeAnswer, a.Status, "direct_response"
		e.why("the route answers %d by itself", a.Status)
	case *table.Forward:
		e.forward(a)
	}
}

func (e *explanation) forward(f *table.Forward) {
	e.shares(f.Clusters)
	_, e.answer.Host, e.answer.Path = e.mutateRequest(f, 1)
	e.answer.Timeout = "none"
	if d := timeLimit(f, &e.q); d > 0 {
		e.answer.Timeout = d.String()
	}
	e.answer.Retries = f.Retry.String()
	for i := range f.Mirrors {
		e.answer.Mirrors = append(e.answer.Mirrors, f.Mirrors[i].Cluster)
	}
	e.answer.Outcome = OutcomeForward
	if e.h.cfg.Upstreams.Get(e.facts.clusterName) == nil {
		e.answer.Cluster = e.facts.clusterName
		e.why("cluster %s does not exist", e.facts.clusterName)
		e.refused(&failure{status: f.NotFound, flag: "NC", detail: "cluster_not_found"})
		return
	}
	if e.facts.upgrade != "" && !e.mayUpgrade(f) {
		e.refused(upgradeRefused())
		return
	}
	e.why("time limit %s; retries: %s", e.answer.Timeout, e.answer.Retries)
	e.endpoints(e.facts.clusterName)
	if e.answer.Path != e.q.Path {
		e.why("the upstream gets the path %s", e.answer.Path)
	}
}

func (e *explanation) shares(ws []table.Weighted) {
	for i := range ws {
		e.answer.Clusters = append(e.answer.Clusters, Share{ws[i].Cluster, ws[i].Weight})
	}
}

// endpoints tells who may be picked.
func (e *explanation) endpoints(name string) {
	e.answer.Cluster = name
	c := e.h.cfg.Upstreams.Get(name)
	if c == nil {
		e.why("cluster %s does not exist", name)
		return
	}
	now, usable := time.Now(), 0
	for _, h := range c.Hosts {
		x := candidate(c, h, now)
		if x.Usable {
			usable++
		}
		e.answer.Endpoints = append(e.answer.Endpoints, x)
	}
	switch {
	case c.Config.Kind == upstream.KindTunnel || c.Config.Kind == upstream.KindDialled:
		e.why("cluster %s leads to %s itself", name, e.session.Authority)
	case len(c.Hosts) == 0:
		e.why("cluster %s has no endpoints", name)
		e.refused(&failure{status: http.StatusServiceUnavailable, flag: "UH", detail: "no_healthy_upstream"})
	default:
		e.why("cluster %s has %d usable endpoints of %d", name, usable, len(c.Hosts))
	}
}

func candidate(of *upstream.Cluster, h *upstream.Host, now time.Time) Candidate {
	c := Candidate{Address: h.Addr.String(), Workload: h.Workload.Name, Priority: h.Priority, Usable: true}
	if h.Tunnelled() {
		c.Tunnel = h.Hop.String()
	}
	if !h.Identity.IsZero() {
		c.Identity = h.Identity.String()
	}
	switch until := h.EjectedUntil(now); {
	case !h.Healthy:
		c.Usable, c.Why = false, "not ready"
	case !until.IsZero():
		c.Usable, c.Why = false, "ejected until "+until.UTC().Format(time.RFC3339)
	case !of.Well(h):
		c.Usable, c.Why = false, "does not pass its health checks"
	case h.Weight == 0:
		c.Usable, c.Why = false, "weight 0"
	}
	return c
}

// connection is what network filters judge.
func (s *Session) connection() match.Request {
	return match.Request{
		Source: s.Source, Direct: s.packets(), Destination: s.Destination, Port: s.Port, Principal: s.principal(), Local: s.self(),
		Connect: s.Authority, ServerName: s.ServerName,
	}
}

// silent is a client that nobody hears.
type silent struct{ header http.Header }

func (s *silent) Header() http.Header         { return s.header }
func (s *silent) Write(p []byte) (int, error) { return len(p), nil }
func (s *silent) WriteHeader(int)             {}

// String is the answer for people.
func (a *Answer) String() string {
	var b strings.Builder
	for _, w := range a.Why {
		b.WriteString(w + "\n")
	}
	return b.String()
}
