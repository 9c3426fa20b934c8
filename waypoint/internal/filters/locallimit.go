package filters

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Envoy's limits and defaults.
const (
	defaultDynamic = 20
	// mostDynamic bounds what one wildcard may keep in memory, whatever the configuration says.
	mostDynamic = 1 << 20
)

// LocalLimit lets requests through as far as the buckets of this process have tokens.
type LocalLimit struct {
	Name     string // of the filter
	Answer   LimitAnswer
	Observed HeaderChanges // for the request, when it would have been refused
	Retry    bool          // a refusal with 429 says when it is worth to ask again
	// ID names the buckets: what stands in the same place and says the same goes on with them when the configuration comes anew.
	ID string

	enabled, enforced match.Fraction
	fallback          *Bucket // nil = a request without a descriptor of ours passes
	always            bool    // the fallback is taken from in any case
	fixed             map[string]int
	wild              []int
	rules             []localRule
	stage             uint32
	headers           bool
	own               Limits // nil = those of the route
	include           RouteInclusion
	dynamic           int
	content           string // equal for equal buckets
}

// localRule is one of the configured descriptors.
type localRule struct {
	entries []Entry
	bucket  Bucket
	shadow  bool
}

// RouteInclusion says what becomes of a virtual host's rate_limits where the route has some.
type RouteInclusion uint8

// The inclusions.
const (
	HostUnlessRoute RouteInclusion = iota
	HostToo
	HostNever
)

// RouteLimits is what a route and its virtual host ask to be counted.
type RouteLimits struct {
	Route, Host Limits
	IncludeHost bool // as the route's older field says
}

func (r RouteLimits) descriptors(f *LimitFacts, stage uint32, how RouteInclusion) []Descriptor {
	if r.IncludeHost {
		how = HostToo
	}
	out := r.Route.Descriptors(f, stage)
	if how == HostToo || how == HostUnlessRoute && len(r.Route) == 0 {
		out = append(out, r.Host.Descriptors(f, stage)...)
	}
	return out
}

func (*LocalLimit) http() {}

// Draw is one token that a request takes.
type Draw struct {
	Bucket  Bucket
	Rule    int    // of the filter; -1 = the fallback
	Name    string // value of the rule's first entry, for statistics
	Key     string // of what is counted apart within the rule; empty = nothing is
	Keep    int    // how many keys the rule keeps
	Shadow  bool   // a missing token refuses nobody
	Headers bool   // the client is told about this bucket
}

// Draws are the tokens that a request takes, in this order, until one is missing. None at all: the filter is not meant.
func (l *LocalLimit) Draws(f *LimitFacts, route RouteLimits, rnd match.Rand) []Draw {
	if !l.enabled.Hit(rnd) {
		return nil
	}
	var ds []Descriptor
	switch {
	case len(l.rules) == 0:
	case l.own != nil:
		ds = l.own.Descriptors(f, 0)
	default:
		ds = route.descriptors(f, l.stage, l.include)
	}
	var out []Draw
	for i := range ds {
		if d, ok := l.draw(&ds[i]); ok {
			out = append(out, d)
		}
	}
	slices.SortStableFunc(out, func(a, b Draw) int {
		switch {
		case a.Bucket.slower(b.Bucket):
			return -1
		case b.Bucket.slower(a.Bucket):
			return 1
		}
		return 0
	})
	if l.fallback != nil && (len(out) == 0 || l.always) {
		out = append(out, Draw{Bucket: *l.fallback, Rule: -1, Headers: l.headers})
	}
	return out
}

// Enforced is asked when a token was missing.
func (l *LocalLimit) Enforced(rnd match.Rand) bool { return l.enforced.Hit(rnd) }

func (l *LocalLimit) draw(d *Descriptor) (Draw, bool) {
	key := entriesKey(d.Entries)
	at, ok := l.fixed[key]
	if !ok {
		i := slices.IndexFunc(l.wild, func(i int) bool { return fits(l.rules[i].entries, d.Entries) })
		if i < 0 {
			return Draw{}, false
		}
		at = l.wild[i]
	} else {
		key = ""
	}
	r := &l.rules[at]
	headers := l.headers
	switch d.Headers {
	case HeadersOff:
		headers = false
	case HeadersDraft03:
		headers = true
	case HeadersAsFilter:
	}
	return Draw{Bucket: r.bucket, Rule: at, Name: r.entries[0].Value, Key: key, Keep: l.dynamic, Shadow: r.shadow, Headers: headers}, true
}

// fits compares a configured descriptor, in which an empty value stands for any, with a request's.
func fits(rule, have []Entry) bool {
	if len(rule) != len(have) {
		return false
	}
	for i := range rule {
		if rule[i].Key != have[i].Key || rule[i].Value != "" && rule[i].Value != have[i].Value {
			return false
		}
	}
	return true
}

// entriesKey joins entries so that no two different lists give one text.
func entriesKey(es []Entry) string {
	var b strings.Builder
	for _, e := range es {
		fmt.Fprintf(&b, "%d:%s%d:%s", len(e.Key), e.Key, len(e.Value), e.Value)
	}
	return b.String()
}

// compileLocalLimit compiles the filter; inRoute says that it stands in a route or virtual host, where it has to have a bucket.
func compileLocalLimit(p *localv3.LocalRateLimit, inRoute bool) (*LocalLimit, error) {
	if err := strict.Only(p, "stat_prefix", "status", "token_bucket", "filter_enabled", "filter_enforced", "descriptors", "stage",
		"request_headers_to_add_when_not_enforced", "response_headers_to_add", "enable_x_ratelimit_headers", "vh_rate_limits",
		"always_consume_default_token_bucket", "rate_limited_as_resource_exhausted", "rate_limits", "max_dynamic_descriptors",
		"enable_retry_after_header"); err != nil {
		return nil, err
	}
	l := &LocalLimit{stage: p.GetStage(), dynamic: defaultDynamic, fixed: map[string]int{}, always: true, Retry: p.GetEnableRetryAfterHeader()}
	if p.GetStatPrefix() == "" {
		return nil, fmt.Errorf("stat_prefix is empty")
	}
	if inRoute && p.GetTokenBucket() == nil {
		return nil, fmt.Errorf("token_bucket is missing: a route's limit has to have one")
	}
	if a := p.GetAlwaysConsumeDefaultTokenBucket(); a != nil {
		l.always = a.GetValue()
	}
	if m := p.GetMaxDynamicDescriptors(); m != nil {
		l.dynamic = int(m.GetValue())
		if l.dynamic < 1 || l.dynamic > mostDynamic {
			return nil, fmt.Errorf("max_dynamic_descriptors %d is not in 1..%d", l.dynamic, mostDynamic)
		}
	}
	if err := l.compileShares(p); err != nil {
		return nil, err
	}
	if err := l.compileBuckets(p); err != nil {
		return nil, err
	}
	var err error
	if l.Answer, err = compileAnswer(p.GetStatus(), p.GetResponseHeadersToAdd(), p.GetRateLimitedAsResourceExhausted()); err != nil {
		return nil, err
	}
	if l.Observed, err = compileChanges(p.GetRequestHeadersToAddWhenNotEnforced()); err != nil {
		return nil, fmt.Errorf("request_headers_to_add_when_not_enforced: %w", err)
	}
	l.Answer.Body, l.Answer.Detail = "local_rate_limited", "local_rate_limited"
	return l, l.compileSources(p)
}

// compileShares reads whom the filter concerns. Absent shares are none, as in Envoy.
func (l *LocalLimit) compileShares(p *localv3.LocalRateLimit) (err error) {
	if e := p.GetFilterEnabled(); e != nil {
		if l.enabled, err = match.CompileRuntime(e); err != nil {
			return fmt.Errorf("filter_enabled: %w", err)
		}
	}
	if e := p.GetFilterEnforced(); e != nil {
		if l.enforced, err = match.CompileRuntime(e); err != nil {
			return fmt.Errorf("filter_enforced: %w", err)
		}
	}
	return nil
}

func (l *LocalLimit) compileBuckets(p *localv3.LocalRateLimit) error {
	if b := p.GetTokenBucket(); b != nil {
		c, err := compileBucket(b)
		if err != nil {
			return fmt.Errorf("token_bucket: %w", err)
		}
		l.fallback = &c
	}
	for i, d := range p.GetDescriptors() {
		r, wild, err := compileLocalRule(d)
		if err != nil {
			return fmt.Errorf("descriptors[%d]: %w", i, err)
		}
		key := entriesKey(r.entries)
		if slices.ContainsFunc(l.rules, func(o localRule) bool { return entriesKey(o.entries) == key }) {
			return fmt.Errorf("descriptors[%d]: is there twice", i)
		}
		if wild {
			l.wild = append(l.wild, len(l.rules))
		} else {
			l.fixed[key] = len(l.rules)
		}
		l.rules = append(l.rules, r)
	}
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(&localv3.LocalRateLimit{
		TokenBucket: p.GetTokenBucket(), Descriptors: p.GetDescriptors(), MaxDynamicDescriptors: p.GetMaxDynamicDescriptors(),
	})
	l.content = string(content)
	return err
}

func compileLocalRule(p *commonv3.LocalRateLimitDescriptor) (r localRule, wild bool, err error) {
	if err := strict.Only(p, "entries", "token_bucket", "shadow_mode"); err != nil {
		return r, false, err
	}
	r.shadow = p.GetShadowMode()
	for _, e := range p.GetEntries() {
		if err := strict.Only(e, "key", "value"); err != nil {
			return r, false, err
		}
		if e.GetKey() == "" {
			return r, false, fmt.Errorf("an entry has no key")
		}
		wild = wild || e.GetValue() == ""
		r.entries = append(r.entries, Entry{e.GetKey(), e.GetValue()})
	}
	if len(r.entries) == 0 || p.GetTokenBucket() == nil {
		return r, false, fmt.Errorf("wants entries and a token_bucket")
	}
	if r.bucket, err = compileBucket(p.GetTokenBucket()); err != nil {
		err = fmt.Errorf("token_bucket: %w", err)
	}
	return r, wild, err
}

// compileSources reads where the descriptors come from.
func (l *LocalLimit) compileSources(p *localv3.LocalRateLimit) error {
	switch p.GetEnableXRatelimitHeaders() {
	case commonv3.XRateLimitHeadersRFCVersion_OFF:
	case commonv3.XRateLimitHeadersRFCVersion_DRAFT_VERSION_03:
		l.headers = true
	default:
		return fmt.Errorf("enable_x_ratelimit_headers %v: %w", p.GetEnableXRatelimitHeaders(), strict.ErrUnsupported)
	}
	switch p.GetVhRateLimits() {
	case commonv3.VhRateLimitsOptions_OVERRIDE:
	case commonv3.VhRateLimitsOptions_INCLUDE:
		l.include = HostToo
	case commonv3.VhRateLimitsOptions_IGNORE:
		l.include = HostNever
	default:
		return fmt.Errorf("vh_rate_limits %v: %w", p.GetVhRateLimits(), strict.ErrUnsupported)
	}
	var err error
	if l.own, err = compileOwnLimits(p.GetRateLimits()); err != nil {
		return err
	}
	for _, o := range l.own {
		if o.quota != nil {
			return fmt.Errorf("rate_limits: limit: a local filter has its limits in descriptors: %w", strict.ErrUnsupported)
		}
	}
	return nil
}

// LimitAnswer is what a client gets in the upstream's place.
type LimitAnswer struct {
	Status  int
	GRPC    *int // nil = as the status says
	Body    string
	Detail  string
	Headers HeaderChanges
}

const resourceExhausted = 8

func compileAnswer(status *typev3.HttpStatus, add []*corev3.HeaderValueOption, exhausted bool) (LimitAnswer, error) {
	a := LimitAnswer{Status: http.StatusTooManyRequests}
	if c := int(status.GetCode()); c >= 400 && c < 600 { // what is no error would look like an answer, as in Envoy
		a.Status = c
	}
	if exhausted {
		code := resourceExhausted
		a.GRPC = &code
	}
	var err error
	if a.Headers, err = compileChanges(add); err != nil {
		return a, fmt.Errorf("response_headers_to_add: %w", err)
	}
	return a, nil
}

// HeaderChanges puts fixed values into headers.
type HeaderChanges []headerChange

type headerChange struct {
	name, value                 string
	overwrite, absent, existing bool
}

// Apply changes h.
func (cs HeaderChanges) Apply(h http.Header) {
	for _, c := range cs {
		_, there := h[c.name]
		switch {
		case c.absent && there, c.existing && !there:
		case c.overwrite || c.existing:
			h[c.name] = []string{c.value}
		default:
			h[c.name] = append(h[c.name], c.value)
		}
	}
}

func compileChanges(ps []*corev3.HeaderValueOption) (HeaderChanges, error) {
	var out HeaderChanges
	for _, p := range ps {
		if err := strict.Only(p, "header", "append_action", "keep_empty_value"); err != nil {
			return nil, err
		}
		if err := strict.Only(p.GetHeader(), "key", "value", "raw_value"); err != nil {
			return nil, err
		}
		name, value := p.GetHeader().GetKey(), p.GetHeader().GetValue()
		if raw := p.GetHeader().GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		if name == "" || strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") {
			return nil, fmt.Errorf("header %q cannot be set: %w", name, strict.ErrUnsupported)
		}
		plain := strings.ReplaceAll(value, "%%", "")
		if strings.Contains(plain, "%") {
			return nil, fmt.Errorf("header %q: value %q has a format: %w", name, value, strict.ErrUnsupported)
		}
		if value == "" && !p.GetKeepEmptyValue() {
			continue
		}
		c := headerChange{name: http.CanonicalHeaderKey(name), value: strings.ReplaceAll(value, "%%", "%")}
		switch p.GetAppendAction() {
		case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		case corev3.HeaderValueOption_ADD_IF_ABSENT:
			c.absent = true
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			c.overwrite = true
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			c.existing = true
		default:
			return nil, fmt.Errorf("header %q: append_action %v: %w", name, p.GetAppendAction(), strict.ErrUnsupported)
		}
		out = append(out, c)
	}
	return out, nil
}
