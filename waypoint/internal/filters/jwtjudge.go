package filters

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/waypoint/internal/jwt"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// maxTokens bounds how many tokens one provider looks at in a request.
const maxTokens = 8

// Lookup gives the keys that were fetched from a source; nil while there are none.
type Lookup func(jwt.Source) *jwt.Keys

// Want is a source whose newer keys might change a verdict.
type Want struct {
	Source jwt.Source
	Seen   *jwt.Keys // what the verdict was based on
}

// TokenVerdict is what a JWT filter says of one request.
type TokenVerdict struct {
	Status jwt.Status
	Strip  bool   // the client is not told why
	Wants  []Want // for a refusal only

	change change
}

// change is what verified tokens make of a request.
type change struct {
	remove   []string    // headers
	params   []string    // of the query
	cookies  []string    // by name
	add      http.Header // headers
	metadata map[string]*structpb.Value
	reroute  bool
}

func (c *change) join(o change) {
	c.remove, c.params, c.cookies = append(c.remove, o.remove...), append(c.params, o.params...), append(c.cookies, o.cookies...)
	if len(o.add) > 0 && c.add == nil {
		c.add = http.Header{}
	}
	for name, values := range o.add {
		c.add[name] = append(c.add[name], values...)
	}
	if len(o.metadata) > 0 && c.metadata == nil {
		c.metadata = map[string]*structpb.Value{}
	}
	maps.Copy(c.metadata, o.metadata)
	c.reroute = c.reroute || o.reroute
}

// requirement is byProvider, requireAny, requireAll or anyProvider.
type requirement interface {
	judge(*judging) (jwt.Status, change)
}

type (
	// byProvider wants a token of one provider, and every token at its places to be good.
	byProvider struct {
		p         *provider
		audiences []string // instead of the provider's own; empty = the provider's
	}
	requireAny struct {
		needs           []requirement
		missing, failed bool
	}
	requireAll  []requirement
	anyProvider struct {
		all    []*provider
		failed bool // bad tokens are let through, unbelieved
	}
)

// judging is one request that is being judged.
type judging struct {
	q     *match.Request
	look  Lookup
	now   time.Time
	query url.Values // nil until it is needed
	wants []Want
}

// Sanitize removes the headers that only a verified token may set, whoever sent them.
func (j *JWT) Sanitize(q *match.Request) {
	for _, p := range j.providers {
		if p.payloadHeader != "" {
			delete(q.Header, p.payloadHeader)
		}
		for _, c := range p.claims {
			delete(q.Header, c.name)
		}
	}
}

// Judge evaluates the filter.
func (j *JWT) Judge(q *match.Request, look Lookup, now time.Time) TokenVerdict {
	ok := TokenVerdict{Status: jwt.OK}
	if j.preflight && q.Method == http.MethodOptions && q.Header.Get("Origin") != "" && q.Header.Get("Access-Control-Request-Method") != "" {
		return ok
	}
	for i := range j.rules {
		r := &j.rules[i]
		if !r.match(q) {
			continue
		}
		if r.needs == nil {
			return ok
		}
		run := &judging{q: q, look: look, now: now}
		v := TokenVerdict{Strip: j.strip}
		if v.Status, v.change = r.needs.judge(run); v.Status != jwt.OK {
			v.Wants = run.wants
		}
		return v
	}
	return ok
}

func (r *tokenRule) match(q *match.Request) bool {
	path, prefix, exact := q.Path, r.prefix, r.exact
	if r.fold {
		path, prefix, exact = strings.ToLower(path), strings.ToLower(prefix), strings.ToLower(exact)
	}
	if exact != "" {
		return path == exact && match.All(r.headers, q)
	}
	return strings.HasPrefix(path, prefix) && match.All(r.headers, q)
}

func (r requireAny) judge(j *judging) (jwt.Status, change) {
	final := jwt.Missing
	for _, need := range r.needs {
		s, c := need.judge(j)
		if s == jwt.OK {
			return s, c
		}
		// What is wrong with a token says more than that it is another issuer's, and that more than that there is none.
		if s != jwt.Missing && s != jwt.UnknownIssuer || final == jwt.Missing {
			final = s
		}
	}
	if r.failed || r.missing && final == jwt.Missing {
		return jwt.OK, change{}
	}
	return final, change{}
}

func (r requireAll) judge(j *judging) (jwt.Status, change) {
	var all change
	for _, need := range r {
		s, c := need.judge(j)
		if s != jwt.OK {
			return s, change{}
		}
		all.join(c)
	}
	return jwt.OK, all
}

func (r anyProvider) judge(j *judging) (jwt.Status, change) {
	var all change
	for _, p := range r.all {
		s, c := byProvider{p: p}.judge(j)
		switch {
		case s == jwt.OK:
			all.join(c)
		case s == jwt.Missing || r.failed:
		case s == jwt.UnknownIssuer && r.knownElsewhere(j, p):
		default:
			return s, change{}
		}
	}
	return jwt.OK, all
}

// knownElsewhere says that every token at p's places is good for one of the providers.
func (r anyProvider) knownElsewhere(j *judging, p *provider) bool {
	for _, found := range p.find(j) {
		if !slices.ContainsFunc(r.all, func(o *provider) bool {
			_, s := o.check(j, found.text, nil)
			return s == jwt.OK
		}) {
			return false
		}
	}
	return true
}

func (r byProvider) judge(j *judging) (jwt.Status, change) {
	tokens := r.p.find(j)
	if len(tokens) == 0 {
		return jwt.Missing, change{}
	}
	if len(tokens) > maxTokens {
		return jwt.TooManyTokens, change{}
	}
	var all change
	// The last place first, as Envoy does; what is wrong with one is wrong with the request: the application may read that one.
	for _, found := range slices.Backward(tokens) {
		t, s := r.p.check(j, found.text, r.audiences)
		if s != jwt.OK {
			return s, change{}
		}
		all.join(r.p.effects(t, found))
	}
	return jwt.OK, all
}

// found is one token of a request and where it stood.
type found struct{ text, header, param, cookie string }

// find lists the tokens at the provider's places.
func (p *provider) find(j *judging) []found {
	var out []found
	for _, h := range p.headers {
		for _, v := range j.q.Header[h.name] {
			if text, ok := afterPrefix(v, h.prefix); ok {
				out = append(out, found{text: text, header: h.name})
			}
		}
	}
	if len(p.params) > 0 && j.q.Query != "" {
		if j.query == nil {
			j.query = parseQuery(j.q.Query)
		}
		for _, name := range p.params {
			if vs := j.query[name]; len(vs) > 0 {
				out = append(out, found{text: vs[0], param: name})
			}
		}
	}
	for _, name := range p.cookies {
		if v, ok := cookie(j.q.Header["Cookie"], name); ok {
			out = append(out, found{text: v, cookie: name})
		}
	}
	return out
}

// afterPrefix is the token behind a prefix, which may stand anywhere. A prefix without anything behind it leaves a text that is no token,
// and is refused as one.
func afterPrefix(v, prefix string) (string, bool) {
	if prefix == "" {
		return v, true
	}
	at := strings.Index(v, prefix)
	if prefix == bearer && at < 0 {
		at = strings.Index(strings.ToLower(v), strings.ToLower(bearer)) // the scheme's case means nothing (RFC 9110)
	}
	if at < 0 {
		return "", false
	}
	rest := v[at+len(prefix):]
	i := strings.IndexFunc(rest, func(r rune) bool {
		return r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
	})
	if i < 0 {
		return v, true
	}
	return rest[i:], true
}

// parseQuery reads what can be read: a stray percent sign elsewhere must not hide a token.
func parseQuery(raw string) url.Values {
	out := url.Values{}
	for pair := range strings.SplitSeq(raw, "&") {
		name, value := splitPair(pair)
		out[name] = append(out[name], value)
	}
	return out
}

func splitPair(pair string) (name, value string) {
	name, value, _ = strings.Cut(pair, "=")
	if n, err := url.PathUnescape(name); err == nil {
		name = n
	}
	if v, err := url.PathUnescape(value); err == nil {
		value = v
	}
	return name, value
}

func cookie(lines []string, name string) (string, bool) {
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ";") {
			if n, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok && n == name {
				return strings.Trim(v, `"`), true
			}
		}
	}
	return "", false
}

// check judges one token by itself.
func (p *provider) check(j *judging, raw string, audiences []string) (*jwt.Token, jwt.Status) {
	t, s := jwt.Parse(raw)
	if s != jwt.OK {
		return nil, s
	}
	if p.issuer != "" && t.Issuer != p.issuer {
		return nil, jwt.UnknownIssuer
	}
	if s := p.checkClaims(j, t, audiences); s != jwt.OK {
		return nil, s
	}
	keys := p.keys
	if p.source != nil {
		if keys = j.look(*p.source); keys == nil {
			j.wants = append(j.wants, Want{Source: *p.source})
			return nil, jwt.FetchFails
		}
	}
	s = t.Verify(keys)
	if s == jwt.NoMatchingKey && p.source != nil {
		j.wants = append(j.wants, Want{Source: *p.source, Seen: keys}) // the issuer may have new keys
	}
	return t, s
}

func (p *provider) checkClaims(j *judging, t *jwt.Token, audiences []string) jwt.Status {
	if p.subject != nil && !p.subject.Match(t.Subject) {
		return jwt.SubjectNotAllowed
	}
	if s := t.InTime(j.now, p.skew); s != jwt.OK {
		return s
	}
	if p.lifetime != 0 {
		left, ends := t.Lifetime(j.now)
		if !ends || p.lifetime > 0 && left >= p.lifetime {
			return jwt.LifetimeNotAllowed
		}
	}
	if len(audiences) == 0 {
		audiences = p.audiences
	}
	if len(audiences) > 0 && !slices.ContainsFunc(t.Audiences, func(a string) bool { return slices.Contains(audiences, a) }) {
		return jwt.AudienceNotAllowed
	}
	return jwt.OK
}

// effects is what a verified token makes of the request.
func (p *provider) effects(t *jwt.Token, at found) change {
	c := change{}
	if !p.forward {
		switch {
		case at.header != "":
			c.remove = []string{at.header}
		case at.param != "":
			c.params = []string{at.param}
		default:
			c.cookies = []string{at.cookie}
		}
	}
	if p.payloadHeader != "" {
		c.add = http.Header{p.payloadHeader: {p.payloadText(t)}}
	}
	for _, h := range p.claims {
		if v := claimText(valueAt(t.Payload, h.path)); v != "" && httpguts.ValidHeaderFieldValue(v) {
			if c.add == nil {
				c.add = http.Header{}
			}
			c.add.Add(h.name, v)
			c.reroute = c.reroute || p.reroute
		}
	}
	c.metadata = map[string]*structpb.Value{}
	if p.headerKey != "" {
		c.metadata[p.headerKey] = structpb.NewStructValue(t.Header)
	}
	if p.payloadKey != "" {
		c.metadata[p.payloadKey] = structpb.NewStructValue(p.normalized(t.Payload))
	}
	return c
}

func (p *provider) payloadText(t *jwt.Token) string {
	if p.padded {
		return t.PayloadText + strings.Repeat("=", -len(t.PayloadText)&3)
	}
	return t.PayloadText
}

// normalized turns the claims that hold words into lists of them.
func (p *provider) normalized(payload *structpb.Struct) *structpb.Struct {
	out := payload
	for _, name := range p.split {
		words, ok := payload.GetFields()[name].GetKind().(*structpb.Value_StringValue)
		if !ok {
			continue
		}
		if out == payload {
			out = &structpb.Struct{Fields: maps.Clone(payload.GetFields())}
		}
		list := &structpb.ListValue{}
		for w := range strings.FieldsSeq(words.StringValue) {
			list.Values = append(list.Values, structpb.NewStringValue(w))
		}
		out.Fields[name] = structpb.NewListValue(list)
	}
	return out
}

// claimText is a claim as a header's value; empty = none.
func claimText(v *structpb.Value) string {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return k.StringValue
	case *structpb.Value_BoolValue:
		return strconv.FormatBool(k.BoolValue)
	case *structpb.Value_NumberValue:
		if n := k.NumberValue; n == math.Trunc(n) && math.Abs(n) < 1<<63 {
			return strconv.FormatInt(int64(n), 10)
		}
		return strconv.FormatFloat(k.NumberValue, 'f', 6, 64)
	case *structpb.Value_StructValue, *structpb.Value_ListValue:
		raw, err := json.Marshal(v.AsInterface())
		if err != nil {
			return ""
		}
		return base64.StdEncoding.EncodeToString(raw)
	}
	return ""
}

// Apply makes the request what its verified tokens say. reroute means that the route has to be looked for again.
func (v *TokenVerdict) Apply(q *match.Request) (reroute bool) {
	c := &v.change
	for _, name := range c.remove {
		delete(q.Header, name)
	}
	if len(c.params) > 0 {
		q.Query = withoutParams(q.Query, c.params)
	}
	if len(c.cookies) > 0 {
		removeCookies(q.Header, c.cookies)
	}
	for name, values := range c.add {
		q.Header[name] = append(q.Header[name], values...)
	}
	if len(c.metadata) > 0 {
		all := maps.Clone(q.Metadata)
		if all == nil {
			all = map[string]*structpb.Struct{}
		}
		all[JWTFilter] = &structpb.Struct{Fields: c.metadata}
		q.Metadata = all
	}
	return c.reroute
}

// withoutParams leaves the other parameters as they were written.
func withoutParams(query string, names []string) string {
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		if name, _ := splitPair(pair); !slices.Contains(names, name) {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}

func removeCookies(h http.Header, names []string) {
	var lines []string
	for _, line := range h["Cookie"] {
		var kept []string
		for part := range strings.SplitSeq(line, ";") {
			part = strings.TrimSpace(part)
			if name, _, _ := strings.Cut(part, "="); part != "" && !slices.Contains(names, name) {
				kept = append(kept, part)
			}
		}
		if len(kept) > 0 {
			lines = append(lines, strings.Join(kept, "; "))
		}
	}
	if delete(h, "Cookie"); len(lines) > 0 {
		h["Cookie"] = lines
	}
}
