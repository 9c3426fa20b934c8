package filters

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/waypoint/internal/jwt"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// JWTFilter is the name under which verified claims stand in a request's metadata.
const JWTFilter = "envoy.filters.http.jwt_authn"

// JWT is a compiled token filter: which tokens a request has to bring, and what is made of their claims.
type JWT struct {
	rules     []tokenRule
	providers []*provider // by name
	preflight bool        // a CORS preflight needs no token
	strip     bool        // a refusal does not say why
}

func (*JWT) http() {}

// tokenRule applies to the requests that it matches; the first such rule counts.
type tokenRule struct {
	prefix, exact string
	fold          bool
	headers       []match.Header
	needs         requirement // nil = nothing
}

// provider is one issuer of tokens.
type provider struct {
	name      string
	issuer    string   // empty = any
	audiences []string // empty = any
	subject   *match.String
	skew      time.Duration
	lifetime  time.Duration // of a token, at most; 0 = any, negative = any but it has to end
	keys      *jwt.Keys     // given in the configuration
	source    *jwt.Source   // or fetched
	headers   []tokenHeader
	params    []string
	cookies   []string
	forward   bool // the token stays in the request

	payloadHeader string // canonical; empty = none
	padded        bool
	claims        []claimHeader
	payloadKey    string // in the metadata; empty = nowhere
	headerKey     string
	split         []string // claims that are lists of words
	reroute       bool     // headers made from claims may lead elsewhere
}

type tokenHeader struct{ name, prefix string }

type claimHeader struct {
	name string // canonical
	path []string
}

const (
	bearer      = "Bearer "
	accessToken = "access_token"
	defaultSkew = 60 * time.Second
	// Envoy's defaults for fetched keys.
	defaultCache   = 10 * time.Minute
	defaultRefetch = time.Second
	defaultFetch   = 5 * time.Second
)

// Sources are the places from which keys have to be fetched.
func (j *JWT) Sources() []jwt.Source {
	var out []jwt.Source
	for _, p := range j.providers {
		if p.source != nil {
			out = append(out, *p.source)
		}
	}
	return out
}

func compileJWT(p *jwtv3.JwtAuthentication) (*JWT, error) {
	if err := strict.Only(p, "providers", "rules", "bypass_cors_preflight", "requirement_map", "strip_failure_response", "stat_prefix"); err != nil {
		return nil, err
	}
	j := &JWT{preflight: p.GetBypassCorsPreflight(), strip: p.GetStripFailureResponse()}
	c := requirementCompiler{providers: map[string]*provider{}, named: map[string]requirement{}}
	for _, name := range slices.Sorted(maps.Keys(p.GetProviders())) {
		one, err := compileProvider(name, p.GetProviders()[name])
		if err != nil {
			return nil, fmt.Errorf("provider %q: %w", name, err)
		}
		c.providers[name] = one
		j.providers = append(j.providers, one)
	}
	c.all = j.providers
	for _, name := range slices.Sorted(maps.Keys(p.GetRequirementMap())) {
		r, err := c.compile(p.GetRequirementMap()[name], 0)
		if err != nil {
			return nil, fmt.Errorf("requirement_map[%q]: %w", name, err)
		}
		c.named[name] = r
	}
	for i, rp := range p.GetRules() {
		r, err := c.rule(rp)
		if err != nil {
			return nil, fmt.Errorf("rules[%d]: %w", i, err)
		}
		j.rules = append(j.rules, r)
	}
	return j, nil
}

// compileTokenOverride compiles what a route says; it can switch the filter off.
func compileTokenOverride(a *anypb.Any) (HTTP, error) {
	p := &jwtv3.PerRouteConfig{}
	if err := strict.Unpack(a, p, "disabled"); err != nil {
		return nil, err
	}
	if !p.GetDisabled() {
		return nil, fmt.Errorf("PerRouteConfig without disabled: %w", strict.ErrUnsupported)
	}
	return Off{}, nil
}

func compileProvider(name string, p *jwtv3.JwtProvider) (*provider, error) {
	if err := strict.Only(p, "issuer", "audiences", "subjects", "require_expiration", "max_lifetime", "forward", "from_headers", "from_params",
		"from_cookies", "forward_payload_header", "pad_forward_payload_header", "payload_in_metadata", "normalize_payload_in_metadata",
		"header_in_metadata", "clock_skew_seconds", "jwt_cache_config", "claim_to_headers", "clear_route_cache", "remote_jwks", "local_jwks"); err != nil {
		return nil, err
	}
	out := &provider{
		name: name, issuer: p.GetIssuer(), audiences: p.GetAudiences(), forward: p.GetForward(), params: p.GetFromParams(), cookies: p.GetFromCookies(),
		padded: p.GetPadForwardPayloadHeader(), payloadKey: p.GetPayloadInMetadata(), headerKey: p.GetHeaderInMetadata(),
		split: p.GetNormalizePayloadInMetadata().GetSpaceDelimitedClaims(), reroute: p.GetClearRouteCache(), skew: defaultSkew,
	}
	if n := p.GetClockSkewSeconds(); n > 0 {
		out.skew = time.Duration(n) * time.Second
	}
	if p.GetRequireExpiration() {
		out.lifetime = -1
	}
	if d := p.GetMaxLifetime(); d != nil {
		if out.lifetime = d.AsDuration(); out.lifetime <= 0 {
			return nil, fmt.Errorf("max_lifetime %v is not positive", out.lifetime)
		}
	}
	if s := p.GetSubjects(); s != nil {
		m, err := match.CompileString(s)
		if err != nil {
			return nil, fmt.Errorf("subjects: %w", err)
		}
		out.subject = &m
	}
	for _, h := range p.GetFromHeaders() {
		if !httpguts.ValidHeaderFieldName(h.GetName()) {
			return nil, fmt.Errorf("from_headers: %q is no header name", h.GetName())
		}
		out.headers = append(out.headers, tokenHeader{http.CanonicalHeaderKey(h.GetName()), h.GetValuePrefix()})
	}
	if len(out.headers)+len(out.params)+len(out.cookies) == 0 {
		out.headers, out.params = []tokenHeader{{"Authorization", bearer}}, []string{accessToken}
	}
	if err := out.compileOutputs(p); err != nil {
		return nil, err
	}
	return out, out.compileKeys(p)
}

func (p *provider) compileOutputs(c *jwtv3.JwtProvider) error {
	var err error
	if n := c.GetForwardPayloadHeader(); n != "" {
		if p.payloadHeader, err = outputHeader(n); err != nil {
			return fmt.Errorf("forward_payload_header: %w", err)
		}
	}
	for _, h := range c.GetClaimToHeaders() {
		if err := strict.Only(h, "header_name", "claim_name", "claim_path"); err != nil {
			return err
		}
		name, err := outputHeader(h.GetHeaderName())
		if err != nil {
			return fmt.Errorf("claim_to_headers: %w", err)
		}
		out := claimHeader{name: name, path: strings.Split(h.GetClaimName(), ".")}
		if segments := h.GetClaimPath(); len(segments) > 0 {
			out.path = nil
			for _, s := range segments {
				out.path = append(out.path, s.GetKey())
			}
		}
		p.claims = append(p.claims, out)
	}
	return nil
}

// outputHeader refuses names by which a token could change what the request is.
func outputHeader(name string) (string, error) {
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	switch canonical {
	case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Te", "Trailer", "Keep-Alive", "Proxy-Connection":
		return "", fmt.Errorf("header %q belongs to the connection, a token cannot set it", name)
	}
	if !httpguts.ValidHeaderFieldName(name) {
		return "", fmt.Errorf("%q is no header name", name)
	}
	return canonical, nil
}

func (p *provider) compileKeys(c *jwtv3.JwtProvider) error {
	switch s := c.GetJwksSourceSpecifier().(type) {
	case *jwtv3.JwtProvider_LocalJwks:
		var raw []byte
		switch d := s.LocalJwks.GetSpecifier().(type) {
		case *corev3.DataSource_InlineString:
			raw = []byte(d.InlineString)
		case *corev3.DataSource_InlineBytes:
			raw = d.InlineBytes
		default:
			return fmt.Errorf("local_jwks %T: %w", d, strict.ErrUnsupported)
		}
		keys, err := jwt.ParseKeys(raw, false)
		if err != nil {
			return fmt.Errorf("local_jwks: %w", err)
		}
		if keys.Len() == 0 {
			return errors.New("local_jwks has no usable key") // Envoy refuses it too
		}
		p.keys = keys
		return nil
	case *jwtv3.JwtProvider_RemoteJwks:
		src, err := compileSource(s.RemoteJwks)
		p.source = src
		return err
	}
	return errors.New("neither local_jwks nor remote_jwks is given: no token could be verified")
}

func compileSource(p *jwtv3.RemoteJwks) (*jwt.Source, error) {
	// How often is tried again within one fetch (retry_policy) is ours to decide: a failed fetch is repeated anyway.
	if err := strict.Only(p, "http_uri", "cache_duration", "async_fetch", "retry_policy"); err != nil {
		return nil, err
	}
	if err := strict.Only(p.GetHttpUri(), "uri", "cluster", "timeout"); err != nil {
		return nil, fmt.Errorf("http_uri: %w", err)
	}
	s := &jwt.Source{
		URI: p.GetHttpUri().GetUri(), Cluster: p.GetHttpUri().GetCluster(),
		Timeout: defaultFetch, Cache: defaultCache, Retry: defaultRefetch,
	}
	if !strings.HasPrefix(s.URI, "http://") && !strings.HasPrefix(s.URI, "https://") {
		return nil, fmt.Errorf("http_uri.uri %q is no http or https URL", s.URI)
	}
	if s.Cluster == "" {
		return nil, errors.New("http_uri.cluster is empty")
	}
	if d := p.GetHttpUri().GetTimeout().AsDuration(); d > 0 {
		s.Timeout = d
	}
	if d := p.GetCacheDuration().AsDuration(); d > 0 {
		s.Cache = d
	}
	if d := p.GetAsyncFetch().GetFailedRefetchDuration().AsDuration(); d > 0 {
		s.Retry = d
	}
	return s, nil
}

type requirementCompiler struct {
	providers map[string]*provider
	all       []*provider
	named     map[string]requirement
}

func (c *requirementCompiler) rule(p *jwtv3.RequirementRule) (tokenRule, error) {
	var out tokenRule
	m := p.GetMatch()
	if err := strict.Only(m, "prefix", "path", "case_sensitive", "headers"); err != nil {
		return out, fmt.Errorf("match: %w", err)
	}
	out.fold = m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	switch s := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out.prefix = s.Prefix
	case *routev3.RouteMatch_Path:
		out.exact = s.Path
	default:
		return out, fmt.Errorf("match: path specifier %T: %w", s, strict.ErrUnsupported)
	}
	var err error
	if out.headers, err = match.CompileHeaders(m.GetHeaders()); err != nil {
		return out, fmt.Errorf("match: %w", err)
	}
	switch r := p.GetRequirementType().(type) {
	case nil:
	case *jwtv3.RequirementRule_Requires:
		out.needs, err = c.compile(r.Requires, 0)
	case *jwtv3.RequirementRule_RequirementName:
		if out.needs = c.named[r.RequirementName]; out.needs == nil {
			err = fmt.Errorf("requirement_name %q is not in requirement_map", r.RequirementName)
		}
	}
	return out, err
}

func (c *requirementCompiler) provider(name string) (*provider, error) {
	p := c.providers[name]
	if p == nil {
		return nil, fmt.Errorf("provider %q is not configured", name)
	}
	return p, nil
}

// compile is nil for a requirement that demands nothing.
func (c *requirementCompiler) compile(p *jwtv3.JwtRequirement, depth int) (requirement, error) {
	if depth > maxNested {
		return nil, fmt.Errorf("requirements are nested more than %d deep", maxNested)
	}
	switch r := p.GetRequiresType().(type) {
	case *jwtv3.JwtRequirement_ProviderName:
		one, err := c.provider(r.ProviderName)
		return byProvider{p: one}, err
	case *jwtv3.JwtRequirement_ProviderAndAudiences:
		one, err := c.provider(r.ProviderAndAudiences.GetProviderName())
		return byProvider{p: one, audiences: r.ProviderAndAudiences.GetAudiences()}, err
	case *jwtv3.JwtRequirement_RequiresAny:
		return c.any(r.RequiresAny.GetRequirements(), depth)
	case *jwtv3.JwtRequirement_RequiresAll:
		var all requireAll
		for _, one := range r.RequiresAll.GetRequirements() {
			need, err := c.compile(one, depth+1)
			if err != nil {
				return nil, fmt.Errorf("requires_all: %w", err)
			}
			all = append(all, need)
		}
		return all, nil
	case *jwtv3.JwtRequirement_AllowMissing:
		return anyProvider{all: c.all}, nil
	case *jwtv3.JwtRequirement_AllowMissingOrFailed:
		return anyProvider{all: c.all, failed: true}, nil
	}
	return nil, fmt.Errorf("requirement %T: %w", p.GetRequiresType(), strict.ErrUnsupported)
}

func (c *requirementCompiler) any(list []*jwtv3.JwtRequirement, depth int) (requirement, error) {
	var out requireAny
	for _, one := range list {
		switch one.GetRequiresType().(type) {
		case *jwtv3.JwtRequirement_AllowMissing:
			out.missing = true
			continue
		case *jwtv3.JwtRequirement_AllowMissingOrFailed:
			out.failed = true
			continue
		}
		need, err := c.compile(one, depth+1)
		if err != nil {
			return nil, fmt.Errorf("requires_any: %w", err)
		}
		out.needs = append(out.needs, need)
	}
	if len(out.needs) == 0 {
		return anyProvider{all: c.all, failed: out.failed}, nil
	}
	return out, nil
}
