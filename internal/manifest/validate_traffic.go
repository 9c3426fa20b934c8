package manifest

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	apinetworking "istio.io/api/networking/v1alpha3"
)

func validateVirtualService(spec *apinetworking.VirtualService, p *problems) {
	if len(spec.GetHosts()) == 0 && len(spec.GetHttp())+len(spec.GetTcp())+len(spec.GetTls()) == 0 {
		p.add("spec.hosts", "is empty; name the hosts that the routes are for")
	}
	for i, h := range spec.GetHosts() {
		if h != "*" && !validHost(h) && !validBlock(h) {
			p.add(fmt.Sprintf("spec.hosts[%d]", i), "value %q is no host name", h)
		}
	}
	if len(spec.GetHttp())+len(spec.GetTcp())+len(spec.GetTls()) == 0 {
		p.add("spec", "has no http, tcp or tls routes; give it one")
	}
	for i, r := range spec.GetHttp() {
		validateHTTPRule(fmt.Sprintf("spec.http[%d]", i), r, p)
	}
	for i, r := range spec.GetTcp() {
		validateShares(fmt.Sprintf("spec.tcp[%d].route", i), r.GetRoute(), p)
	}
	for i, r := range spec.GetTls() {
		at := fmt.Sprintf("spec.tls[%d]", i)
		validateShares(at+".route", r.GetRoute(), p)
		for j, m := range r.GetMatch() {
			if len(m.GetSniHosts()) == 0 {
				p.add(fmt.Sprintf("%s.match[%d].sniHosts", at, j), "is empty; name the server names")
			}
		}
	}
}

func validateHTTPRule(at string, r *apinetworking.HTTPRoute, p *problems) {
	answers := 0
	for _, has := range []bool{len(r.GetRoute()) > 0, r.GetRedirect() != nil, r.GetDirectResponse() != nil, r.GetDelegate() != nil} {
		if has {
			answers++
		}
	}
	if answers != 1 {
		p.add(at, "has %d of route, redirect, directResponse and delegate; want exactly one", answers)
	}
	validateShares(at+".route", r.GetRoute(), p)
	for i, m := range r.GetMatch() {
		validateHTTPMatch(fmt.Sprintf("%s.match[%d]", at, i), m, p)
	}
	validateTime(at+".timeout", r.GetTimeout(), p)
	if n := r.GetRetries().GetAttempts(); n < 0 {
		p.add(at+".retries.attempts", "value %d is negative; 0 means no retries", n)
	}
	validateTime(at+".retries.perTryTimeout", r.GetRetries().GetPerTryTimeout(), p)
	if s := r.GetDirectResponse().GetStatus(); r.GetDirectResponse() != nil && (s < 200 || s > 599) {
		p.add(at+".directResponse.status", "value %d is no status of an answer; want 200 to 599", s)
	}
	validateFault(at+".fault", r.GetFault(), p)
	if rewrite := r.GetRewrite(); rewrite.GetUri() != "" && rewrite.GetUriRegexRewrite() != nil {
		p.add(at+".rewrite.uri", "excludes uriRegexRewrite; keep one of the two")
	}
	validateRegex(at+".rewrite.uriRegexRewrite.match", r.GetRewrite().GetUriRegexRewrite().GetMatch(), p)
	for i, m := range r.GetMirrors() {
		if m.GetDestination().GetHost() == "" {
			p.add(fmt.Sprintf("%s.mirrors[%d].destination.host", at, i), "is empty; name the service")
		}
		validatePercent(fmt.Sprintf("%s.mirrors[%d].percentage", at, i), m.GetPercentage(), p)
	}
}

// share is a destination with a weight, of HTTP or of TCP.
type share interface {
	GetDestination() *apinetworking.Destination
	GetWeight() int32
}

func validateShares[S share](at string, shares []S, p *problems) {
	total := int64(0)
	for i, s := range shares {
		if s.GetDestination().GetHost() == "" {
			p.add(fmt.Sprintf("%s[%d].destination.host", at, i), "is empty; name the service")
		}
		if n := s.GetDestination().GetPort().GetNumber(); n > 65535 {
			p.add(fmt.Sprintf("%s[%d].destination.port.number", at, i), "value %d is no port; want 1 to 65535", n)
		}
		if s.GetWeight() < 0 {
			p.add(fmt.Sprintf("%s[%d].weight", at, i), "value %d is negative; 0 means no traffic", s.GetWeight())
		}
		total += int64(s.GetWeight())
	}
	if len(shares) > 1 && total == 0 {
		p.add(at, "has several destinations and no weight above 0, so nobody gets traffic; set weights")
	}
}

func validateHTTPMatch(at string, m *apinetworking.HTTPMatchRequest, p *problems) {
	validateMatch(at+".uri", m.GetUri(), p)
	validateMatch(at+".method", m.GetMethod(), p)
	validateMatch(at+".authority", m.GetAuthority(), p)
	validateMatch(at+".scheme", m.GetScheme(), p)
	for field, matches := range map[string]map[string]*apinetworking.StringMatch{
		"headers": m.GetHeaders(), "withoutHeaders": m.GetWithoutHeaders(), "queryParams": m.GetQueryParams(),
	} {
		for _, k := range slices.Sorted(maps.Keys(matches)) {
			if k == "" {
				p.add(at+"."+field, "has an empty name")
			}
			validateMatch(at+"."+field+"["+k+"]", matches[k], p)
		}
	}
	if m.GetPort() > 65535 {
		p.add(at+".port", "value %d is no port; want 1 to 65535", m.GetPort())
	}
}

// validateMatch looks at the pattern only: a match without one asks for presence.
func validateMatch(at string, m *apinetworking.StringMatch, p *problems) {
	validateRegex(at+".regex", m.GetRegex(), p)
}

func validateRegex(at, text string, p *problems) {
	if _, err := regexp.Compile(text); err != nil {
		p.add(at, "value %q is no RE2 expression: %v", text, err)
	}
}

func validateTime(at string, d *durationpb.Duration, p *problems) {
	if d != nil && (!d.IsValid() || d.AsDuration() < 0 || d.AsDuration() > 0 && d.AsDuration() < time.Millisecond) {
		p.add(at, "value %v is no duration of a millisecond or more; 0s means none", d.AsDuration())
	}
}

func validatePercent(at string, v *apinetworking.Percent, p *problems) {
	if n := v.GetValue(); math.IsNaN(n) || n < 0 || n > 100 {
		p.add(at+".value", "value %v is no percentage; want 0 to 100", n)
	}
}

func validateFault(at string, f *apinetworking.HTTPFaultInjection, p *problems) {
	if f == nil {
		return
	}
	if f.GetDelay() == nil && f.GetAbort() == nil {
		p.add(at, "has neither delay nor abort; give it one or remove it")
	}
	if d := f.GetDelay(); d != nil {
		if d.GetFixedDelay().AsDuration() <= 0 {
			p.add(at+".delay.fixedDelay", "is missing or not above 0; say how long to wait")
		}
		validatePercent(at+".delay.percentage", d.GetPercentage(), p)
	}
	if a := f.GetAbort(); a != nil {
		if a.GetErrorType() == nil {
			p.add(at+".abort", "has no httpStatus and no grpcStatus; say what to answer")
		}
		if _, is := a.GetErrorType().(*apinetworking.HTTPFaultInjection_Abort_HttpStatus); is && (a.GetHttpStatus() < 200 || a.GetHttpStatus() > 599) {
			p.add(at+".abort.httpStatus", "value %d is no status of an answer; want 200 to 599", a.GetHttpStatus())
		}
		validatePercent(at+".abort.percentage", a.GetPercentage(), p)
	}
}

func validateDestinationRule(spec *apinetworking.DestinationRule, p *problems) {
	if spec.GetHost() == "" {
		p.add("spec.host", "is empty; name the service")
	}
	seen := map[string]bool{}
	for i, s := range spec.GetSubsets() {
		at := fmt.Sprintf("spec.subsets[%d]", i)
		switch {
		case s.GetName() == "":
			p.add(at+".name", "is empty; name the subset")
		case seen[s.GetName()]:
			p.add(at+".name", "value %q is used by another subset; names are unique", s.GetName())
		}
		seen[s.GetName()] = true
		validateTrafficPolicy(at+".trafficPolicy", s.GetTrafficPolicy(), p)
	}
	validateTrafficPolicy("spec.trafficPolicy", spec.GetTrafficPolicy(), p)
}

func validateTrafficPolicy(at string, t *apinetworking.TrafficPolicy, p *problems) {
	pool := t.GetConnectionPool()
	validateTime(at+".connectionPool.tcp.connectTimeout", pool.GetTcp().GetConnectTimeout(), p)
	for field, n := range map[string]int32{
		"tcp.maxConnections": pool.GetTcp().GetMaxConnections(), "http.http1MaxPendingRequests": pool.GetHttp().GetHttp1MaxPendingRequests(),
		"http.http2MaxRequests": pool.GetHttp().GetHttp2MaxRequests(), "http.maxRetries": pool.GetHttp().GetMaxRetries(),
		"http.maxRequestsPerConnection": pool.GetHttp().GetMaxRequestsPerConnection(),
	} {
		if n < 0 {
			p.add(at+".connectionPool."+field, "value %d is negative; leave it out for no limit", n)
		}
	}
	o := t.GetOutlierDetection()
	validateTime(at+".outlierDetection.interval", o.GetInterval(), p)
	validateTime(at+".outlierDetection.baseEjectionTime", o.GetBaseEjectionTime(), p)
	for field, n := range map[string]int32{"maxEjectionPercent": o.GetMaxEjectionPercent(), "minHealthPercent": o.GetMinHealthPercent()} {
		if n < 0 || n > 100 {
			p.add(at+".outlierDetection."+field, "value %d is no percentage; want 0 to 100", n)
		}
	}
}
