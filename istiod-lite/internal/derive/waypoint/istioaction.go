package waypoint

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

const million = 1_000_000

// istioAction gives the route what the rule says to do.
func (d *derivation) istioAction(v *networkingv1.VirtualService, rule *networkingapi.HTTPRoute, p Port, r *routev3.Route) error {
	headers := istioHeaders(rule.GetHeaders())
	if problem := headers.problem(); problem != "" {
		return fmt.Errorf("headers: %s", problem)
	}
	switch {
	case rule.GetRedirect() != nil:
		if err := istioRedirect(rule.GetRedirect(), p, r); err != nil {
			return err
		}
		headers.onRoute(r)
		return nil
	case rule.GetDirectResponse() != nil:
		return istioResponse(rule.GetDirectResponse(), r)
	}
	backends := d.istioBackends(v, rule, p)
	if len(backends) == 0 {
		return fmt.Errorf("route: there is no destination with a weight above 0")
	}
	for i, b := range backends {
		if problem := b.headers.problem(); problem != "" {
			return fmt.Errorf("route[%d].headers: %s", i, problem)
		}
	}
	retry, err := d.istioRetry(rule.GetRetries())
	if err != nil {
		return err
	}
	f := forward{
		backends: backends,
		headers:  headers,
		timeout:  rule.GetTimeout().AsDuration(),
		retry:    retry,
		mirrors:  d.istioMirrors(v, rule, p),
		missing:  routev3.RouteAction_SERVICE_UNAVAILABLE,
	}
	f.onRoute(r)
	d.consistentHash(r, backends)
	if err := istioRewrite(rule.GetRewrite(), r); err != nil {
		return err
	}
	return istioFilters(rule, r)
}

// istioFilters sets what stands in the route for the filters before the router.
func istioFilters(rule *networkingapi.HTTPRoute, r *routev3.Route) error {
	configs := map[string]*anypb.Any{}
	if rule.GetFault() != nil {
		fault, err := istioFault(rule.GetFault())
		if err != nil {
			return err
		}
		if fault.GetDelay() != nil || fault.GetAbort() != nil {
			configs[faultFilter] = pack(fault)
		}
	}
	if rule.GetCorsPolicy() != nil {
		cors, err := istioCORS(rule.GetCorsPolicy())
		if err != nil {
			return err
		}
		configs[corsFilter] = pack(cors)
	}
	if len(configs) > 0 {
		r.TypedPerFilterConfig = configs
	}
	return nil
}

func millionths(percent float64) uint32 {
	return uint32(min(max(percent, 0), 100)*(million/100) + 0.5)
}

func fraction(n uint32) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: n, Denominator: typev3.FractionalPercent_MILLION}
}

// istioFault reads delay and abort. Without a percentage nothing is hurt.
func istioFault(f *networkingapi.HTTPFaultInjection) (*faultv3.HTTPFault, error) {
	out := &faultv3.HTTPFault{}
	if delay := f.GetDelay(); delay != nil {
		share := millionths(delay.GetPercentage().GetValue())
		if delay.GetPercentage() == nil {
			share = millionths(float64(delay.GetPercent())) //nolint:staticcheck // older objects say it here
		}
		if t := delay.GetFixedDelay(); t.AsDuration() > 0 && share > 0 {
			out.Delay = &faultcommonv3.FaultDelay{
				FaultDelaySecifier: &faultcommonv3.FaultDelay_FixedDelay{FixedDelay: t},
				Percentage:         fraction(share),
			}
		}
	}
	abort := f.GetAbort()
	share := millionths(abort.GetPercentage().GetValue())
	if abort == nil || share == 0 {
		return out, nil
	}
	out.Abort = &faultv3.FaultAbort{Percentage: fraction(share)}
	switch kind := abort.GetErrorType().(type) {
	case *networkingapi.HTTPFaultInjection_Abort_HttpStatus:
		if kind.HttpStatus < 200 || kind.HttpStatus > 599 {
			return nil, fmt.Errorf("fault.abort.httpStatus: %d is not in 200..599", kind.HttpStatus)
		}
		out.Abort.ErrorType = &faultv3.FaultAbort_HttpStatus{HttpStatus: uint32(kind.HttpStatus)}
	case *networkingapi.HTTPFaultInjection_Abort_GrpcStatus:
		var code codes.Code
		if err := code.UnmarshalJSON([]byte(quoted(kind.GrpcStatus))); err != nil {
			return nil, fmt.Errorf("fault.abort.grpcStatus: %q is not a status such as UNAVAILABLE", kind.GrpcStatus)
		}
		out.Abort.ErrorType = &faultv3.FaultAbort_GrpcStatus{GrpcStatus: uint32(code)}
	default:
		return nil, fmt.Errorf("fault.abort: say httpStatus or grpcStatus")
	}
	return out, nil
}

func retryWord(w string) bool {
	switch w {
	case "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx", "refused-stream",
		"retriable-status-codes", "retriable-headers", "envoy-ratelimited", "http3-post-connect-failure", "cancelled",
		"deadline-exceeded", "internal", "resource-exhausted", "unavailable":
		return true
	}
	return false
}

// istioRetry translates the rule's word on retries, else the mesh's, else Istio's.
func (d *derivation) istioRetry(r *networkingapi.HTTPRetry) (*routev3.RetryPolicy, error) {
	if r == nil {
		r = d.in.Mesh.Config.GetDefaultHttpRetryPolicy()
	}
	if r == nil {
		return defaultRetry(true), nil
	}
	if r.GetAttempts() <= 0 {
		return nil, nil
	}
	on := defaultRetryOn
	var statuses []uint32
	if r.GetRetryOn() != "" {
		var err error
		if on, statuses, err = retryConditions(r.GetRetryOn()); err != nil {
			return nil, err
		}
	}
	others := r.GetRetryIgnorePreviousHosts() == nil || r.GetRetryIgnorePreviousHosts().GetValue()
	p := retryPolicy(uint32(r.GetAttempts()), on, others)
	p.RetriableStatusCodes = statuses
	if r.GetPerTryTimeout().AsDuration() > 0 {
		p.PerTryTimeout = r.GetPerTryTimeout()
	}
	if r.GetBackoff().AsDuration() > 0 {
		p.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: r.GetBackoff()}
	}
	if r.GetRetryRemoteLocalities().GetValue() {
		p.RetryPriority = &routev3.RetryPolicy_RetryPriority{
			Name: "envoy.retry_priorities.previous_priorities",
			ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{
				TypedConfig: pack(&previousprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: 2}),
			},
		}
	}
	return p, nil
}

// retryConditions splits "5xx,503" into words and status codes.
func retryConditions(on string) (words string, statuses []uint32, err error) {
	var kept []string
	for w := range strings.SplitSeq(on, ",") {
		w = strings.TrimSpace(w)
		if n, err := strconv.ParseUint(w, 10, 16); err == nil && n >= 100 && n <= 599 {
			statuses = append(statuses, uint32(n))
			continue
		}
		if !retryWord(w) {
			return "", nil, fmt.Errorf("retries.retryOn: %q is neither a condition nor an HTTP status", w)
		}
		kept = append(kept, w)
	}
	if len(statuses) > 0 && !strings.Contains(on, "retriable-status-codes") {
		kept = append(kept, "retriable-status-codes")
	}
	return strings.Join(kept, ","), statuses, nil
}

func (d *derivation) istioMirrors(v *networkingv1.VirtualService, rule *networkingapi.HTTPRoute, p Port) []*routev3.RouteAction_RequestMirrorPolicy {
	if m := rule.GetMirror(); m != nil {
		share := uint32(million)
		if rule.GetMirrorPercentage() != nil {
			share = millionths(rule.GetMirrorPercentage().GetValue())
		} else if old := rule.GetMirrorPercent(); old != nil { //nolint:staticcheck // older objects say it here
			share = millionths(float64(old.GetValue()))
		}
		return mirror(d.istioBackend(v, m, p, true).cluster, share)
	}
	var out []*routev3.RouteAction_RequestMirrorPolicy
	for _, m := range rule.GetMirrors() {
		share := uint32(million)
		if m.GetPercentage() != nil {
			share = millionths(m.GetPercentage().GetValue())
		}
		out = append(out, mirror(d.istioBackend(v, m.GetDestination(), p, true).cluster, share)...)
	}
	return out
}

// mirror copies a share of the requests to a cluster whose answers nobody reads.
func mirror(cluster string, share uint32) []*routev3.RouteAction_RequestMirrorPolicy {
	if share == 0 || cluster == UnknownService {
		return nil
	}
	return []*routev3.RouteAction_RequestMirrorPolicy{{
		Cluster:                       cluster,
		RuntimeFraction:               &corev3.RuntimeFractionalPercent{DefaultValue: fraction(share)},
		TraceSampled:                  boolValue(false),
		DisableShadowHostSuffixAppend: true,
	}}
}

func istioRewrite(w *networkingapi.HTTPRewrite, r *routev3.Route) error {
	if w == nil {
		return nil
	}
	a := r.GetRoute()
	if w.GetAuthority() != "" {
		if problem := headerProblem("host", w.GetAuthority()); problem != "" {
			return fmt.Errorf("rewrite.authority: %s", problem)
		}
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: w.GetAuthority()}
	}
	switch {
	case w.GetUriRegexRewrite() != nil:
		if err := checkRegex("rewrite.uriRegexRewrite.match", w.GetUriRegexRewrite().GetMatch()); err != nil {
			return err
		}
		a.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
			Pattern: regexMatcher(w.GetUriRegexRewrite().GetMatch()), Substitution: w.GetUriRegexRewrite().GetRewrite(),
		}
		return checkSubstitution(w.GetUriRegexRewrite())
	case w.GetUri() == "":
	case r.GetMatch().GetSafeRegex() != nil: // a whole-path expression: the rewrite is the path
		a.RegexRewrite = substitute(".*", w.GetUri())
	default:
		a.PrefixRewrite = w.GetUri()
	}
	return nil
}

// checkSubstitution refuses references to groups that the expression has not, for which Envoy would refuse the route.
func checkSubstitution(w *networkingapi.RegexRewrite) error {
	groups := regexp.MustCompile(w.GetMatch()).NumSubexp()
	for _, ref := range regexp.MustCompile(`\\(.?)`).FindAllStringSubmatch(w.GetRewrite(), -1) {
		if ref[1] == `\` {
			continue
		}
		if n, err := strconv.Atoi(ref[1]); err != nil || n > groups {
			return fmt.Errorf("rewrite.uriRegexRewrite.rewrite: %q names a group that %q has not", ref[0], w.GetMatch())
		}
	}
	return nil
}

func istioRedirect(in *networkingapi.HTTPRedirect, p Port, r *routev3.Route) error {
	a := &routev3.RedirectAction{HostRedirect: in.GetAuthority(), ResponseCode: redirectCode(in.GetRedirectCode())}
	switch in.GetRedirectCode() {
	case 0, 301, 302, 303, 307, 308:
	default:
		return fmt.Errorf("redirect.redirectCode: %d is not one of 301, 302, 303, 307, 308", in.GetRedirectCode())
	}
	if in.GetScheme() != "" {
		a.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: in.GetScheme()}
	}
	if _, derived := in.GetRedirectPort().(*networkingapi.HTTPRedirect_DerivePort); derived &&
		in.GetDerivePort() == networkingapi.HTTPRedirect_FROM_REQUEST_PORT {
		a.PortRedirect = p.redirected(in.GetScheme(), p.Number)
	}
	if port := in.GetPort(); port != 0 {
		a.PortRedirect = p.redirected(in.GetScheme(), port)
	}
	for _, v := range []string{in.GetUri(), in.GetPrefixRewrite(), in.GetAuthority()} {
		if problem := headerProblem("location", v); problem != "" {
			return fmt.Errorf("redirect: %s", problem)
		}
	}
	switch {
	case in.GetUri() != "":
		a.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: in.GetUri()}
	case in.GetPrefixRewrite() != "":
		a.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: in.GetPrefixRewrite()}
	}
	r.Action = &routev3.Route_Redirect{Redirect: a}
	return nil
}

func istioResponse(in *networkingapi.HTTPDirectResponse, r *routev3.Route) error {
	if in.GetStatus() < 200 || in.GetStatus() > 599 {
		return fmt.Errorf("directResponse.status: %d is not in 200..599", in.GetStatus())
	}
	body := in.GetBody().GetString_()
	if b := in.GetBody().GetBytes(); len(b) > 0 {
		body = string(b)
	}
	if len(body) > 1<<20 {
		return fmt.Errorf("directResponse.body has %d bytes; at most 1 MiB is possible", len(body))
	}
	respond(r, in.GetStatus(), strings.ToValidUTF8(body, "\uFFFD"))
	return nil
}

func istioCORS(c *networkingapi.CorsPolicy) (*corsv3.CorsPolicy, error) {
	out := &corsv3.CorsPolicy{
		AllowMethods:                 strings.Join(c.GetAllowMethods(), ","),
		AllowHeaders:                 strings.Join(c.GetAllowHeaders(), ","),
		ExposeHeaders:                strings.Join(c.GetExposeHeaders(), ","),
		ForwardNotMatchingPreflights: boolValue(c.GetUnmatchedPreflights() != networkingapi.CorsPolicy_IGNORE),
		AllowCredentials:             c.GetAllowCredentials(),
	}
	if c.GetMaxAge() != nil {
		out.MaxAge = strconv.FormatInt(int64(c.GetMaxAge().AsDuration().Seconds()), 10)
	}
	for _, o := range c.GetAllowOrigin() { //nolint:staticcheck // older objects say it here
		if o == "*" {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, regex(".*"))
		} else {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, exact(o))
		}
	}
	for _, o := range c.GetAllowOrigins() {
		m, err := istioString("corsPolicy.allowOrigins", o)
		if err != nil {
			return nil, err
		}
		if m == nil {
			m = regex(".*")
		}
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
	}
	return out, nil
}

// tcpPolicy applies the connection limits that a DestinationRule sets for byte streams.
func (d *derivation) tcpPolicy(proxy *tcpproxyv3.TcpProxy, s *Service, p Port) {
	t := d.rules.forService(s).policy(p.Number, "").GetConnectionPool().GetTcp()
	if t.GetIdleTimeout().AsDuration() > 0 {
		proxy.IdleTimeout = t.GetIdleTimeout()
	}
	if t.GetMaxConnectionDuration().AsDuration() > 0 {
		proxy.MaxDownstreamConnectionDuration = t.GetMaxConnectionDuration()
	}
}
