package phases

import (
	"net/http"
	"strconv"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/telemetry"
	"github.com/marrowmesh/marrow/waypoint/internal/trace"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Spans takes finished spans; Add never waits.
type Spans interface{ Add(*trace.Span) }

// traced is an exchange's part of a trace.
type traced struct {
	how    *table.Tracing // nil = this request is in no trace
	own    trace.Context
	shared bool // the client's span is this one
	tried  *attemptSpan
	off    bool // nobody sent this request
}

// attemptSpan is the span of the last attempt.
type attemptSpan struct {
	trace.Context
	start time.Time
}

// beginTrace joins the client's trace or begins one, when the chain is traced. The request id is there already.
func (x *exchange) beginTrace() {
	t := x.chain.Tracing
	if t == nil || x.span.off {
		return
	}
	x.span.how = t
	var remote bool
	x.span.own, remote = t.Begin(x.r.Header, x.h.cfg.Rand)
	x.span.shared = remote && t.Shared
}

// injectTrace tells the upstream of the trace, in the headers of one attempt.
func (x *exchange) injectTrace(h http.Header) {
	t := x.span.how
	if t == nil {
		return
	}
	c := x.span.own
	if t.Child && c.Sampled {
		x.endAttempt() // the one before failed
		x.span.tried = &attemptSpan{Context: c.Child(x.h.cfg.Rand), start: time.Now()}
		c = x.span.tried.Context
	}
	c.Inject(h, t.Inject)
}

// injectCopy tells the receiver of a copy of the trace; it gets no span of its own here.
func (x *exchange) injectCopy(h http.Header) {
	if t := x.span.how; t != nil {
		x.span.own.Inject(h, t.Inject)
	}
}

// endTrace hands over the spans of a sampled request.
func (x *exchange) endTrace() {
	t := x.span.how
	if t == nil || !x.span.own.Sampled || x.h.cfg.Spans == nil {
		return
	}
	x.endAttempt()
	s := &trace.Span{
		Provider: t.Provider, Context: x.span.own, Shared: x.span.shared, Name: x.spanName(), Start: x.facts.start, End: time.Now(), Error: x.spanFailed(),
		Local: x.session.Authority, Tags: x.spanTags(),
	}
	x.h.cfg.Spans.Add(s)
}

// endAttempt hands over the span of an attempt.
func (x *exchange) endAttempt() {
	a := x.span.tried
	if a == nil || x.h.cfg.Spans == nil {
		return
	}
	x.span.tried = nil
	t := x.span.how
	name := "router " + x.facts.clusterName + " egress"
	if t.Upstream != nil {
		name = t.Upstream.Render(&x.facts, "-")
	}
	s := &trace.Span{
		Provider: t.Provider, Context: a.Context, Kind: trace.Client, Name: name, Start: a.start, End: time.Now(), Error: x.spanFailed(),
		Tags: append([]trace.Tag{{Key: "component", Value: "proxy"}, {Key: "http.protocol", Value: x.r.Proto}}, x.upstreamTags()...),
	}
	x.h.cfg.Spans.Add(s)
}

func (x *exchange) spanName() string {
	if f := x.span.how.Name; f != nil {
		return f.Render(&x.facts, "-")
	}
	if x.route != nil && x.route.Decorator != "" {
		return x.route.Decorator
	}
	return "ingress"
}

// spanFailed is what tracers call an error: an answer of the server's fault, or none, or a gRPC status of the server's fault.
func (x *exchange) spanFailed() bool {
	if x.facts.status >= 500 || x.facts.status == 0 {
		return true
	}
	switch x.facts.grpc {
	case "2", "4", "8", "10", "12", "13", "14", "15":
		return true
	}
	return false
}

// spanTags are Envoy's tags of a request, Istio's of its ends, and those of the configuration.
func (x *exchange) spanTags() []trace.Tag {
	const usual = 48
	f := &x.facts
	tags := make([]trace.Tag, 0, usual)
	add := func(k, v string) { tags = append(tags, trace.Tag{Key: k, Value: v}) }
	path := x.q.FullPath()
	if limit := x.span.how.MaxPath; len(path) > limit {
		path = path[:limit]
	}
	add("component", "proxy")
	add("node_id", x.h.cfg.Host)
	add("guid:x-request-id", x.r.Header.Get("X-Request-Id"))
	if id := x.r.Header.Get("X-Client-Trace-Id"); id != "" {
		add("guid:x-client-trace-id", id)
	}
	add("http.url", x.q.Scheme+"://"+x.q.Authority+path)
	add("http.method", x.r.Method)
	add("downstream_cluster", dash(x.r.Header.Get("X-Envoy-Downstream-Service-Cluster")))
	add("user_agent", dash(x.r.Header.Get("User-Agent")))
	add("http.protocol", x.r.Proto)
	add("peer.address", ipText(x.session.Source))
	add("request_size", strconv.FormatInt(f.received.Load(), 10))
	if x.q.GRPC {
		add("grpc.path", x.q.Path)
		add("grpc.authority", x.q.Authority)
		add("grpc.content_type", x.r.Header.Get("Content-Type"))
		if v := x.r.Header.Get("Grpc-Timeout"); v != "" {
			add("grpc.timeout", v)
		}
	}
	tags = append(tags, x.upstreamTags()...)
	tags = append(tags, peerTags("source", telemetry.Peer{Workload: x.session.Client})...)
	tags = append(tags, peerTags("destination", destination(f.host, f.upstreamPeer))...)
	for i := range x.span.how.Tags {
		t := &x.span.how.Tags[i]
		if v := x.tagValue(t); v != "" {
			add(t.Key, v)
		}
	}
	return tags
}

// upstreamTags are the tags that the spans of a request and of its attempts share.
func (x *exchange) upstreamTags() []trace.Tag {
	f := &x.facts
	tags := []trace.Tag{
		{Key: "response_size", Value: strconv.FormatInt(f.sentBytes, 10)},
		{Key: "response_flags", Value: f.flagText()},
		{Key: "http.status_code", Value: strconv.Itoa(f.status)},
	}
	if f.clusterName != "" {
		tags = append(tags, trace.Tag{Key: "upstream_cluster", Value: f.clusterName}, trace.Tag{Key: "upstream_cluster.name", Value: f.clusterName})
	}
	if f.host != nil {
		tags = append(tags, trace.Tag{Key: "upstream_address", Value: f.host.Addr.String()})
	}
	if x.q.GRPC && f.grpc != "" {
		tags = append(tags, trace.Tag{Key: "grpc.status_code", Value: f.grpc})
	}
	return tags
}

// peerTags are Istio's, of one end.
func peerTags(side string, p telemetry.Peer) []trace.Tag {
	w := p.Workload
	if w == (upstream.Workload{}) {
		return nil
	}
	prefix := "istio." + side + "_"
	known := func(vs ...string) string {
		for _, v := range vs {
			if v != "" {
				return v
			}
		}
		return "unknown"
	}
	return []trace.Tag{
		{Key: prefix + "workload", Value: known(w.Name)},
		{Key: prefix + "namespace", Value: known(w.Namespace)},
		{Key: prefix + "cluster_id", Value: known(w.Cluster)},
		{Key: prefix + "canonical_service", Value: known(w.CanonicalName)},
		{Key: prefix + "canonical_revision", Value: known(w.Revision, "latest")},
		{Key: prefix + "app", Value: known(w.App, w.CanonicalName)},
		{Key: prefix + "app_version", Value: known(w.Version, w.Revision)},
	}
}

func (x *exchange) tagValue(t *table.TraceTag) string {
	v := ""
	switch {
	case t.Header != "":
		v, _ = x.q.Get(t.Header)
	case t.Value != nil:
		return t.Value.Render(&x.facts, "")
	case t.Env != "" && x.h.cfg.Env != nil:
		v, _ = x.h.cfg.Env(t.Env)
	}
	if v == "" {
		return t.Default
	}
	return v
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
