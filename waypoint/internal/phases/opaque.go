package phases

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/relay"
	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/telemetry"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// flow is one opaque connection on its way.
type flow struct {
	h        *Handler
	chain    *table.Chain
	session  *Session
	start    time.Time
	cluster  *upstream.Cluster
	name     string // of the cluster
	host     *upstream.Host
	flags    []string
	detail   string
	failure  string
	authz    authorizing
	open     atomic.Pointer[telemetry.Conn] // set once the upstream is connected
	sent     atomic.Int64                   // from the client
	received atomic.Int64                   // to the client
	peering
}

// Opaque serves a connection whose bytes nobody reads. accept lets the client in, once the upstream is connected; refuse tells it no.
func (h *Handler) Opaque(ctx context.Context, chain *table.Chain, s *Session, accept func() (upstream.Conn, error), refuse func(status int, err error)) {
	f := &flow{h: h, chain: chain, session: s, start: time.Now()}
	done := h.cfg.Telemetry.Open(f.progress)
	defer func() {
		done(f.entry())
		f.log()
	}()
	if err := f.serve(ctx, accept); err != nil {
		var fail *failure
		if !errors.As(err, &fail) {
			fail = &failure{status: http.StatusServiceUnavailable, flag: "UF", err: err}
		}
		f.detail = fail.detail
		if fail.flag != "" {
			f.flags = append(f.flags, fail.flag)
		}
		refuse(fail.status, err)
	}
}

func (f *flow) serve(ctx context.Context, accept func() (upstream.Conn, error)) error {
	c := f.chain.TCP
	q := f.session.connection()
	for _, n := range c.Filters {
		switch n := n.(type) {
		case *filters.RBAC:
			v := n.Judge(&q)
			f.authz.tried(n, v)
			f.h.told(n, v, f.session, "")
			if !v.Allowed {
				return &failure{status: http.StatusForbidden, detail: v.Detail(), err: errors.New("denied by policy")}
			}
		case *filters.ExtAuthz:
			if err := f.extAuthz(ctx, n, &q); err != nil {
				return err
			}
		case filters.KeepDestination:
		}
	}
	f.name = c.Pick(f.h.cfg.Rand)
	up, end, err := f.connect(ctx)
	for n := 1; n < c.Attempts && f.failure != "" && ctx.Err() == nil; n++ { // the client has nothing yet
		f.failure = ""
		up, end, err = f.connect(ctx)
	}
	if err != nil {
		if f.failure != "" && c.Attempts > 1 {
			f.flags = append(f.flags, "URX")
		}
		return err
	}
	defer end()
	down, err := accept()
	if err != nil {
		_ = up.Close()
		return &failure{flag: "DC", detail: "downstream_remote_disconnect", status: http.StatusServiceUnavailable, err: err}
	}
	f.open.Store(f.entry())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.MaxAge > 0 {
		t := time.AfterFunc(c.MaxAge, cancel)
		defer t.Stop()
	}
	touch := func() {}
	if c.Idle > 0 {
		t := time.AfterFunc(c.Idle, cancel)
		defer t.Stop()
		touch = func() { t.Reset(c.Idle) }
	}
	res := relay.Both(ctx, down, up, func(sent, received int64) {
		f.sent.Add(sent)
		f.received.Add(received)
		touch()
	})
	if res.Err != nil {
		f.h.cfg.Log.Debug("connection broke off", obs.F("chain", f.chain.Name), obs.Err(res.Err))
	}
	return nil
}

func (f *flow) connect(ctx context.Context) (upstream.Conn, func(), error) {
	f.cluster = f.h.cfg.Upstreams.Get(f.name)
	if f.cluster == nil {
		return nil, nil, &failure{status: http.StatusServiceUnavailable, flag: "NC", detail: "cluster_not_found"}
	}
	warm, cancel := context.WithTimeout(ctx, warmLimit)
	defer cancel()
	var err error
	if f.cluster, err = f.cluster.Warm(warm); err == nil {
		f.host, err = f.cluster.Pick(upstream.Choice{
			Rand: f.h.cfg.Rand, Dialled: f.session.Destination, HasHash: true, Hash: upstream.HashText(f.session.Source.Addr().String()),
		})
	}
	if err != nil {
		return nil, nil, &failure{status: http.StatusServiceUnavailable, flag: "UH", detail: "no_healthy_upstream", err: err}
	}
	end, err := f.cluster.BeginConn(f.host)
	if err != nil {
		return nil, nil, &failure{status: http.StatusServiceUnavailable, flag: "UO", detail: "overflow", err: err}
	}
	via := upstream.Via{Source: f.session.Source, Destination: f.session.Destination, Authority: f.session.Authority}
	up, err := f.cluster.Dial(ctx, f.host, f.session.Baggage, via)
	if err != nil {
		end()
		f.cluster.Report(f.host, upstream.LocalErr)
		f.failure = err.Error()
		return nil, nil, &failure{status: http.StatusServiceUnavailable, flag: "UF", detail: "upstream_connect_failure", err: err}
	}
	f.cluster.Report(f.host, upstream.Answered)
	f.upstreamLocal = up.LocalAddr()
	if p, ok := up.(upstream.Peered); ok {
		f.upstreamPeer = p.Peer()
	}
	return up, end, nil
}

func (f *flow) entry() *telemetry.Conn {
	c := &telemetry.Conn{
		Source:      telemetry.Peer{Workload: f.session.Client, Principal: f.session.principal()},
		Destination: destination(f.host, f.upstreamPeer),
		Service:     service(f.cluster, f.chain.Name),
		Flags:       f.flagText(), Mutual: !f.session.Peer.IsZero(),
		Received: f.sent.Load(), Sent: f.received.Load(),
	}
	c.Reporter, c.Source = f.h.reporting(f.session, c.Source, c.Destination)
	if m := f.chain.TCP.Metrics; m != nil {
		c.Wanted = m.Of(f.attributes)
	}
	return c
}

// progress is the entry of a connection that is open; others may ask for it at any time.
func (f *flow) progress() *telemetry.Conn {
	first := f.open.Load()
	if first == nil {
		return nil
	}
	c := *first
	c.Received, c.Sent = f.sent.Load(), f.received.Load()
	return &c
}

func (f *flow) flagText() string {
	if len(f.flags) == 0 {
		return "-"
	}
	return strings.Join(f.flags, ",")
}

func (f *flow) log() {
	for i := range f.chain.TCP.Logs {
		if l := &f.chain.TCP.Logs[i]; l.When == nil || l.When.Holds(f.attributes) {
			f.h.cfg.Telemetry.Line(l.Format.Render(f, "-"))
		}
	}
}

// Operator implements table.Facts.
func (f *flow) Operator(name, arg string) string {
	switch name {
	case "START_TIME":
		return f.start.UTC().Format("2006-01-02T15:04:05.000Z")
	case "RESPONSE_CODE":
		return "0"
	case "RESPONSE_FLAGS", "RESPONSE_FLAGS_LONG":
		return f.flagText()
	case "RESPONSE_CODE_DETAILS", "CONNECTION_TERMINATION_DETAILS":
		return strings.ReplaceAll(f.detail, " ", "_")
	case "UPSTREAM_TRANSPORT_FAILURE_REASON":
		return f.failure
	case "BYTES_RECEIVED":
		return strconv.FormatInt(f.sent.Load(), 10)
	case "BYTES_SENT":
		return strconv.FormatInt(f.received.Load(), 10)
	case "DURATION":
		return strconv.FormatInt(time.Since(f.start).Milliseconds(), 10)
	case "UPSTREAM_HOST":
		if f.host != nil {
			return f.host.Host()
		}
		return ""
	case "UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW":
		return f.name
	case "UPSTREAM_LOCAL_ADDRESS":
		return addrText(f.upstreamLocal)
	case "HOSTNAME":
		return f.h.cfg.Host
	}
	return sessionOperator(f.session, name, arg)
}
