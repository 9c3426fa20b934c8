package table

import (
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// Rules is a compiled route configuration.
type Rules struct {
	Name     string
	hosts    []host
	Request  Mutations
	Response Mutations
	own      filters.Overrides
	// ignorePort compares hosts without the port that a client may name.
	ignorePort bool
}

type host struct {
	name     string
	domains  []string // lower case: exact, "*.suffix", "prefix.*" or "*"
	routes   []*Route
	request  Mutations
	response Mutations
	own      filters.Overrides
	attempts bool // tell the upstream the number of the attempt
}

// Route is one compiled route. Its action is one of Forward, Redirect and Direct.
type Route struct {
	Name      string
	Decorator string
	when      condition
	Action    Action
	Request   []Mutations // in the order in which they apply: route, virtual host, route configuration
	Response  []Mutations
	Overrides []filters.Overrides // from general to specific
	Attempts  bool
	Limits    filters.RouteLimits
	Metadata  map[string]*structpb.Struct
}

// Action is what a route does with a request: *Forward, *Redirect or *Direct.
type Action interface{ action() }

// Forward sends a request to a cluster.
type Forward struct {
	Clusters  []Weighted
	Total     uint64
	NotFound  int           // status when the cluster is not known
	Timeout   time.Duration // of the whole exchange; 0 = none
	MaxGRPC   *time.Duration
	Retry     *Retry // nil = none
	Mirrors   []Mirror
	Hash      []HashKey
	Rewrite   Rewrite
	WebSocket *bool // overrides the chain
}

// Direct answers without an upstream.
type Direct struct {
	Status int
	Body   string
}

func (*Forward) action()  {}
func (*Redirect) action() {}
func (*Direct) action()   {}

// Weighted is a cluster with its share of the requests.
type Weighted struct {
	Cluster   string
	Weight    uint32
	Request   Mutations
	Response  Mutations
	Overrides filters.Overrides
	Host      string // host rewrite; empty = none
}

// Mirror is a copy of a share of the requests, whose answers nobody reads.
type Mirror struct {
	Cluster string
	Share   match.Fraction
	Suffix  bool // the copy's host gets "-shadow"
}

// HashKey is one source of the number that picks an endpoint in a consistent way. One of the fields is set.
type HashKey struct {
	Header     string // canonical
	Cookie     string
	TTL        *time.Duration // of a cookie to make when the client sent none; nil = make none, 0 = a session cookie
	Path       string         // of that cookie
	Attributes string         // of that cookie, as they stand behind it
	Query      string
	SourceIP   bool
	Terminal   bool
}

// Pick chooses the cluster of a request.
func (f *Forward) Pick(rnd match.Rand) *Weighted { return pickWeighted(f.Clusters, f.Total, rnd) }

func pickWeighted(ws []Weighted, total uint64, rnd match.Rand) *Weighted {
	if len(ws) == 1 || total == 0 {
		return &ws[0]
	}
	at := rnd(total)
	for i := range ws {
		if w := uint64(ws[i].Weight); at < w {
			return &ws[i]
		} else {
			at -= w
		}
	}
	return &ws[len(ws)-1]
}

// condition is everything that a request has to meet for a route.
type condition struct {
	kind    pathKind
	path    string // folded when fold is set
	re      *regexp.Regexp
	fold    bool
	headers []match.Header
	query   []match.Query
	found   []func(*match.Request) bool // on what filters found out
	grpc    bool
	share   match.Fraction
}

type pathKind uint8

const (
	pathPrefix pathKind = iota
	pathExact
	pathRegex
	pathSegments
)

func (c *condition) match(q *match.Request, rnd match.Rand) bool {
	if !c.matchPath(q.Path) || c.grpc && !q.GRPC || !match.All(c.headers, q) {
		return false
	}
	for i := range c.query {
		if !c.query[i].Match(q) {
			return false
		}
	}
	for _, is := range c.found {
		if !is(q) {
			return false
		}
	}
	return c.share >= match.Always || c.share.Hit(rnd)
}

func (c *condition) matchPath(p string) bool {
	if c.fold && c.kind != pathRegex {
		p = strings.ToLower(p)
	}
	switch c.kind {
	case pathExact:
		return p == c.path
	case pathRegex:
		return c.re.MatchString(p)
	case pathSegments:
		return strings.HasPrefix(p, c.path) && (len(p) == len(c.path) || p[len(c.path)] == '/')
	case pathPrefix:
	}
	return strings.HasPrefix(p, c.path)
}

// Match returns the first route for q, or nil.
func (r *Rules) Match(q *match.Request, rnd match.Rand) *Route {
	h := r.host(q.Authority)
	if h == nil {
		return nil
	}
	for _, rt := range h.routes {
		if rt.when.match(q, rnd) {
			return rt
		}
	}
	return nil
}

// Overrides are those that hold for every request of a virtual host, also when no route matches.
func (r *Rules) Overrides(q *match.Request) []filters.Overrides {
	h := r.host(q.Authority)
	if h == nil {
		return []filters.Overrides{r.own}
	}
	return []filters.Overrides{r.own, h.own}
}

// host finds the virtual host: exact, then the longest suffix, then the longest prefix, then "*".
func (r *Rules) host(authority string) *host {
	if len(r.hosts) == 1 && len(r.hosts[0].domains) == 1 && r.hosts[0].domains[0] == "*" {
		return &r.hosts[0]
	}
	name := strings.ToLower(authority)
	if i := strings.LastIndexByte(name, ':'); r.ignorePort && i > strings.LastIndexByte(name, ']') {
		name = name[:i]
	}
	var best *host
	rank, length := 0, 0
	for i := range r.hosts {
		for _, d := range r.hosts[i].domains {
			k := domainRank(d, name)
			if k > rank || k == rank && k > 0 && len(d) > length {
				best, rank, length = &r.hosts[i], k, len(d)
			}
		}
	}
	return best
}

func domainRank(domain, name string) int {
	switch {
	case domain == "*":
		return 1
	case domain == name:
		return 4
	case strings.HasPrefix(domain, "*") && len(name) > len(domain)-1 && strings.HasSuffix(name, domain[1:]):
		return 3
	case strings.HasSuffix(domain, "*") && len(name) > len(domain)-1 && strings.HasPrefix(name, domain[:len(domain)-1]):
		return 2
	}
	return 0
}

// Rewrite changes path and host of a forwarded request.
type Rewrite struct {
	Prefix     string // replaces what the route's path condition matched; used when HasPrefix is set
	HasPrefix  bool
	Regex      *regexp.Regexp
	Substitute string // in Go's syntax
	Host       string
	HostHeader string // canonical
	Forwarded  bool   // keep the host before the change in X-Forwarded-Host
}

// Path returns the path that the upstream gets for p.
func (r *Route) Path(p string) string {
	f, ok := r.Action.(*Forward)
	if !ok {
		return p
	}
	switch {
	case f.Rewrite.HasPrefix:
		return r.replacePrefix(p, f.Rewrite.Prefix)
	case f.Rewrite.Regex != nil:
		return f.Rewrite.Regex.ReplaceAllString(p, f.Rewrite.Substitute)
	}
	return p
}

func (r *Route) replacePrefix(p, by string) string {
	n := len(p) // an exact path or a regex matched all of it
	if r.when.kind == pathPrefix || r.when.kind == pathSegments {
		n = len(r.when.path)
	}
	return by + p[n:]
}

// Redirect answers with another address.
type Redirect struct {
	Status     int
	Scheme     string
	HTTPS      bool
	Host       string
	Port       uint32
	Path       string // replaces the path, may bring its own query
	Prefix     string
	HasPrefix  bool
	Regex      *regexp.Regexp
	Substitute string
	StripQuery bool
}

// Location is where a redirect sends q.
func (r *Route) Location(q *match.Request) string {
	d, ok := r.Action.(*Redirect)
	if !ok {
		return ""
	}
	scheme := q.Scheme
	if d.HTTPS {
		scheme = "https"
	}
	if d.Scheme != "" {
		scheme = d.Scheme
	}
	return scheme + "://" + d.authority(q, scheme) + r.redirectPath(d, q)
}

func (d *Redirect) authority(q *match.Request, scheme string) string {
	name, port := splitAuthority(q.Authority)
	if d.Host != "" {
		name, port = splitAuthority(d.Host)
	} else if scheme != q.Scheme && defaultPort(q.Scheme, port) {
		port = "" // the port belonged to the scheme that is left
	}
	if d.Port != 0 {
		port = itoa(d.Port)
		if defaultPort(scheme, port) {
			port = ""
		}
	}
	if port == "" {
		return name
	}
	return name + ":" + port
}

func (r *Route) redirectPath(d *Redirect, q *match.Request) string {
	path, query := q.Path, q.Query
	switch {
	case d.Path != "":
		own := ""
		path, own, _ = strings.Cut(d.Path, "?")
		if own != "" {
			query = own
		}
	case d.HasPrefix:
		path = r.replacePrefix(path, d.Prefix)
	case d.Regex != nil:
		path = d.Regex.ReplaceAllString(path, d.Substitute)
	}
	if query == "" || d.StripQuery {
		return path
	}
	return path + "?" + query
}

func defaultPort(scheme, port string) bool {
	return scheme == "http" && port == "80" || scheme == "https" && port == "443"
}

// splitAuthority cuts "host:port"; an IPv6 address keeps its brackets.
func splitAuthority(a string) (name, port string) {
	if ap, err := netip.ParseAddr(strings.Trim(a, "[]")); err == nil && ap.Is6() {
		return a, ""
	}
	if i := strings.LastIndexByte(a, ':'); i > strings.LastIndexByte(a, ']') && i >= 0 {
		return a[:i], a[i+1:]
	}
	return a, ""
}

// Facts are what a value in a header or a log line may refer to.
type Facts interface {
	// Operator returns the value of a command like %REQ(x)%; empty = not known.
	Operator(name, arg string) string
}

// Mutations changes the headers of a request or a response.
type Mutations struct {
	Remove []string // canonical
	Put    []Put
}

// Put sets or adds one header.
type Put struct {
	Name      string // canonical, or ":authority"
	Value     *Format
	Mode      PutMode
	KeepEmpty bool
}

// PutMode is what Put does to values that are there already.
type PutMode uint8

// Modes of append_action.
const (
	PutAppend PutMode = iota
	PutIfAbsent
	PutOverwrite
	PutIfPresent
)

// Apply changes h. It returns a new authority, or "".
func (m *Mutations) Apply(h http.Header, facts Facts) (authority string) {
	for _, n := range m.Remove {
		delete(h, n)
	}
	for i := range m.Put {
		p := &m.Put[i]
		v := p.Value.Render(facts, "")
		if v == "" && !p.KeepEmpty {
			continue
		}
		if p.Name == ":authority" {
			authority = v
			continue
		}
		_, there := h[p.Name]
		switch p.Mode {
		case PutAppend:
			h[p.Name] = append(h[p.Name], v)
		case PutIfAbsent:
			if !there {
				h[p.Name] = []string{v}
			}
		case PutOverwrite:
			h[p.Name] = []string{v}
		case PutIfPresent:
			if there {
				h[p.Name] = []string{v}
			}
		}
	}
	return authority
}

// All returns every route, in the order in which they are tried.
func (r *Rules) All() []*Route {
	var out []*Route
	for i := range r.hosts {
		out = append(out, r.hosts[i].routes...)
	}
	return out
}

// When describes the route's path condition and counts the others.
func (r *Route) When() string {
	c := &r.when
	kind := map[pathKind]string{pathPrefix: "prefix ", pathExact: "path ", pathRegex: "regex ", pathSegments: "segments "}[c.kind]
	text := c.path
	if c.kind == pathRegex {
		text = c.re.String()
	}
	more := ""
	if len(c.found) > 0 {
		more = fmt.Sprintf(", %d facts of filters", len(c.found))
	}
	return fmt.Sprintf("%s%s (%d headers, %d query parameters%s)", kind, text, len(c.headers), len(c.query), more)
}
