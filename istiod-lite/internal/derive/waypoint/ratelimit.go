package waypoint

import (
	"encoding/hex"
	"encoding/json"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/config/ratelimit/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	globalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	setmetadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_metadata/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/policy"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// Names that belong to rate limits.
const (
	limitFilter = "marrow.ratelimit"
	quotaFilter = "marrow.ratelimit.quotas"
	// quotaSpace holds the limits that go along with a question; routeSpace marks the routes of an HTTPRoute that is targeted.
	quotaSpace = "marrow.ratelimit"
	routeSpace = "marrow.policy"
	// nobodyAnswers is the cluster of a rate limit service that cannot be reached by its reference.
	nobodyAnswers = "marrow.ratelimit.unresolved"
)

const (
	defaultKeys       = 10_000
	defaultAskTimeout = 100 * time.Millisecond
	defaultDomain     = "marrow"
)

// limitRule is one rule of a policy where it applies.
type limitRule struct {
	owner *policy.RateLimitPolicy
	rule  *policy.RateLimitRule
	id    string // namespace/policy/rule
	route string // namespace/name of the HTTPRoute to whose requests it is confined; empty = all
}

// limitGroup are the rules that one filter carries out, since they agree on everything but what is counted.
type limitGroup struct {
	name   string
	global bool
	owner  *policy.RateLimitPolicy // the first; the others have equal settings
	rules  []limitRule
}

type limitSet []limitGroup

// limitsFor picks the rate limits of a service port; nil stands for the chains of workloads.
func (d *derivation) limitsFor(s *Service, p Port) limitSet {
	at := map[string]int{}
	var out limitSet
	for _, o := range d.in.RateLimits {
		for _, route := range d.limitScopes(o, s, p) {
			for i := range o.Spec.Rules {
				r := &o.Spec.Rules[i]
				name := groupName(o, r)
				g, ok := at[name]
				if !ok {
					g = len(out)
					at[name] = g
					out = append(out, limitGroup{name: name, global: r.Scope == policy.ScopeGlobal, owner: o})
				}
				out[g].rules = append(out[g].rules, limitRule{owner: o, rule: r, id: ruleID(o, i), route: route})
			}
		}
	}
	slices.SortFunc(out, func(a, b limitGroup) int { return strings.Compare(a.name, b.name) })
	return out
}

func ruleID(o *policy.RateLimitPolicy, index int) string {
	name := o.Spec.Rules[index].Name
	if name == "" {
		name = strconv.Itoa(index)
	}
	return o.Namespace + "/" + o.Name + "/" + name
}

// limitScopes says where a policy applies at a service port: "" for all requests, or the names of HTTPRoutes; none for nowhere.
func (d *derivation) limitScopes(o *policy.RateLimitPolicy, s *Service, p Port) []string {
	var routes []string
	for _, ref := range o.Spec.TargetRefs {
		switch {
		case ref.Kind == "Gateway":
			if o.Namespace == d.in.Gateway.Namespace && ref.Name == d.in.Gateway.Name {
				return []string{""}
			}
		case d.in.Edge != nil:
			if ref.Kind == "HTTPRoute" && d.in.Edge.serves(o.Namespace, ref.Name) {
				routes = append(routes, o.Namespace+"/"+ref.Name)
			}
		case s == nil:
		case ref.Kind == "Service":
			if s.Kind == ref.Kind && o.Namespace == s.Namespace && ref.Name == s.Name {
				return []string{""}
			}
		case ref.Kind == "HTTPRoute":
			if d.routeReaches(o.Namespace, ref.Name, s, p) {
				routes = append(routes, o.Namespace+"/"+ref.Name)
			}
		}
	}
	slices.Sort(routes)
	return slices.Compact(routes)
}

func (d *derivation) routeReaches(namespace, name string, s *Service, p Port) bool {
	return slices.ContainsFunc(d.in.HTTPRoutes, func(r *gatewayv1.HTTPRoute) bool {
		return r.Namespace == namespace && r.Name == name && d.attached(r.Spec.ParentRefs, r.Namespace, s, p)
	})
}

// markRoutes lets rate limits tell the requests of a targeted HTTPRoute.
func (d *derivation) markRoutes(r *gatewayv1.HTTPRoute, routes []ranked) []ranked {
	targeted := slices.ContainsFunc(d.in.RateLimits, func(o *policy.RateLimitPolicy) bool {
		return o.Namespace == r.Namespace && slices.ContainsFunc(o.Spec.TargetRefs, func(t policy.TargetRef) bool {
			return t.Kind == "HTTPRoute" && t.Name == r.Name
		})
	})
	if targeted {
		mark := fields(map[string]*structpb.Value{r.Namespace + "/" + r.Name: text("yes")})
		for _, e := range routes {
			e.route.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{routeSpace: mark}}
		}
	}
	return routes
}

// groupName is equal for rules that can share a filter. What a filter says for all its rules is in it.
func groupName(o *policy.RateLimitPolicy, r *policy.RateLimitRule) string {
	name := limitFilter + ".local"
	settings := struct {
		Response  *policy.RateLimitResponse
		Service   *policy.RateLimitService
		Namespace string
	}{Response: o.Spec.Response}
	if r.Scope == policy.ScopeGlobal {
		name = limitFilter + ".global"
		settings.Service, settings.Namespace = o.Spec.Service, serviceNamespace(o)
	}
	if o.Spec.Mode == policy.ModeObserve {
		name += ".observe"
	}
	if settings.Response == nil && settings.Service == nil {
		return name
	}
	raw, err := json.Marshal(settings)
	if err != nil {
		panic(err) // strings and numbers can always be written
	}
	h := fnv.New32a()
	_, _ = h.Write(raw)
	return name + "." + hex.EncodeToString(h.Sum(nil))
}

func serviceNamespace(o *policy.RateLimitPolicy) string {
	if s := o.Spec.Service; s != nil && s.Namespace != "" {
		return s.Namespace
	}
	return o.Namespace
}

// filters are what the chain needs beside what stands in the host. Without rules there is none.
func (d *derivation) limitFilters(set limitSet) []*hcmv3.HttpFilter {
	var out []*hcmv3.HttpFilter
	quotas := map[string]*structpb.Value{}
	for _, g := range set {
		if !g.global {
			out = append(out, httpFilter(g.name, &localv3.LocalRateLimit{StatPrefix: g.name}))
			continue
		}
		f := d.globalFilter(g)
		if f == nil {
			continue
		}
		for _, r := range g.rules {
			quotas[r.id] = structpb.NewStructValue(fields(map[string]*structpb.Value{
				"requests_per_unit": structpb.NewNumberValue(float64(r.rule.Limit.Requests)), "unit": text(limitUnit(r.rule.Limit.Per)),
			}))
		}
		out = append(out, httpFilter(g.name, f))
	}
	if len(quotas) == 0 {
		return out
	}
	set1 := &setmetadatav3.Config{Metadata: []*setmetadatav3.Metadata{{MetadataNamespace: quotaSpace, Value: fields(quotas)}}}
	return append([]*hcmv3.HttpFilter{httpFilter(quotaFilter, set1)}, out...)
}

// onHost puts what is counted into a virtual host.
func (d *derivation) limitsOnHost(set limitSet, host map[string]*anypb.Any) map[string]*anypb.Any {
	for _, g := range set {
		switch {
		case !g.global:
			host[g.name] = pack(d.localLimit(g))
		case d.limitService(g.owner) != "" || g.denies():
			per := &globalv3.RateLimitPerRoute{}
			for _, r := range g.rules {
				per.RateLimits = append(per.RateLimits, d.rateLimits(r, true)...)
			}
			host[g.name] = pack(per)
		}
	}
	return host
}

func limitUnit(w policy.Window) string {
	return map[policy.Window]string{
		policy.PerSecond: "SECOND", policy.PerMinute: "MINUTE", policy.PerHour: "HOUR", policy.PerDay: "DAY",
	}[w]
}

func windowOf(w policy.Window) time.Duration {
	return map[policy.Window]time.Duration{
		policy.PerSecond: time.Second, policy.PerMinute: time.Minute, policy.PerHour: time.Hour, policy.PerDay: 24 * time.Hour,
	}[w]
}

func percent(n uint32) *corev3.RuntimeFractionalPercent {
	return &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: n}}
}

// enforced is the share of requests over a limit that are refused.
func (g *limitGroup) enforced() *corev3.RuntimeFractionalPercent {
	if g.owner.Spec.Mode == policy.ModeObserve {
		return percent(0)
	}
	return percent(100)
}

func (g *limitGroup) denies() bool { return g.owner.Spec.Service.Failure == policy.FailureDeny }

func (g *limitGroup) status() *typev3.HttpStatus {
	if r := g.owner.Spec.Response; r != nil && r.Status != nil {
		return &typev3.HttpStatus{Code: typev3.StatusCode(*r.Status)}
	}
	return nil
}

func (g *limitGroup) headers() []*corev3.HeaderValueOption {
	if g.owner.Spec.Response == nil {
		return nil
	}
	var out []*corev3.HeaderValueOption
	for _, h := range g.owner.Spec.Response.Headers {
		out = append(out, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: h.Name, Value: strings.ReplaceAll(h.Value, "%", "%%")},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return out
}

func yes(b *bool) bool { return b != nil && *b }

func (g *limitGroup) exhausted() bool {
	return g.owner.Spec.Response != nil && yes(g.owner.Spec.Response.ResourceExhausted)
}

func (g *limitGroup) tells() bool {
	return g.owner.Spec.Response != nil && yes(g.owner.Spec.Response.LimitHeaders)
}

func bucketOf(l policy.RateLimit) *typev3.TokenBucket {
	burst := l.Requests
	if l.Burst != nil {
		burst = *l.Burst
	}
	return &typev3.TokenBucket{MaxTokens: uint32(burst), TokensPerFill: uintValue(uint32(l.Requests)), FillInterval: durationpb.New(windowOf(l.Per))}
}

// localLimit counts in the waypoint. Envoy wants a bucket for requests that fit no rule; it is as good as endless.
func (d *derivation) localLimit(g limitGroup) *localv3.LocalRateLimit {
	out := &localv3.LocalRateLimit{
		StatPrefix: g.name, Status: g.status(), FilterEnabled: percent(100), FilterEnforced: g.enforced(), ResponseHeadersToAdd: g.headers(),
		TokenBucket:                     &typev3.TokenBucket{MaxTokens: math.MaxUint32, TokensPerFill: uintValue(math.MaxUint32), FillInterval: durationpb.New(time.Second)},
		AlwaysConsumeDefaultTokenBucket: boolValue(false), RateLimitedAsResourceExhausted: g.exhausted(),
	}
	keys := uint32(0)
	for _, r := range g.rules {
		for _, l := range d.rateLimits(r, false) {
			if g.tells() {
				l.XRatelimitOption = routev3.RateLimit_DRAFT_VERSION_03
			}
			out.RateLimits = append(out.RateLimits, l)
			out.Descriptors = append(out.Descriptors, &commonv3.LocalRateLimitDescriptor{Entries: descriptorOf(l), TokenBucket: bucketOf(r.rule.Limit)})
		}
		if k := r.rule.Key; k != nil && k.Type != policy.KeyNone {
			n := uint32(defaultKeys)
			if k.MaxKeys != nil {
				n = uint32(*k.MaxKeys)
			}
			keys = max(keys, n)
		}
	}
	if keys > 0 {
		out.MaxDynamicDescriptors = uintValue(keys)
	}
	return out
}

// globalFilter asks the service; nil when there is none to ask and the policy lets through then.
func (d *derivation) globalFilter(g limitGroup) *globalv3.RateLimit {
	s := g.owner.Spec.Service
	cluster := d.limitService(g.owner)
	if cluster == "" {
		if !g.denies() {
			return nil
		}
		cluster = nobodyAnswers
		d.extra[cluster] = &clusterv3.Cluster{
			Name: cluster, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			ConnectTimeout:                durationpb.New(time.Second),
			TypedExtensionProtocolOptions: httpOptions(serviceHTTPOptions(HTTP2, nil)),
		}
	}
	out := &globalv3.RateLimit{
		Domain: s.Domain, Timeout: durationpb.New(defaultAskTimeout), FailureModeDeny: g.denies(), RateLimitedAsResourceExhausted: g.exhausted(),
		RateLimitService: &ratelimitv3.RateLimitServiceConfig{
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster, Authority: s.Name + "." + serviceNamespace(g.owner)},
			}},
		},
		RateLimitedStatus: g.status(), ResponseHeadersToAdd: g.headers(), FilterEnforced: g.enforced(),
	}
	if out.GetDomain() == "" {
		out.Domain = defaultDomain
	}
	if t, err := time.ParseDuration(s.Timeout); err == nil && t > 0 {
		out.Timeout = durationpb.New(t)
	}
	if g.tells() {
		out.EnableXRatelimitHeaders = globalv3.RateLimit_DRAFT_VERSION_03
	}
	return out
}

// limitService is the cluster of a policy's service; empty when the reference leads nowhere.
func (d *derivation) limitService(o *policy.RateLimitPolicy) string {
	s, p, problem := d.resolveLimitService(o)
	if problem != "" {
		return ""
	}
	return d.cluster(s, p, "", true)
}

func (d *derivation) resolveLimitService(o *policy.RateLimitPolicy) (*Service, Port, string) {
	ref, namespace := o.Spec.Service, serviceNamespace(o)
	name := "Service " + namespace + "/" + ref.Name
	if namespace != o.Namespace && namespace != d.in.Mesh.RootNamespace {
		return nil, Port{}, name + " is neither of the policy's namespace nor of " + d.in.Mesh.RootNamespace
	}
	s := d.services[kube.Hostname(ref.Name, namespace, d.in.Mesh.ClusterDomain)]
	if s == nil {
		return nil, Port{}, name + " does not exist"
	}
	p, ok := s.port(uint32(ref.Port))
	switch {
	case !ok:
		return nil, Port{}, name + " has no port " + decimal(uint32(ref.Port))
	case p.Protocol != HTTP2:
		return nil, Port{}, name + ": port " + decimal(p.Number) + " does not declare gRPC; name it grpc or give it the appProtocol"
	}
	return s, p, ""
}
