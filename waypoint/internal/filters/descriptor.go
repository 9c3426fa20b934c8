package filters

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Entry is one pair of a descriptor.
type Entry struct{ Key, Value string }

// Descriptor names what is counted for one request.
type Descriptor struct {
	Entries []Entry
	Limit   *Quota       // nil = as the rate limit service is configured
	Headers HeaderOption // whether the client is told
}

// Quota is a limit that goes along with a descriptor.
type Quota struct {
	Requests uint32
	Unit     typev3.RateLimitUnit
}

// HeaderOption is what a descriptor says of the x-ratelimit headers.
type HeaderOption uint8

// The options.
const (
	HeadersAsFilter HeaderOption = iota
	HeadersOff
	HeadersDraft03
)

// LimitFacts is what descriptors are made of.
type LimitFacts struct {
	Request *match.Request
	Cluster string                      // that the route chose; empty = the request is not forwarded
	Node    string                      // the proxy's own cluster name
	Route   map[string]*structpb.Struct // the route's metadata
	Dynamic map[string]*structpb.Struct // what filters have left behind
}

// Limits is a compiled list of rate_limits: each member gives a descriptor, or none.
type Limits []limit

type limit struct {
	stage   uint32
	actions []action
	quota   *metadatav3.MetadataKey // where in the dynamic metadata the limit stands; nil = nowhere
	headers HeaderOption
}

// action appends to a descriptor. An action that has nothing to say either skips itself (ok) or takes the descriptor away.
type action func(f *LimitFacts, to []Entry) (entries []Entry, ok bool)

// Descriptors are those of one stage for one request.
func (ls Limits) Descriptors(f *LimitFacts, stage uint32) []Descriptor {
	var out []Descriptor
next:
	for i := range ls {
		l := &ls[i]
		if l.stage != stage {
			continue
		}
		d := Descriptor{Headers: l.headers}
		for _, a := range l.actions {
			var ok bool
			if d.Entries, ok = a(f, d.Entries); !ok {
				continue next
			}
		}
		if len(d.Entries) == 0 {
			continue // every action skipped itself: nothing is named
		}
		if l.quota != nil {
			d.Limit = quotaOf(metadataValue(f.Dynamic, l.quota))
		}
		out = append(out, d)
	}
	return out
}

// quotaOf reads {requests_per_unit, unit}; anything else is no limit.
func quotaOf(v *structpb.Value) *Quota {
	s := v.GetStructValue().GetFields()
	n, isNumber := s["requests_per_unit"].GetKind().(*structpb.Value_NumberValue)
	unit, known := typev3.RateLimitUnit_value[s["unit"].GetStringValue()]
	if !isNumber || !known || n.NumberValue < 0 || n.NumberValue > 1<<32-1 {
		return nil
	}
	return &Quota{Requests: uint32(n.NumberValue), Unit: typev3.RateLimitUnit(unit)}
}

func metadataValue(all map[string]*structpb.Struct, k *metadatav3.MetadataKey) *structpb.Value {
	at := structpb.NewStructValue(all[k.GetKey()])
	for _, segment := range k.GetPath() {
		at = at.GetStructValue().GetFields()[segment.GetKey()]
	}
	return at
}

// CompileLimits compiles the rate_limits of a route, a virtual host or a filter.
func CompileLimits(ps []*routev3.RateLimit) (Limits, error) {
	var out Limits
	for i, p := range ps {
		l, err := compileLimit(p)
		if err != nil {
			return nil, fmt.Errorf("rate_limits[%d]: %w", i, err)
		}
		out = append(out, l)
	}
	return out, nil
}

func compileLimit(p *routev3.RateLimit) (limit, error) {
	l := limit{stage: p.GetStage().GetValue()}
	if err := strict.Only(p, "stage", "actions", "limit", "x_ratelimit_option"); err != nil {
		return l, err
	}
	if l.stage > 10 {
		return l, fmt.Errorf("stage %d is above 10", l.stage)
	}
	if len(p.GetActions()) == 0 {
		return l, fmt.Errorf("has no actions")
	}
	switch p.GetXRatelimitOption() {
	case routev3.RateLimit_UNSPECIFIED:
	case routev3.RateLimit_OFF:
		l.headers = HeadersOff
	case routev3.RateLimit_DRAFT_VERSION_03:
		l.headers = HeadersDraft03
	default:
		return l, fmt.Errorf("x_ratelimit_option %v: %w", p.GetXRatelimitOption(), strict.ErrUnsupported)
	}
	for i, ap := range p.GetActions() {
		a, err := compileAction(ap)
		if err != nil {
			return l, fmt.Errorf("actions[%d]: %w", i, err)
		}
		l.actions = append(l.actions, a)
	}
	if o := p.GetLimit(); o != nil {
		if o.GetDynamicMetadata() == nil {
			return l, fmt.Errorf("limit: override %T: %w", o.GetOverrideSpecifier(), strict.ErrUnsupported)
		}
		l.quota = o.GetDynamicMetadata().GetMetadataKey()
	}
	return l, nil
}

func compileAction(p *routev3.RateLimit_Action) (action, error) {
	switch a := p.GetActionSpecifier().(type) {
	case *routev3.RateLimit_Action_SourceCluster_:
		return always("source_cluster", func(f *LimitFacts) (string, bool) { return f.Node, true }), nil
	case *routev3.RateLimit_Action_DestinationCluster_:
		return always("destination_cluster", func(f *LimitFacts) (string, bool) { return f.Cluster, f.Cluster != "" }), nil
	case *routev3.RateLimit_Action_RequestHeaders_:
		return headerAction(a.RequestHeaders)
	case *routev3.RateLimit_Action_QueryParameters_:
		return queryAction(a.QueryParameters)
	case *routev3.RateLimit_Action_RemoteAddress_:
		return always("remote_address", func(f *LimitFacts) (string, bool) {
			ip := f.Request.Client()
			return ip.Unmap().String(), ip.IsValid()
		}), nil
	case *routev3.RateLimit_Action_MaskedRemoteAddress_:
		return maskedAction(a.MaskedRemoteAddress)
	case *routev3.RateLimit_Action_GenericKey_:
		return genericAction(a.GenericKey)
	case *routev3.RateLimit_Action_HeaderValueMatch_:
		return headerMatchAction(a.HeaderValueMatch)
	case *routev3.RateLimit_Action_QueryParameterValueMatch_:
		return queryMatchAction(a.QueryParameterValueMatch)
	case *routev3.RateLimit_Action_Metadata:
		return metadataAction(a.Metadata)
	case *routev3.RateLimit_Action_Extension:
		return exprAction(a.Extension)
	}
	return nil, fmt.Errorf("action %T: %w", p.GetActionSpecifier(), strict.ErrUnsupported)
}

// always gives one entry, or no descriptor.
func always(key string, value func(*LimitFacts) (string, bool)) action {
	return func(f *LimitFacts, to []Entry) ([]Entry, bool) {
		v, ok := value(f)
		return append(to, Entry{key, v}), ok
	}
}

// keyOr is the entry's key, which some actions let the configuration choose.
func keyOr(given, usual string) string {
	if given == "" {
		return usual
	}
	return given
}

func headerAction(p *routev3.RateLimit_Action_RequestHeaders) (action, error) {
	if err := strict.Only(p, "header_name", "descriptor_key", "skip_if_absent"); err != nil {
		return nil, err
	}
	if p.GetHeaderName() == "" || p.GetDescriptorKey() == "" {
		return nil, fmt.Errorf("request_headers wants header_name and descriptor_key")
	}
	name := canonicalName(p.GetHeaderName())
	return func(f *LimitFacts, to []Entry) ([]Entry, bool) {
		if vs := f.Request.Header[name]; len(vs) > 0 {
			return append(to, Entry{p.GetDescriptorKey(), vs[0]}), true // the first of several, as in Envoy
		}
		if v, ok := f.Request.Get(name); ok {
			return append(to, Entry{p.GetDescriptorKey(), v}), true
		}
		return to, p.GetSkipIfAbsent()
	}, nil
}

func canonicalName(name string) string {
	if strings.HasPrefix(name, ":") {
		return strings.ToLower(name)
	}
	return http.CanonicalHeaderKey(name)
}

func queryAction(p *routev3.RateLimit_Action_QueryParameters) (action, error) {
	if err := strict.Only(p, "query_parameter_name", "descriptor_key", "skip_if_absent"); err != nil {
		return nil, err
	}
	if p.GetQueryParameterName() == "" || p.GetDescriptorKey() == "" {
		return nil, fmt.Errorf("query_parameters wants query_parameter_name and descriptor_key")
	}
	return func(f *LimitFacts, to []Entry) ([]Entry, bool) {
		for pair := range strings.SplitSeq(f.Request.Query, "&") {
			k, v, _ := strings.Cut(pair, "=")
			if unescaped(k) == p.GetQueryParameterName() {
				return append(to, Entry{p.GetDescriptorKey(), unescaped(v)}), true
			}
		}
		return to, p.GetSkipIfAbsent()
	}, nil
}

func unescaped(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}

func maskedAction(p *routev3.RateLimit_Action_MaskedRemoteAddress) (action, error) {
	if err := strict.Only(p, "v4_prefix_mask_len", "v6_prefix_mask_len"); err != nil {
		return nil, err
	}
	v4, v6 := uint32(32), uint32(128)
	if m := p.GetV4PrefixMaskLen(); m != nil {
		v4 = m.GetValue()
	}
	if m := p.GetV6PrefixMaskLen(); m != nil {
		v6 = m.GetValue()
	}
	if v4 > 32 || v6 > 128 {
		return nil, fmt.Errorf("masked_remote_address: masks %d and %d are too long", v4, v6)
	}
	return always("masked_remote_address", func(f *LimitFacts) (string, bool) {
		ip, bits := f.Request.Client().Unmap(), v4
		if ip.Is6() {
			bits = v6
		}
		n, err := ip.WithZone("").Prefix(int(bits))
		return n.String(), err == nil && n != netip.Prefix{}
	}), nil
}

func genericAction(p *routev3.RateLimit_Action_GenericKey) (action, error) {
	// A format in the value counts only where Envoy is told so at run time; here it is a text.
	if err := strict.Only(p, "descriptor_value", "descriptor_key"); err != nil {
		return nil, err
	}
	if p.GetDescriptorValue() == "" {
		return nil, fmt.Errorf("generic_key wants a descriptor_value")
	}
	return always(keyOr(p.GetDescriptorKey(), "generic_key"), func(*LimitFacts) (string, bool) { return p.GetDescriptorValue(), true }), nil
}

func headerMatchAction(p *routev3.RateLimit_Action_HeaderValueMatch) (action, error) {
	if err := strict.Only(p, "descriptor_key", "descriptor_value", "expect_match", "headers"); err != nil {
		return nil, err
	}
	hs, err := match.CompileHeaders(p.GetHeaders())
	if err != nil {
		return nil, err
	}
	if p.GetDescriptorValue() == "" || len(hs) == 0 {
		return nil, fmt.Errorf("header_value_match wants a descriptor_value and headers")
	}
	want := p.GetExpectMatch() == nil || p.GetExpectMatch().GetValue()
	return always(keyOr(p.GetDescriptorKey(), "header_match"), func(f *LimitFacts) (string, bool) {
		return p.GetDescriptorValue(), match.All(hs, f.Request) == want
	}), nil
}

func queryMatchAction(p *routev3.RateLimit_Action_QueryParameterValueMatch) (action, error) {
	if err := strict.Only(p, "descriptor_key", "descriptor_value", "expect_match", "query_parameters"); err != nil {
		return nil, err
	}
	var qs []match.Query
	for _, q := range p.GetQueryParameters() {
		m, err := match.CompileQuery(q)
		if err != nil {
			return nil, err
		}
		qs = append(qs, m)
	}
	if p.GetDescriptorValue() == "" || len(qs) == 0 {
		return nil, fmt.Errorf("query_parameter_value_match wants a descriptor_value and query_parameters")
	}
	want := p.GetExpectMatch() == nil || p.GetExpectMatch().GetValue()
	return always(keyOr(p.GetDescriptorKey(), "query_match"), func(f *LimitFacts) (string, bool) {
		for i := range qs {
			if !qs[i].Match(f.Request) {
				return p.GetDescriptorValue(), !want
			}
		}
		return p.GetDescriptorValue(), want
	}), nil
}

func metadataAction(p *routev3.RateLimit_Action_MetaData) (action, error) {
	if err := strict.Only(p, "descriptor_key", "metadata_key", "default_value", "source", "skip_if_absent"); err != nil {
		return nil, err
	}
	if p.GetDescriptorKey() == "" || p.GetMetadataKey().GetKey() == "" {
		return nil, fmt.Errorf("metadata wants descriptor_key and metadata_key")
	}
	from := func(f *LimitFacts) map[string]*structpb.Struct { return f.Dynamic }
	switch p.GetSource() {
	case routev3.RateLimit_Action_MetaData_DYNAMIC:
	case routev3.RateLimit_Action_MetaData_ROUTE_ENTRY:
		from = func(f *LimitFacts) map[string]*structpb.Struct { return f.Route }
	default:
		return nil, fmt.Errorf("metadata source %v: %w", p.GetSource(), strict.ErrUnsupported)
	}
	return func(f *LimitFacts, to []Entry) ([]Entry, bool) {
		v := metadataValue(from(f), p.GetMetadataKey()).GetStringValue()
		if v == "" {
			v = p.GetDefaultValue()
		}
		if v == "" {
			return to, p.GetSkipIfAbsent()
		}
		return append(to, Entry{p.GetDescriptorKey(), v}), true
	}, nil
}
