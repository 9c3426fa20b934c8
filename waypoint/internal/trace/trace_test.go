package trace

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

func contexts() *rapid.Generator[Context] {
	return rapid.Custom(func(t *rapid.T) Context {
		c := Context{Sampled: rapid.Bool().Draw(t, "sampled"), Short: rapid.Bool().Draw(t, "short")}
		some := rapid.SliceOfN(rapid.ByteRange(1, 255), 32, 32).Draw(t, "ids")
		copy(c.Trace[8:], some)
		if !c.Short {
			copy(c.Trace[:8], some[8:])
		}
		copy(c.Span[:], some[16:])
		if rapid.Bool().Draw(t, "parent") {
			copy(c.Parent[:], some[24:])
		}
		return c
	})
}

func TestContextsSurvive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := contexts().Draw(t, "context")
		h := http.Header{"Traceparent": {"old"}, "Tracestate": {"old"}, "B3": {"old"}, "X-B3-Parentspanid": {"old"}}
		c.Inject(h, B3)
		if got, ok := Extract(h, B3|W3C); !ok || got != c {
			t.Fatalf("B3: got %+v %t, want %+v from %v", got, ok, c, h)
		}
		h = http.Header{"Tracestate": {"old"}}
		c.Short, c.Parent, c.State = false, SpanID{}, "a=b"
		c.Inject(h, W3C)
		if got, ok := Extract(h, W3C); !ok || got != c {
			t.Fatalf("W3C: got %+v %t, want %+v from %v", got, ok, c, h)
		}
	})
}

func TestExtract(t *testing.T) {
	const id, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for name, c := range map[string]struct {
		h    http.Header
		form Form
		ok   bool
		want func(Context) bool
	}{
		"w3c":            {http.Header{"Traceparent": {"00-" + id + "-" + span + "-01"}}, W3C, true, func(c Context) bool { return c.Sampled && c.Trace.String() == id && c.Span.String() == span }},
		"w3c unsampled":  {http.Header{"Traceparent": {"00-" + id + "-" + span + "-02"}}, W3C, true, func(c Context) bool { return !c.Sampled }},
		"w3c later":      {http.Header{"Traceparent": {"cc-" + id + "-" + span + "-01-what"}}, W3C, true, nil},
		"w3c ff":         {http.Header{"Traceparent": {"ff-" + id + "-" + span + "-01"}}, W3C, false, nil},
		"w3c long 00":    {http.Header{"Traceparent": {"00-" + id + "-" + span + "-01-x"}}, W3C, false, nil},
		"w3c upper":      {http.Header{"Traceparent": {"00-" + strings.ToUpper(id) + "-" + span + "-01"}}, W3C, false, nil},
		"w3c zero":       {http.Header{"Traceparent": {"00-" + strings.Repeat("0", 32) + "-" + span + "-01"}}, W3C, false, nil},
		"w3c twice":      {http.Header{"Traceparent": {"00-" + id + "-" + span + "-01", "00-" + id + "-" + span + "-00"}}, W3C, false, nil},
		"w3c not meant":  {http.Header{"Traceparent": {"00-" + id + "-" + span + "-01"}}, B3, false, nil},
		"state too long": {http.Header{"Traceparent": {"00-" + id + "-" + span + "-01"}, "Tracestate": {strings.Repeat("x", 513)}}, W3C, true, func(c Context) bool { return c.State == "" }},
		"single":         {http.Header{"B3": {id + "-" + span + "-1-" + span}}, B3, true, func(c Context) bool { return c.Sampled && c.Parent.String() == span }},
		"single debug":   {http.Header{"B3": {id + "-" + span + "-d"}}, B3, true, func(c Context) bool { return c.Sampled && c.Debug }},
		"single open":    {http.Header{"B3": {id[16:] + "-" + span}}, B3, true, func(c Context) bool { return c.Open && c.Short }},
		"single deny":    {http.Header{"B3": {"0"}}, B3, false, nil},
		"single odd":     {http.Header{"B3": {id + "-" + span + "-7"}}, B3, false, nil},
		"multi":          {http.Header{"X-B3-Traceid": {id}, "X-B3-Spanid": {span}, "X-B3-Sampled": {"0"}}, B3, true, func(c Context) bool { return !c.Sampled && !c.Open }},
		"multi flags":    {http.Header{"X-B3-Traceid": {id}, "X-B3-Spanid": {span}, "X-B3-Flags": {"1"}}, B3, true, func(c Context) bool { return c.Sampled && c.Debug }},
		"multi half":     {http.Header{"X-B3-Traceid": {id}}, B3, false, nil},
		"none":           {http.Header{}, B3 | W3C, false, nil},
	} {
		got, ok := Extract(c.h, c.form)
		if ok != c.ok || c.want != nil && !c.want(got) {
			t.Errorf("%s: %+v %t", name, got, ok)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=b", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1", "1")
	f.Fuzz(func(t *testing.T, parent, state, b3, sampled string) {
		for _, form := range []Form{W3C, B3, W3C | B3} {
			c, ok := Extract(http.Header{"Traceparent": {parent}, "Tracestate": {state}, "B3": {b3}, "X-B3-Sampled": {sampled}}, form)
			if !ok {
				continue
			}
			if c.Trace == (ID{}) || c.Span == (SpanID{}) || len(c.State) > maxState || c.Sampled && c.Open {
				t.Fatalf("%+v", c)
			}
			h := http.Header{}
			c.Inject(h, form)
			for _, vs := range h {
				if len(vs) != 1 || len(vs[0]) > maxState {
					t.Fatalf("injected %v", h)
				}
			}
		}
	})
}

func TestSampling(t *testing.T) {
	some := func(share match.Fraction) *Config {
		return &Config{Client: match.Always, Random: share, Overall: match.Always, ByRequestID: true, PackReason: true, Extract: W3C}
	}
	never := func(uint64) uint64 { t.Fatal("the request id draws"); return 0 }
	const low, high = "00000001-0000-4000-8000-000000000000", "0000270f-0000-4000-8000-000000000000" // 1 and 9999 of 10000
	for name, c := range map[string]struct {
		id     string
		change func(*Config, http.Header)
		want   Reason
		after  string
	}{
		"drawn":         {low, nil, Sampled, "00000001-0000-9000-8000-000000000000"},
		"not drawn":     {high, nil, NotTraced, high},
		"as before":     {"0000270f-0000-9000-8000-000000000000", nil, Sampled, "0000270f-0000-9000-8000-000000000000"},
		"forced":        {high, func(_ *Config, h http.Header) { h.Set("X-Envoy-Force-Trace", "true") }, ServiceForced, "0000270f-0000-a000-8000-000000000000"},
		"by the client": {high, func(_ *Config, h http.Header) { h.Set("X-Client-Trace-Id", "x") }, ClientForced, "0000270f-0000-b000-8000-000000000000"},
		"overall":       {high, func(c *Config, h http.Header) { c.Overall = 0; h.Set("X-Envoy-Force-Trace", "1") }, NotTraced, high},
		"no pack":       {low, func(c *Config, _ http.Header) { c.PackReason = false }, Sampled, low},
		"no uuid":       {"mine", nil, NotTraced, "mine"},
		"uuid v7":       {"00000001-0000-7000-8000-000000000000", nil, Sampled, "00000001-0000-7000-8000-000000000000"},
	} {
		cfg, h := some(500_000), http.Header{"X-Request-Id": {c.id}}
		if c.change != nil {
			c.change(cfg, h)
		}
		if got := cfg.Decide(h, never); got != c.want || h.Get("X-Request-Id") != c.after {
			t.Errorf("%s: got %c and %s, want %c and %s", name, got, h.Get("X-Request-Id"), c.want, c.after)
		}
	}
	one := func(n uint64) uint64 { return n - 1 }
	h := http.Header{"X-Request-Id": {high}, "Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}
	own, remote := some(0).Begin(h, one)
	if !remote || !own.Sampled || own.Trace.String() != "4bf92f3577b34da6a3ce929d0e0e4736" || own.Parent.String() != "00f067aa0ba902b7" || own.Span == own.Parent {
		t.Errorf("a trace that is under way: %+v", own)
	}
	if own, remote = some(match.Always).Begin(http.Header{"X-Request-Id": {low}}, one); remote || !own.Sampled || own.Parent != (SpanID{}) {
		t.Errorf("a new trace: %+v", own)
	}
	cfg := some(0)
	cfg.ByRequestID, cfg.Random = false, 10
	if own, _ = cfg.Begin(http.Header{}, func(uint64) uint64 { return 0 }); !own.Sampled {
		t.Errorf("drawn without an id: %+v", own)
	}
}

func TestEncodings(t *testing.T) {
	c := Context{Trace: ID{15: 1}, Span: SpanID{7: 2}, Parent: SpanID{7: 3}, Sampled: true, State: "a=b"}
	s := &Span{
		Context: c, Name: "web:80/*", Kind: Client, Start: time.Unix(10, 0), End: time.Unix(10, 5000), Error: true, Local: "10.0.0.1:80",
		Tags: []Tag{{"k", "v"}, {"bad", "\xff"}},
	}
	raw, err := OTLP(&Provider{Service: "wp.shop", Resource: map[string]string{"x": "y"}}, []*Span{s})
	if err != nil {
		t.Fatal(err)
	}
	d := &tracepb.TracesData{}
	if err := proto.Unmarshal(raw, d); err != nil {
		t.Fatal(err)
	}
	rs := d.GetResourceSpans()[0]
	got := rs.GetScopeSpans()[0].GetSpans()[0]
	if rs.GetResource().GetAttributes()[0].GetValue().GetStringValue() != "wp.shop" || got.GetName() != "web:80/*" || got.GetKind() != tracepb.Span_SPAN_KIND_CLIENT ||
		string(got.GetParentSpanId()) != string(c.Parent[:]) || got.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR || got.GetTraceState() != "a=b" ||
		got.GetEndTimeUnixNano()-got.GetStartTimeUnixNano() != 5000 || len(got.GetAttributes()) != 2 {
		t.Errorf("got %v", got)
	}
	s.Short = true
	raw, err = Zipkin(&Provider{Service: "wp.shop"}, []*Span{s})
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]any
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"traceId": "0000000000000001", "id": "0000000000000002", "parentId": "0000000000000003", "name": "web:80/*", "kind": "CLIENT", "timestamp": 1e7, "duration": 5.0,
		"localEndpoint": map[string]any{"serviceName": "wp.shop", "ipv4": "10.0.0.1", "port": 80.0}, "tags": map[string]any{"k": "v", "bad": "\ufffd", "error": "true"},
	}
	if diff := cmp.Diff(want, list[0]); diff != "" {
		t.Error(diff)
	}
}

func FuzzRejected(f *testing.F) {
	f.Add([]byte{0x0a, 2, 8, 7})
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := Rejected(b); n < 0 {
			t.Fatal(n)
		}
	})
}
