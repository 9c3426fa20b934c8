package waypoint

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

const (
	// jwtFilter is the filter's name and that of its metadata, which Envoy does not let anybody choose.
	jwtFilter  = "envoy.filters.http.jwt_authn"
	jwtPayload = "payload"

	jwksTimeout = 5 * time.Second
	jwksCache   = 5 * time.Minute
	jwksRetry   = 5 * time.Second
)

// tokenRule is one rule of a RequestAuthentication.
type tokenRule struct {
	object *securityv1.RequestAuthentication
	index  int
	rule   *securityapi.JWTRule
}

func (r tokenRule) provider() string {
	return "ns[" + r.object.Namespace + "]-request[" + r.object.Name + "]-rule[" + strconv.Itoa(r.index) + "]"
}

// tokenRules are the rules for a service's chains, by issuer; nil stands for the chains of workloads.
func (d *derivation) tokenRules(s *Service) []tokenRule {
	var out []tokenRule
	for _, o := range d.in.Authentications {
		refs := o.Spec.GetTargetRefs()
		if one := o.Spec.GetTargetRef(); len(refs) == 0 && one != nil {
			refs = []*typeapi.PolicyTargetReference{one}
		}
		if !slices.ContainsFunc(refs, func(ref *typeapi.PolicyTargetReference) bool { return d.targets(ref, o.Namespace, s) }) && !d.tokensAtEdge(o) {
			continue
		}
		for i, r := range o.Spec.GetJwtRules() {
			out = append(out, tokenRule{object: o, index: i, rule: r})
		}
	}
	slices.SortStableFunc(out, func(a, b tokenRule) int {
		return cmp.Or(cmp.Compare(a.rule.GetIssuer(), b.rule.GetIssuer()), cmp.Compare(a.object.Namespace, b.object.Namespace),
			cmp.Compare(a.object.Name, b.object.Name), cmp.Compare(a.index, b.index))
	})
	return out
}

// tokenFilter verifies tokens in a service's chains; nothing where no rule applies.
func (d *derivation) tokenFilter(s *Service) []*hcmv3.HttpFilter {
	rules := d.tokenRules(s)
	if len(rules) == 0 {
		return nil
	}
	m := &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{}, BypassCorsPreflight: true}
	var each, optional []*jwtv3.JwtRequirement
	for _, r := range rules {
		m.Providers[r.provider()] = d.tokenProvider(r)
		one := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: r.provider()}}
		missing := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}
		each = append(each, one)
		optional = append(optional, needAny(one, missing))
	}
	needs := optional[0]
	if len(rules) > 1 {
		// One good token is enough; without any, what there is at each issuer's places must be nothing.
		needs = needAny(append(each, &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{
			RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: optional},
		}})...)
	}
	m.Rules = []*jwtv3.RequirementRule{{Match: everything(), RequirementType: &jwtv3.RequirementRule_Requires{Requires: needs}}}
	return []*hcmv3.HttpFilter{httpFilter(jwtFilter, m)}
}

func needAny(list ...*jwtv3.JwtRequirement) *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{Requirements: list}}}
}

func (d *derivation) tokenProvider(r tokenRule) *jwtv3.JwtProvider {
	p := &jwtv3.JwtProvider{
		Issuer: r.rule.GetIssuer(), Audiences: r.rule.GetAudiences(), Forward: r.rule.GetForwardOriginalToken(),
		PayloadInMetadata: jwtPayload, ClearRouteCache: d.claimsChoose(),
		NormalizePayloadInMetadata: &jwtv3.JwtProvider_NormalizePayload{
			SpaceDelimitedClaims: wordClaims(r.rule.GetSpaceDelimitedClaims()),
		},
		FromParams: given(r.rule.GetFromParams()), FromCookies: given(r.rule.GetFromCookies()),
	}
	report := func(reason, format string, args ...any) {
		d.report("RequestAuthentication", r.object.Namespace, r.object.Name, reason, "jwtRules["+strconv.Itoa(r.index)+"]."+fmt.Sprintf(format, args...))
	}
	broken := false
	for i, h := range r.rule.GetFromHeaders() {
		if problem := plainHeaderProblem(h.GetName(), h.GetPrefix()); problem != "" {
			report(reasonInvalid, "fromHeaders[%d]: %s; tokens of this issuer are refused", i, problem)
			broken = true
			continue
		}
		p.FromHeaders = append(p.FromHeaders, &jwtv3.JwtHeader{Name: h.GetName(), ValuePrefix: h.GetPrefix()})
	}
	if h := r.rule.GetOutputPayloadToHeader(); h != "" {
		if problem := outputProblem(h); problem == "" {
			p.ForwardPayloadHeader = h
		} else {
			report(reasonInvalid, "outputPayloadToHeader: %s; it is not set", problem)
		}
	}
	for i, o := range r.rule.GetOutputClaimToHeaders() {
		problem := outputProblem(o.GetHeader())
		if o.GetClaim() == "" {
			problem = "the claim has no name"
		}
		if problem != "" {
			report(reasonInvalid, "outputClaimToHeaders[%d]: %s; it is not set", i, problem)
			continue
		}
		p.ClaimToHeaders = append(p.ClaimToHeaders, &jwtv3.JwtClaimToHeader{HeaderName: o.GetHeader(), ClaimName: o.GetClaim()})
	}
	if broken {
		localKeys(p, nobodysKey)
		return p
	}
	d.tokenKeys(p, r, report)
	return p
}

func given(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "" })
}

// wordClaims are the claims that hold words; two always do.
func wordClaims(more []string) []string {
	out := append(given(more), "permission", "scope")
	slices.Sort(out)
	return slices.Compact(out)
}

// outputProblem refuses headers that would change where a request goes or how it is read.
func outputProblem(name string) string {
	switch strings.ToLower(name) {
	case "host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive", "proxy-connection":
		return "header " + quoted(name) + " belongs to the connection, a token cannot set it"
	}
	return plainHeaderProblem(name, "")
}

// plainHeaderProblem is for places where a pseudo header makes no sense.
func plainHeaderProblem(name, value string) string {
	if strings.HasPrefix(name, ":") {
		return "header name " + quoted(name) + " is not allowed"
	}
	return headerProblem(name, value)
}

func localKeys(p *jwtv3.JwtProvider, text string) {
	p.JwksSourceSpecifier = &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{
		Specifier: &corev3.DataSource_InlineString{InlineString: text},
	}}
}

// tokenKeys says where the issuer's keys are. Keys that cannot be had make its tokens refused.
func (d *derivation) tokenKeys(p *jwtv3.JwtProvider, r tokenRule, report func(reason, format string, args ...any)) {
	localKeys(p, nobodysKey)
	switch text, uri := r.rule.GetJwks(), r.rule.GetJwksUri(); {
	case text != "":
		set, err := readKeys(text)
		if err != nil {
			report(reasonInvalid, "jwks: %v; tokens of this issuer are refused", err)
			return
		}
		if set.private {
			report("PrivateKey", "jwks: holds a private key; only its public half is used, replace the key")
		}
		if set.skipped > 0 {
			report(reasonInvalid, "jwks: %d of its keys can verify nothing and are left out", set.skipped)
		}
		localKeys(p, set.text)
	case uri != "":
		cluster, outside, err := d.jwksCluster(uri, r.object.Namespace)
		if err != nil {
			report(reasonInvalid, "jwksUri: %v; tokens of this issuer are refused", err)
			return
		}
		timeout := r.rule.GetTimeout().AsDuration()
		if timeout <= 0 {
			timeout = jwksTimeout
		}
		remote := &jwtv3.RemoteJwks{
			HttpUri: &corev3.HttpUri{
				Uri: uri, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster}, Timeout: durationpb.New(timeout),
			},
			CacheDuration: durationpb.New(jwksCache),
		}
		if outside {
			// Envoy fetches ahead of requests in its main thread, from which there is no way into tunnels: a source in the mesh is asked
			// with the first request. No listener waits for it: a dead issuer must not hold back everybody's configuration.
			remote.AsyncFetch = &jwtv3.JwksAsyncFetch{FastListener: true, FailedRefetchDuration: durationpb.New(jwksRetry)}
		}
		p.JwksSourceSpecifier = &jwtv3.JwtProvider_RemoteJwks{RemoteJwks: remote}
	default:
		report(reasonUnsupported, "jwksUri: neither jwks nor jwksUri is given, and the issuer's OpenID configuration is not asked; tokens of this issuer are refused")
	}
}
