package trace

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// OTLP encodes spans of one provider as the request of a trace collector. The message that holds spans at rest has the same fields.
func OTLP(p *Provider, spans []*Span) ([]byte, error) {
	res := &resourcepb.Resource{Attributes: []*commonpb.KeyValue{text("service.name", p.Service)}}
	for _, k := range slices.Sorted(maps.Keys(p.Resource)) {
		res.Attributes = append(res.Attributes, text(k, p.Resource[k]))
	}
	scope := &tracepb.ScopeSpans{Scope: &commonpb.InstrumentationScope{Name: "marrow-waypoint"}, Spans: make([]*tracepb.Span, 0, len(spans))}
	for _, s := range spans {
		scope.Spans = append(scope.Spans, otlpSpan(s))
	}
	return proto.Marshal(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{Resource: res, ScopeSpans: []*tracepb.ScopeSpans{scope}}}})
}

func text(k, v string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: k, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: valid(v)}}}
}

func otlpSpan(s *Span) *tracepb.Span {
	out := &tracepb.Span{
		TraceId: s.Trace[:], SpanId: s.Span[:], TraceState: s.State, Name: valid(s.Name), Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: uint64(max(s.Start.UnixNano(), 0)), EndTimeUnixNano: uint64(max(s.End.UnixNano(), 0)),
		Attributes: make([]*commonpb.KeyValue, 0, len(s.Tags)), Status: &tracepb.Status{}, Flags: 1,
	}
	if s.Parent != (SpanID{}) {
		out.ParentSpanId = s.Parent[:]
	}
	if s.Kind == Client {
		out.Kind = tracepb.Span_SPAN_KIND_CLIENT
	}
	if s.Error {
		out.Status.Code = tracepb.Status_STATUS_CODE_ERROR
	}
	for _, t := range s.Tags {
		out.Attributes = append(out.Attributes, text(t.Key, t.Value))
	}
	return out
}

// valid makes a text UTF-8, without which no message can be sent.
func valid(s string) string {
	return string([]rune(s))
}

// Rejected reads how many spans a collector did not take, from its answer. An answer that is no such message rejects nothing.
func Rejected(answer []byte) int64 {
	partial, ok := field(answer, 1, protowire.BytesType)
	if !ok {
		return 0
	}
	n, ok := field(partial, 1, protowire.VarintType)
	if !ok {
		return 0
	}
	v, _ := protowire.ConsumeVarint(n)
	return max(int64(v), 0)
}

// field finds the first field of a number and a type in a message.
func field(b []byte, want protowire.Number, typ protowire.Type) ([]byte, bool) {
	for len(b) > 0 {
		num, t, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, false
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(num, t, b)
		if size < 0 {
			return nil, false
		}
		if num == want && t == typ {
			if t == protowire.BytesType {
				v, _ := protowire.ConsumeBytes(b)
				return v, true
			}
			return b[:size], true
		}
		b = b[size:]
	}
	return nil, false
}

type zipkinSpan struct {
	TraceID   string            `json:"traceId"`
	ID        string            `json:"id"`
	ParentID  string            `json:"parentId,omitempty"`
	Name      string            `json:"name"`
	Kind      string            `json:"kind"`
	Timestamp int64             `json:"timestamp"` // microseconds
	Duration  int64             `json:"duration"`
	Local     *zipkinEndpoint   `json:"localEndpoint"`
	Tags      map[string]string `json:"tags,omitempty"`
	Debug     bool              `json:"debug,omitempty"`
	Shared    bool              `json:"shared,omitempty"`
}

type zipkinEndpoint struct {
	Service string `json:"serviceName,omitempty"`
	IPv4    string `json:"ipv4,omitempty"`
	IPv6    string `json:"ipv6,omitempty"`
	Port    uint16 `json:"port,omitempty"`
}

// Zipkin encodes spans of one provider in the second version of Zipkin's JSON.
func Zipkin(p *Provider, spans []*Span) ([]byte, error) {
	out := make([]zipkinSpan, 0, len(spans))
	for _, s := range spans {
		z := zipkinSpan{
			TraceID: s.Trace.String(), ID: s.Span.String(), Name: s.Name, Kind: "SERVER", Timestamp: s.Start.UnixMicro(),
			Duration: max(s.End.Sub(s.Start).Microseconds(), 1), Local: &zipkinEndpoint{Service: p.Service}, Tags: make(map[string]string, len(s.Tags)),
			Debug: s.Debug, Shared: s.Shared,
		}
		if s.Short {
			z.TraceID = z.TraceID[hexSpan:]
		}
		if s.Parent != (SpanID{}) {
			z.ParentID = s.Parent.String()
		}
		if s.Kind == Client {
			z.Kind = "CLIENT"
		}
		if ap, err := netip.ParseAddrPort(s.Local); err == nil {
			z.Local.Port = ap.Port()
			if ap.Addr().Is4() {
				z.Local.IPv4 = ap.Addr().String()
			} else {
				z.Local.IPv6 = ap.Addr().String()
			}
		}
		for _, t := range s.Tags {
			z.Tags[t.Key] = t.Value
		}
		if s.Error {
			z.Tags["error"] = "true"
		}
		out = append(out, z)
	}
	return json.Marshal(out)
}

// Frame puts the head of a gRPC message in front of one.
func Frame(message []byte) []byte {
	const head = 5
	out := make([]byte, head, head+len(message))
	binary.BigEndian.PutUint32(out[1:], uint32(len(message)))
	return append(out, message...)
}
