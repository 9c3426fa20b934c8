package filters

import (
	"fmt"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	grpcstatsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// HTTP is one of the filters of this package: *RBAC, *JWT, *Fault, *CORS, *LocalLimit, *GlobalLimit, *SetMetadata, *ExtAuthz,
// *Mutate, *GRPCStats, *Router or Off;
// a *GlobalRoute changes a *GlobalLimit.
type HTTP interface{ http() }

// Named is a filter in the place where the configuration put it. Routes override it by its name.
type Named struct {
	Name   string
	Filter HTTP
}

// Overrides are the filters' configurations that a route, a virtual host or a weighted cluster brings, by filter name.
type Overrides map[string]HTTP

// Off is a filter that is switched off for a route.
type Off struct{}

// Router ends a chain; what it does stands in the route.
type Router struct{}

// GRPCStats marks chains whose gRPC calls are counted; phases counts them in any case.
type GRPCStats struct{}

func (Off) http()        {}
func (*Router) http()    {}
func (*GRPCStats) http() {}

func typeName(a *anypb.Any) string {
	u := a.GetTypeUrl()
	return u[strings.LastIndexByte(u, '/')+1:]
}

// CompileHTTP compiles one filter of an HTTP connection manager.
func CompileHTTP(p *hcmv3.HttpFilter) (Named, error) {
	out := Named{Name: p.GetName()}
	if out.Name == "" {
		return out, fmt.Errorf("HTTP filter has no name")
	}
	fail := func(err error) (Named, error) { return out, fmt.Errorf("HTTP filter %q: %w", out.Name, err) }
	// is_optional is no leave to drop a filter: what it would have refused is not known here.
	if err := strict.Only(p, "name", "typed_config", "is_optional", "disabled"); err != nil {
		return fail(err)
	}
	var err error
	out.Filter, err = compileTyped(p.GetTypedConfig())
	if err != nil {
		return fail(err)
	}
	name(out.Filter, out.Name)
	if p.GetDisabled() {
		out.Filter = Off{}
	}
	return out, nil
}

func compileTyped(a *anypb.Any) (HTTP, error) {
	switch typeName(a) {
	case "envoy.extensions.filters.http.rbac.v3.RBAC":
		p := &rbacv3.RBAC{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileRBAC(p)
	case "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation":
		p := &headermutationv3.HeaderMutation{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileMutate(p)
	case "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz":
		p := &extauthzv3.ExtAuthz{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileExtAuthz(p)
	case "envoy.extensions.filters.http.fault.v3.HTTPFault":
		p := &faultv3.HTTPFault{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileFault(p)
	case "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication":
		p := &jwtv3.JwtAuthentication{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileJWT(p)
	case "envoy.extensions.filters.http.cors.v3.Cors":
		return &CORS{}, strict.Unpack(a, &corsv3.Cors{})
	case localLimitType, globalLimitType, setMetadataType:
		return compileLimiter(a, false)
	case "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig":
		return &GRPCStats{}, strict.Unpack(a, &grpcstatsv3.FilterConfig{}, "emit_filter_state", "stats_for_all_methods",
			"individual_method_stats_allowlist", "enable_upstream_stats")
	case "envoy.extensions.filters.http.router.v3.Router":
		return &Router{}, strict.Unpack(a, &routerv3.Router{}, "dynamic_stats", "start_child_span", "suppress_envoy_headers",
			"respect_expected_rq_timeout", "suppress_grpc_request_failure_code_stats")
	case "":
		return nil, fmt.Errorf("filter has no typed_config: %w", strict.ErrUnsupported)
	}
	return nil, fmt.Errorf("type %s: %w", a.GetTypeUrl(), strict.ErrUnsupported)
}

// CompileOverrides compiles a typed_per_filter_config.
func CompileOverrides(ps map[string]*anypb.Any) (Overrides, error) {
	if len(ps) == 0 {
		return nil, nil
	}
	out := make(Overrides, len(ps))
	for n, a := range ps {
		f, err := compileOverride(a)
		if err != nil {
			return nil, fmt.Errorf("typed_per_filter_config[%q]: %w", n, err)
		}
		out[n] = f
		name(f, n)
	}
	return out, nil
}

func compileOverride(a *anypb.Any) (HTTP, error) {
	switch typeName(a) {
	case "envoy.config.route.v3.FilterConfig":
		p := &routev3.FilterConfig{}
		if err := strict.Unpack(a, p, "config", "is_optional", "disabled"); err != nil {
			return nil, err
		}
		if p.GetDisabled() {
			return Off{}, nil
		}
		return compileOverride(p.GetConfig())
	case "envoy.extensions.filters.http.rbac.v3.RBACPerRoute":
		p := &rbacv3.RBACPerRoute{}
		if err := strict.Unpack(a, p, "rbac"); err != nil {
			return nil, err
		}
		if p.GetRbac() == nil {
			return Off{}, nil
		}
		return compileRBAC(p.GetRbac())
	case "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute":
		p := &extauthzv3.ExtAuthzPerRoute{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileExtAuthzPerRoute(p)
	case "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig":
		return compileTokenOverride(a)
	case "envoy.extensions.filters.http.fault.v3.HTTPFault":
		return compileTyped(a)
	case localLimitType, globalRouteType:
		return compileLimiter(a, true)
	case "envoy.extensions.filters.http.cors.v3.CorsPolicy":
		p := &corsv3.CorsPolicy{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileCORS(p)
	}
	return nil, fmt.Errorf("type %s: %w", a.GetTypeUrl(), strict.ErrUnsupported)
}

// Effective is the configuration of f after the most specific of the overrides that names it; later lists are more specific.
func Effective(f Named, by ...Overrides) HTTP {
	for _, b := range slices.Backward(by) {
		if o, ok := b[f.Name]; ok {
			if _, change := o.(*GlobalRoute); change {
				return f.Filter // it does not replace the filter, see GlobalChange
			}
			return o
		}
	}
	return f.Filter
}
