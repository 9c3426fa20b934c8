package policy

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Group and Version of the objects of this package.
const (
	Group   = "policy.marrow.io"
	Version = "v1alpha1"
)

// RateLimitPolicy limits the requests to what it targets.
type RateLimitPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitzero"`
	Spec              RateLimitPolicySpec   `json:"spec"`
	Status            RateLimitPolicyStatus `json:"status,omitzero"`
}

// RateLimitPolicySpec is what the author wants.
type RateLimitPolicySpec struct {
	// TargetRefs are Services and HTTPRoutes, or Gateways (waypoints and those at the border), of the policy's namespace.
	TargetRefs []TargetRef `json:"targetRefs"`
	// Rules count on their own: a request has to have room in every rule that it fits.
	Rules []RateLimitRule `json:"rules"`
	// Mode is enforce, or observe to count without refusing. Default enforce.
	Mode Mode `json:"mode,omitempty"`
	// Response is what a refused client gets.
	Response *RateLimitResponse `json:"response,omitempty"`
	// Service answers for the rules of scope global.
	Service *RateLimitService `json:"service,omitempty"`
}

// Mode is what a policy does with requests over a limit.
type Mode string

// The modes.
const (
	ModeEnforce Mode = "enforce"
	ModeObserve Mode = "observe"
)

// TargetRef names an object of the policy's namespace.
type TargetRef struct {
	// Group is empty (or core) for a Service, gateway.networking.k8s.io for the others.
	Group string `json:"group"`
	Kind  string `json:"kind"`
	Name  string `json:"name"`
}

// RateLimitRule is one limit.
type RateLimitRule struct {
	// Name tells the rule in statistics; its place in the list by default.
	Name string `json:"name,omitempty"`
	// Match says which requests the rule concerns; all by default.
	Match *RateLimitMatch `json:"match,omitempty"`
	// Key says which requests are counted together; all by default.
	Key *RateLimitKey `json:"key,omitempty"`
	// Limit says how many pass.
	Limit RateLimit `json:"limit"`
	// Scope is local, each waypoint replica counting for itself, or global. Default local.
	Scope Scope `json:"scope,omitempty"`
}

// Scope is who counts.
type Scope string

// The scopes.
const (
	ScopeLocal  Scope = "local"
	ScopeGlobal Scope = "global"
)

// RateLimitMatch is fitted by a request that fits one value of every list that is not empty.
type RateLimitMatch struct {
	// Paths are exact, or begin or end with "*" for any rest; "*" alone is every path. The query does not count.
	Paths   []string `json:"paths,omitempty"`
	Methods []string `json:"methods,omitempty"`
	// Hosts are like Paths, without regard to case and port.
	Hosts []string `json:"hosts,omitempty"`
	// Headers have to fit all.
	Headers []HeaderMatch `json:"headers,omitempty"`
	// SourcePrincipals are <trust domain>/ns/<namespace>/sa/<service account>; one may end with "*".
	SourcePrincipals []string `json:"sourcePrincipals,omitempty"`
	// SourceNamespaces are of clients of the mesh's own trust domain.
	SourceNamespaces []string `json:"sourceNamespaces,omitempty"`
}

// HeaderMatch is a condition on one header.
type HeaderMatch struct {
	Name string `json:"name"`
	// Value is like a path; absent, the header has to be there.
	Value *string `json:"value,omitempty"`
}

// RateLimitKey says which requests share a limit.
type RateLimitKey struct {
	Type KeyType `json:"type"`
	// Header is the name for type header.
	Header string `json:"header,omitempty"`
	// Claim is the path, by dots, of a claim of the validated token for type claim.
	Claim string `json:"claim,omitempty"`
	// MaxKeys bounds how many keys of a local rule are told apart at one time. Default 10000.
	MaxKeys *int32 `json:"maxKeys,omitempty"`
}

// KeyType is what requests are told apart by.
type KeyType string

// The types of keys. Requests without the header or claim share one limit.
const (
	KeyNone     KeyType = "none"
	KeyIdentity KeyType = "identity"
	KeyHeader   KeyType = "header"
	KeyClaim    KeyType = "claim"
	KeySourceIP KeyType = "sourceIP"
)

// RateLimit is how many requests pass in a window of time.
type RateLimit struct {
	Requests int64 `json:"requests"`
	// Per is the window: 1s, 1m, 1h or 1d.
	Per Window `json:"per"`
	// Burst is how many pass at once; Requests by default. For scope local only.
	Burst *int64 `json:"burst,omitempty"`
}

// Window is a length of time.
type Window string

// The windows.
const (
	PerSecond Window = "1s"
	PerMinute Window = "1m"
	PerHour   Window = "1h"
	PerDay    Window = "1d"
)

// RateLimitResponse is what a refused client gets.
type RateLimitResponse struct {
	// Status is 400 to 599. Default 429.
	Status *int32 `json:"status,omitempty"`
	// Headers are set in the response.
	Headers []Header `json:"headers,omitempty"`
	// LimitHeaders tell clients, refused or not, their limit: x-ratelimit-limit, -remaining and -reset.
	LimitHeaders *bool `json:"limitHeaders,omitempty"`
	// ResourceExhausted gives gRPC clients RESOURCE_EXHAUSTED instead of UNAVAILABLE.
	ResourceExhausted *bool `json:"resourceExhausted,omitempty"`
}

// Header is a name with its value.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// RateLimitService is a server of Envoy's rate limit protocol (envoy.service.ratelimit.v3).
type RateLimitService struct {
	// Name of the Service.
	Name string `json:"name"`
	// Namespace of the Service: the policy's by default, or the mesh's root namespace.
	Namespace string `json:"namespace,omitempty"`
	Port      int32  `json:"port"`
	// Domain under which the server looks. Default marrow.
	Domain string `json:"domain,omitempty"`
	// Timeout of a question, a duration of 1ms to 10s. Default 100ms.
	Timeout string `json:"timeout,omitempty"`
	// Failure is allow or deny: what becomes of a request about which the server does not say. Default allow.
	Failure Failure `json:"failure,omitempty"`
}

// Failure is what follows when nobody can say.
type Failure string

// The failures.
const (
	FailureAllow Failure = "allow"
	FailureDeny  Failure = "deny"
)

// RateLimitPolicyStatus is what became of the policy.
type RateLimitPolicyStatus struct {
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (p *RateLimitPolicy) DeepCopyObject() runtime.Object { return p.DeepCopy() }

// DeepCopy returns a policy that shares nothing with p.
func (p *RateLimitPolicy) DeepCopy() *RateLimitPolicy {
	if p == nil {
		return nil
	}
	out := &RateLimitPolicy{TypeMeta: p.TypeMeta, ObjectMeta: *p.ObjectMeta.DeepCopy(), Spec: *p.Spec.deepCopy()}
	for _, c := range p.Status.Conditions {
		out.Status.Conditions = append(out.Status.Conditions, *c.DeepCopy())
	}
	return out
}

func (s *RateLimitPolicySpec) deepCopy() *RateLimitPolicySpec {
	out := *s
	out.TargetRefs = append([]TargetRef(nil), s.TargetRefs...)
	out.Rules = nil
	for _, r := range s.Rules {
		out.Rules = append(out.Rules, r.deepCopy())
	}
	if s.Response != nil {
		out.Response = &RateLimitResponse{
			Status: pointer(s.Response.Status), Headers: append([]Header(nil), s.Response.Headers...),
			LimitHeaders: pointer(s.Response.LimitHeaders), ResourceExhausted: pointer(s.Response.ResourceExhausted),
		}
	}
	out.Service = pointer(s.Service)
	return &out
}

func (r *RateLimitRule) deepCopy() RateLimitRule {
	out := *r
	if m := r.Match; m != nil {
		c := &RateLimitMatch{
			Paths: append([]string(nil), m.Paths...), Methods: append([]string(nil), m.Methods...), Hosts: append([]string(nil), m.Hosts...),
			SourcePrincipals: append([]string(nil), m.SourcePrincipals...), SourceNamespaces: append([]string(nil), m.SourceNamespaces...),
		}
		for _, h := range m.Headers {
			c.Headers = append(c.Headers, HeaderMatch{Name: h.Name, Value: pointer(h.Value)})
		}
		out.Match = c
	}
	if out.Key = pointer(r.Key); out.Key != nil {
		out.Key.MaxKeys = pointer(r.Key.MaxKeys)
	}
	out.Limit.Burst = pointer(r.Limit.Burst)
	return out
}

func pointer[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}
