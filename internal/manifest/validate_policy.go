package manifest

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/marrowmesh/marrow/api/policy"
)

const (
	mostRules = 64
	mostKeys  = 1 << 20
)

func validateRateLimit(o *policy.RateLimitPolicy, p *problems) {
	s := &o.Spec
	if len(s.TargetRefs) == 0 {
		p.add("spec.targetRefs", "is empty; name the Services, HTTPRoutes or waypoints to limit")
	}
	for i, r := range s.TargetRefs {
		validateLimitTarget(fmt.Sprintf("spec.targetRefs[%d]", i), r, p)
	}
	if n := len(s.Rules); n == 0 || n > mostRules {
		p.add("spec.rules", "has %d rules; want 1 to %d", n, mostRules)
	}
	oneOf("spec.mode", &s.Mode, p, policy.ModeEnforce, policy.ModeObserve)
	names := map[string]bool{}
	for i := range s.Rules {
		at := fmt.Sprintf("spec.rules[%d]", i)
		r := &s.Rules[i]
		validateLimitRule(at, r, p)
		if r.Name != "" && names[r.Name] {
			p.add(at+".name", "value %q is used by another rule; names are unique", r.Name)
		}
		names[r.Name] = true
		if r.Scope == policy.ScopeGlobal && s.Service == nil {
			p.add("spec.service", "is missing; name the Service that counts for rules of scope global")
		}
	}
	if s.Service != nil {
		validateLimitService("spec.service", s.Service, p)
	}
	if s.Response != nil {
		validateLimitResponse("spec.response", s.Response, p)
	}
}

func validateLimitTarget(at string, r policy.TargetRef, p *problems) {
	want := map[string][]string{"Service": {"", "core"}, "HTTPRoute": {GroupGateway}, "Gateway": {GroupGateway}}[r.Kind]
	switch {
	case want == nil:
		p.add(at+".kind", "value %q is unknown; want one of Service, HTTPRoute, Gateway", r.Kind)
	case !slices.Contains(want, r.Group):
		p.add(at+".group", "value %q has no %s; want %q", r.Group, r.Kind, want[0])
	}
	if len(validation.IsDNS1123Subdomain(r.Name)) > 0 {
		p.add(at+".name", "value %q is no name of an object", r.Name)
	}
}

func validateLimitRule(at string, r *policy.RateLimitRule, p *problems) {
	if r.Name != "" {
		validateLabelName(at+".name", r.Name, "rule", p)
	}
	oneOf(at+".scope", &r.Scope, p, policy.ScopeLocal, policy.ScopeGlobal)
	if n := r.Limit.Requests; n < 1 || n > math.MaxUint32 {
		p.add(at+".limit.requests", "value %d is not in 1..%d; to refuse everything use an AuthorizationPolicy", n, uint32(math.MaxUint32))
	}
	if r.Limit.Per == "" {
		p.add(at+".limit.per", "is missing; want one of 1s, 1m, 1h, 1d")
	} else {
		oneOf(at+".limit.per", &r.Limit.Per, p, policy.PerSecond, policy.PerMinute, policy.PerHour, policy.PerDay)
	}
	if b := r.Limit.Burst; b != nil {
		switch {
		case r.Scope == policy.ScopeGlobal:
			p.add(at+".limit.burst", "is for rules of scope local; a rate limit service counts in whole windows")
		case *b < 1 || *b > math.MaxUint32:
			p.add(at+".limit.burst", "value %d is not in 1..%d", *b, uint32(math.MaxUint32))
		}
	}
	if r.Key != nil {
		validateLimitKey(at+".key", r, p)
	}
	if r.Match != nil {
		validateLimitMatch(at+".match", r.Match, p)
	}
}

func validateLimitKey(at string, r *policy.RateLimitRule, p *problems) {
	k := r.Key
	if k.Type == "" {
		p.add(at+".type", "is missing; want one of none, identity, header, claim, sourceIP")
	} else {
		oneOf(at+".type", &k.Type, p, policy.KeyNone, policy.KeyIdentity, policy.KeyHeader, policy.KeyClaim, policy.KeySourceIP)
	}
	switch {
	case k.Type == policy.KeyHeader:
		validateHeaderName(at+".header", k.Header, p)
	case k.Header != "":
		p.add(at+".header", "belongs to type header, not to %s; remove it or change the type", k.Type)
	}
	switch {
	case k.Type == policy.KeyClaim && (k.Claim == "" || slices.Contains(strings.Split(k.Claim, "."), "")):
		p.add(at+".claim", "value %q is no claim; want its path by dots, like sub or realm.tenant", k.Claim)
	case k.Type != policy.KeyClaim && k.Claim != "":
		p.add(at+".claim", "belongs to type claim, not to %s; remove it or change the type", k.Type)
	}
	if m := k.MaxKeys; m != nil && (*m < 1 || *m > mostKeys) {
		p.add(at+".maxKeys", "value %d is not in 1..%d", *m, mostKeys)
	}
	if k.MaxKeys != nil && (r.Scope == policy.ScopeGlobal || k.Type == policy.KeyNone) {
		p.add(at+".maxKeys", "is for rules of scope local that have a key")
	}
}

func validateHeaderName(at, name string, p *problems) {
	if !httpguts.ValidHeaderFieldName(name) {
		p.add(at, "value %q is no name of a header", name)
	}
}

func validateLimitMatch(at string, m *policy.RateLimitMatch, p *problems) {
	lists := map[string][]string{
		"paths": m.Paths, "methods": m.Methods, "hosts": m.Hosts, "sourcePrincipals": m.SourcePrincipals, "sourceNamespaces": m.SourceNamespaces,
	}
	empty := len(m.Headers) == 0
	for name, list := range lists {
		empty = empty && len(list) == 0
		for i, v := range list {
			if v == "" {
				p.add(fmt.Sprintf("%s.%s[%d]", at, name, i), "is empty; remove it")
			}
		}
	}
	if empty {
		p.add(at, "says nothing; give it a value or remove it")
	}
	for i, v := range m.Paths {
		field := fmt.Sprintf("%s.paths[%d]", at, i)
		validateStars(field, v, p)
		if !strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "*") || strings.ContainsAny(v, "?#") {
			p.add(field, "value %q is no path; begin it with / or *, without query", v)
		}
	}
	for i, v := range m.Methods {
		if !regexp.MustCompile(`^[A-Za-z]+$`).MatchString(v) {
			p.add(fmt.Sprintf("%s.methods[%d]", at, i), "value %q is no method", v)
		}
	}
	for i, v := range m.Hosts {
		validateStars(fmt.Sprintf("%s.hosts[%d]", at, i), v, p)
	}
	for i, h := range m.Headers {
		field := fmt.Sprintf("%s.headers[%d]", at, i)
		validateHeaderName(field+".name", h.Name, p)
		if h.Value != nil {
			validateStars(field+".value", *h.Value, p)
		}
	}
	for i, v := range m.SourcePrincipals {
		field := fmt.Sprintf("%s.sourcePrincipals[%d]", at, i)
		if strings.Contains(strings.TrimSuffix(v, "*"), "*") || strings.HasPrefix(v, "spiffe://") {
			p.add(field, "value %q is no principal; want <trust domain>/ns/<namespace>/sa/<account>, with * at the end at most", v)
		}
	}
	for i, v := range m.SourceNamespaces {
		if len(validation.IsDNS1123Label(v)) > 0 {
			p.add(fmt.Sprintf("%s.sourceNamespaces[%d]", at, i), "value %q is no name of a namespace", v)
		}
	}
}

// validateStars allows one star, at the beginning or the end.
func validateStars(field, v string, p *problems) {
	if n := strings.Count(v, "*"); n > 1 || n == 1 && !strings.HasPrefix(v, "*") && !strings.HasSuffix(v, "*") {
		p.add(field, "value %q has a * in the middle, or several; want one at the beginning or the end", v)
	}
}

func validateLimitService(at string, s *policy.RateLimitService, p *problems) {
	validateLabelName(at+".name", s.Name, "Service", p)
	if s.Namespace != "" {
		validateLabelName(at+".namespace", s.Namespace, "namespace", p)
	}
	validatePortNumber(at+".port", int64(s.Port), p)
	oneOf(at+".failure", &s.Failure, p, policy.FailureAllow, policy.FailureDeny)
	if s.Timeout != "" {
		if d, err := time.ParseDuration(s.Timeout); err != nil || d < time.Millisecond || d > 10*time.Second {
			p.add(at+".timeout", "value %q is no duration from 1ms to 10s", s.Timeout)
		}
	}
}

func validateLimitResponse(at string, r *policy.RateLimitResponse, p *problems) {
	if s := r.Status; s != nil && (*s < 400 || *s > 599) {
		p.add(at+".status", "value %d is not in 400..599", *s)
	}
	for i, h := range r.Headers {
		field := fmt.Sprintf("%s.headers[%d]", at, i)
		validateHeaderName(field+".name", h.Name, p)
		switch name := strings.ToLower(h.Name); {
		case name == "host" || name == "content-length" || name == "transfer-encoding" || name == "connection":
			p.add(field+".name", "value %q cannot be set: it frames the message", h.Name)
		case h.Value == "" || !httpguts.ValidHeaderFieldValue(h.Value):
			p.add(field+".value", "value %q is no value of a header", h.Value)
		}
	}
}
