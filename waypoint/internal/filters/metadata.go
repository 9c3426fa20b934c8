package filters

import (
	"fmt"
	"slices"

	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// sourced is a condition on metadata of a named source. Of the two only what filters found out about the request is known here.
func sourced(p *rbacconfig.SourcedMetadata) (condition, error) {
	if err := strict.Only(p, "metadata_matcher", "metadata_source"); err != nil {
		return nil, err
	}
	if s := p.GetMetadataSource(); s != rbacconfig.MetadataSource_DYNAMIC {
		return nil, fmt.Errorf("metadata_source %v: %w", s, strict.ErrUnsupported)
	}
	return metadata(p.GetMetadataMatcher())
}

// CompileMetadata makes a route's condition on what filters found out about the request.
func CompileMetadata(p *matcherv3.MetadataMatcher) (func(*match.Request) bool, error) {
	return metadata(p)
}

// metadata is a condition on what filters before this one found out about the request. What nobody set matches nothing.
func metadata(p *matcherv3.MetadataMatcher) (condition, error) {
	if p == nil {
		return nil, fmt.Errorf("metadata matcher is missing")
	}
	if err := strict.Only(p, "filter", "path", "value", "invert"); err != nil {
		return nil, err
	}
	var path []string
	for _, s := range p.GetPath() {
		if err := strict.Only(s, "key"); err != nil {
			return nil, err
		}
		path = append(path, s.GetKey())
	}
	if p.GetFilter() == "" || len(path) == 0 {
		return nil, fmt.Errorf("metadata matcher: filter and path have to be given")
	}
	is, err := compileValue(p.GetValue(), 0)
	if err != nil {
		return nil, fmt.Errorf("metadata matcher %s %v: %w", p.GetFilter(), path, err)
	}
	filter, invert := p.GetFilter(), p.GetInvert()
	return func(q *match.Request) bool { return is(valueAt(q.Metadata[filter], path)) != invert }, nil
}

// valueAt is nil when there is no such value.
func valueAt(s *structpb.Struct, path []string) *structpb.Value {
	var v *structpb.Value
	for _, name := range path {
		if v = s.GetFields()[name]; v == nil {
			return nil
		}
		s = v.GetStructValue()
	}
	return v
}

type valueIs func(*structpb.Value) bool

// maxNested bounds how deep value matchers stand in each other.
const maxNested = 16

func compileValue(p *matcherv3.ValueMatcher, depth int) (valueIs, error) {
	if depth > maxNested {
		return nil, fmt.Errorf("value matchers are nested more than %d deep", maxNested)
	}
	switch m := p.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_NullMatch_:
		return func(v *structpb.Value) bool { _, ok := v.GetKind().(*structpb.Value_NullValue); return ok }, nil
	case *matcherv3.ValueMatcher_StringMatch:
		s, err := match.CompileString(m.StringMatch)
		return func(v *structpb.Value) bool {
			t, ok := v.GetKind().(*structpb.Value_StringValue)
			return ok && s.Match(t.StringValue)
		}, err
	case *matcherv3.ValueMatcher_BoolMatch:
		return func(v *structpb.Value) bool {
			b, ok := v.GetKind().(*structpb.Value_BoolValue)
			return ok && b.BoolValue == m.BoolMatch
		}, nil
	case *matcherv3.ValueMatcher_DoubleMatch:
		return compileDouble(m.DoubleMatch)
	case *matcherv3.ValueMatcher_PresentMatch:
		return func(v *structpb.Value) bool { return v.GetKind() != nil && m.PresentMatch }, nil
	case *matcherv3.ValueMatcher_ListMatch:
		one, err := compileValue(m.ListMatch.GetOneOf(), depth+1)
		if err != nil {
			return nil, fmt.Errorf("list_match: %w", err)
		}
		return func(v *structpb.Value) bool { return slices.ContainsFunc(v.GetListValue().GetValues(), one) }, nil
	case *matcherv3.ValueMatcher_OrMatch:
		return compileOr(m.OrMatch, depth)
	}
	return nil, fmt.Errorf("value matcher %T: %w", p.GetMatchPattern(), strict.ErrUnsupported)
}

func compileOr(p *matcherv3.OrMatcher, depth int) (valueIs, error) {
	var any []valueIs
	for _, m := range p.GetValueMatchers() {
		is, err := compileValue(m, depth+1)
		if err != nil {
			return nil, fmt.Errorf("or_match: %w", err)
		}
		any = append(any, is)
	}
	return func(v *structpb.Value) bool {
		for _, is := range any {
			if is(v) {
				return true
			}
		}
		return false
	}, nil
}

func compileDouble(p *matcherv3.DoubleMatcher) (valueIs, error) {
	lo, hi := p.GetRange().GetStart(), p.GetRange().GetEnd()
	within := func(n float64) bool { return n >= lo && n < hi }
	switch m := p.GetMatchPattern().(type) {
	case *matcherv3.DoubleMatcher_Exact:
		within = func(n float64) bool { return n == m.Exact }
	case *matcherv3.DoubleMatcher_Range:
	default:
		return nil, fmt.Errorf("double_match %T: %w", m, strict.ErrUnsupported)
	}
	return func(v *structpb.Value) bool {
		n, ok := v.GetKind().(*structpb.Value_NumberValue)
		return ok && within(n.NumberValue)
	}, nil
}
