package waypoint

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httpauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	meshapi "istio.io/api/mesh/v1alpha1"
)

// authzServer is an extension provider that decides about requests, ready for chains.
type authzServer struct {
	name    string
	cluster string
	want    clusterWant
	http    *httpauthzv3.ExtAuthz
	tcp     *networkauthzv3.ExtAuthz // nil = it decides about requests only
}

const (
	customPolicyPrefix = "istio-ext-authz-"
	noAnswerYet        = 600 * time.Second // how long Istio waits where nothing is said
)

// server finds the provider that a CUSTOM policy names.
func (d *derivation) server(name string) (*authzServer, error) {
	var found *meshapi.MeshConfig_ExtensionProvider
	for _, p := range d.in.Mesh.Config.GetExtensionProviders() {
		if p.GetName() != name {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("extension provider %q is declared twice in the mesh's settings", name)
		}
		found = p
	}
	if found == nil || name == "" {
		return nil, fmt.Errorf("extension provider %q is not among extensionProviders of the mesh's settings", name)
	}
	s := &authzServer{name: name}
	var err error
	switch p := found.GetProvider().(type) {
	case *meshapi.MeshConfig_ExtensionProvider_EnvoyExtAuthzGrpc:
		err = d.overGRPC(s, p.EnvoyExtAuthzGrpc)
	case *meshapi.MeshConfig_ExtensionProvider_EnvoyExtAuthzHttp:
		err = d.overHTTP(s, p.EnvoyExtAuthzHttp)
	default:
		err = errors.New("is neither envoyExtAuthzGrpc nor envoyExtAuthzHttp")
	}
	if err != nil {
		return nil, fmt.Errorf("extension provider %q: %w", name, err)
	}
	return s, nil
}

// reach finds the provider's service and names the cluster that leads to it. It has a cluster of its own, because it has to be spoken
// to in its protocol whatever the port declares.
func (d *derivation) reach(s *authzServer, service string, port uint32, grpc bool) (err error) {
	s.cluster, s.want, err = d.provided("ext-authz", service, port, grpc)
	return err
}

// provided names the cluster that leads to an extension provider's service, whatever its use.
func (d *derivation) provided(use, service string, port uint32, grpc bool) (string, clusterWant, error) {
	namespace, host, qualified := strings.Cut(service, "/")
	if !qualified {
		namespace, host = "", service
	}
	i := slices.IndexFunc(d.in.Services, func(x Service) bool {
		return x.Hostname == host && (namespace == "" || x.Namespace == namespace)
	})
	if i < 0 {
		return "", clusterWant{}, fmt.Errorf("service %q is not known; want [<namespace>/]<hostname>", service)
	}
	target := &d.in.Services[i]
	p, ok := target.port(port)
	if !ok {
		return "", clusterWant{}, fmt.Errorf("service %q has no port %d", service, port)
	}
	kind := "http"
	switch {
	case grpc:
		kind, p.Protocol = "grpc", HTTP2
	case p.Protocol != HTTP2:
		p.Protocol = HTTP
	}
	return use + "|" + decimal(port) + "|" + kind + "|" + host, clusterWant{service: target, port: p, http: true}, nil
}

// common are the fields that both kinds of providers have.
type common struct {
	timeout  *durationpb.Duration
	failOpen bool
	clear    bool
	onError  string
	body     *meshapi.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody
}

func (c common) filter(s *authzServer) (*httpauthzv3.ExtAuthz, error) {
	f := &httpauthzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3, FailureModeAllow: c.failOpen, ClearRouteCache: c.clear,
		FilterEnabledMetadata: s.asked("envoy.filters.http.rbac"),
	}
	if c.onError != "" {
		n, err := strconv.ParseInt(c.onError, 10, 32)
		if _, known := typev3.StatusCode_name[int32(n)]; err != nil || !known || n < 200 {
			return nil, fmt.Errorf("statusOnError %q is no HTTP status", c.onError)
		}
		f.StatusOnError = &typev3.HttpStatus{Code: typev3.StatusCode(n)}
	}
	if c.timeout != nil && c.timeout.AsDuration() <= 0 {
		return nil, fmt.Errorf("timeout %v is not positive", c.timeout.AsDuration())
	}
	if b := c.body; b != nil {
		if b.GetMaxRequestBytes() == 0 {
			return nil, errors.New("includeRequestBodyInCheck.maxRequestBytes is 0; say how much of a body is sent")
		}
		f.WithRequestBody = &httpauthzv3.BufferSettings{
			MaxRequestBytes: b.GetMaxRequestBytes(), AllowPartialMessage: b.GetAllowPartialMessage(), PackAsBytes: b.GetPackAsBytes(),
		}
	}
	return f, nil
}

func (c common) limit() *durationpb.Duration {
	if c.timeout == nil {
		return durationpb.New(noAnswerYet)
	}
	return c.timeout
}

func (d *derivation) overGRPC(s *authzServer, p *meshapi.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider) error {
	if err := d.reach(s, p.GetService(), p.GetPort(), true); err != nil {
		return err
	}
	c := common{p.GetTimeout(), p.GetFailOpen(), p.GetClearRouteCache(), p.GetStatusOnError(), p.GetIncludeRequestBodyInCheck()}
	f, err := c.filter(s)
	if err != nil {
		return err
	}
	call := &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: s.cluster,
			// A cluster's name has characters that no authority may have.
			Authority: s.want.service.Hostname + ":" + decimal(p.GetPort()),
		}},
		Timeout: c.limit(),
	}
	f.Services = &httpauthzv3.ExtAuthz_GrpcService{GrpcService: call}
	s.http = f
	s.tcp = &networkauthzv3.ExtAuthz{
		StatPrefix: "tcp.", TransportApiVersion: corev3.ApiVersion_V3, FailureModeAllow: p.GetFailOpen(), GrpcService: call,
		FilterEnabledMetadata: s.asked("envoy.filters.network.rbac"),
	}
	return nil
}

func (d *derivation) overHTTP(s *authzServer, p *meshapi.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) error {
	if err := d.reach(s, p.GetService(), p.GetPort(), false); err != nil {
		return err
	}
	c := common{p.GetTimeout(), p.GetFailOpen(), p.GetClearRouteCache(), p.GetStatusOnError(), p.GetIncludeRequestBodyInCheck()}
	f, err := c.filter(s)
	if err != nil {
		return err
	}
	if v := p.GetPathPrefix(); v != "" && (!strings.HasPrefix(v, "/") || strings.ContainsAny(v, "?# ")) {
		return fmt.Errorf("pathPrefix %q is not a path that begins with a slash", v)
	}
	call := &httpauthzv3.HttpService{
		PathPrefix: p.GetPathPrefix(),
		ServerUri: &corev3.HttpUri{
			Uri: "http://" + s.want.service.Hostname, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: s.cluster}, Timeout: c.limit(),
		},
	}
	include := p.GetIncludeRequestHeadersInCheck()
	if len(include) == 0 {
		include = p.GetIncludeHeadersInCheck() //nolint:staticcheck // the older name of the same field
	}
	if f.AllowedHeaders, err = headerNames("includeRequestHeadersInCheck", include); err != nil {
		return err
	}
	if added := p.GetIncludeAdditionalHeadersInCheck(); len(added) > 0 {
		r := &httpauthzv3.AuthorizationRequest{}
		for _, k := range slices.Sorted(maps.Keys(added)) {
			if problem := headerProblem(k, added[k]); problem != "" {
				return fmt.Errorf("includeAdditionalHeadersInCheck: %s", problem)
			}
			r.HeadersToAdd = append(r.HeadersToAdd, &corev3.HeaderValue{Key: k, Value: added[k]})
		}
		call.AuthorizationRequest = r
	}
	answer := &httpauthzv3.AuthorizationResponse{}
	if answer.AllowedUpstreamHeaders, err = headerNames("headersToUpstreamOnAllow", p.GetHeadersToUpstreamOnAllow()); err != nil {
		return err
	}
	if answer.AllowedClientHeaders, err = headerNames("headersToDownstreamOnDeny", p.GetHeadersToDownstreamOnDeny()); err != nil {
		return err
	}
	if answer.AllowedClientHeadersOnSuccess, err = headerNames("headersToDownstreamOnAllow", p.GetHeadersToDownstreamOnAllow()); err != nil {
		return err
	}
	call.AuthorizationResponse = answer
	f.Services = &httpauthzv3.ExtAuthz_HttpService{HttpService: call}
	s.http = f
	return nil
}

// headerNames reads a list of names, each exact, "x-*" or "*-x".
func headerNames(field string, list []string) (*matcherv3.ListStringMatcher, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := &matcherv3.ListStringMatcher{}
	for _, v := range list {
		if strings.Trim(v, "*") == "" {
			return nil, fmt.Errorf("%s: %q names no header", field, v)
		}
		m := wildcard(strings.ToLower(v))
		m.IgnoreCase = true
		out.Patterns = append(out.Patterns, m)
	}
	return out, nil
}

// shadowPrefix and asked make a provider's own mark, so that no provider is asked because of a policy of another whose name is longer.
func (s *authzServer) shadowPrefix() string { return "istio_ext_authz_" + s.name + "_" }

func (s *authzServer) asked(filter string) *matcherv3.MetadataMatcher {
	return &matcherv3.MetadataMatcher{
		Filter: filter,
		Path: []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{
			Key: s.shadowPrefix() + "shadow_effective_policy_id",
		}}},
		Value: &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: prefixed(customPolicyPrefix)}},
	}
}

func (s *authzServer) rbacName() string   { return "marrow.ext_authz.rbac." + s.name }
func (s *authzServer) filterName() string { return "marrow.ext_authz." + s.name }

// servers are the providers that a set's policies ask, in the order of their names.
func (set policySet) servers() []*authzServer {
	byName := map[string]*authzServer{}
	for _, c := range set {
		if c.kind == customKind {
			byName[c.server.name] = c.server
		}
	}
	out := make([]*authzServer, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, byName[name])
	}
	return out
}

// questions are the conditions under which a server is asked.
func (set policySet) questions(s *authzServer, http bool) *rbacv3.RBAC {
	out := &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{}}
	for _, c := range set {
		if c.kind != customKind || c.server.name != s.name {
			continue
		}
		policies := c.tcp
		if http {
			policies = c.http
		}
		maps.Copy(out.GetPolicies(), policies)
	}
	return out
}

// customHTTP are the filters by which servers are asked. Which requests they are asked about stands in the virtual host, as with the
// other policies; a host that lost it is closed.
func (d *derivation) customHTTP(set policySet) []*hcmv3.HttpFilter {
	var out []*hcmv3.HttpFilter
	for _, s := range set.servers() {
		d.wanted[s.cluster] = s.want
		out = append(out,
			httpFilter(s.rbacName(), &httprbacv3.RBAC{
				Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}, ShadowRulesStatPrefix: s.shadowPrefix(),
			}),
			httpFilter(s.filterName(), s.http))
	}
	return out
}

// customTCP asks once, when the connection opens.
func (d *derivation) customTCP(set policySet) []*listenerv3.Filter {
	var out []*listenerv3.Filter
	for _, s := range set.servers() {
		if s.tcp == nil {
			continue // it knows requests only
		}
		d.wanted[s.cluster] = s.want
		out = append(out,
			networkFilter(s.rbacName(), &networkrbacv3.RBAC{
				StatPrefix: "tcp.", ShadowRules: set.questions(s, false), ShadowRulesStatPrefix: s.shadowPrefix(),
			}),
			networkFilter(s.filterName(), s.tcp))
	}
	return out
}
