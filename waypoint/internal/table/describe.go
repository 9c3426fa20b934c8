package table

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// Tried is one route that Match looked at, and why it was not the one.
type Tried struct {
	Route *Route
	Unmet string // the first condition that q does not meet; empty = it meets all that does not depend on chance
}

// Tried lists the routes that Match looks at for q, in its order, up to and with the first that meets every condition. A route that
// takes only a share of the requests does not end the list: chance decides there.
func (r *Rules) Tried(q *match.Request) (host string, list []Tried) {
	h := r.host(q.Authority)
	if h == nil {
		return "", nil
	}
	for _, rt := range h.routes {
		t := Tried{Route: rt, Unmet: rt.when.unmet(q)}
		list = append(list, t)
		if t.Unmet == "" && rt.when.share >= match.Always {
			break
		}
	}
	return h.name, list
}

// unmet names the first condition that q does not meet, in the order of match.
func (c *condition) unmet(q *match.Request) string {
	switch {
	case !c.matchPath(q.Path):
		return "path is not " + c.pathText()
	case c.grpc && !q.GRPC:
		return "is no gRPC call"
	}
	for i := range c.headers {
		if !c.headers[i].Match(q) {
			return "header " + c.headers[i].String()
		}
	}
	for i := range c.query {
		if !c.query[i].Match(q) {
			return "query parameter " + c.query[i].Name()
		}
	}
	return ""
}

func (c *condition) pathText() string {
	switch c.kind {
	case pathExact:
		return strconv.Quote(c.path)
	case pathRegex:
		return "like " + strconv.Quote(c.re.String())
	case pathSegments:
		return strconv.Quote(c.path) + " or below it"
	case pathPrefix:
	}
	return strconv.Quote(c.path) + "…"
}

// Words are the reasons as retry_on spells them.
func (c Cause) Words() []string {
	var out []string
	for _, w := range []string{
		"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-4xx", "retriable-status-codes",
		"retriable-headers", "envoy-ratelimited", "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
	} {
		if bit, _ := causeOf(w); c&bit != 0 {
			out = append(out, w)
		}
	}
	return out
}

// String says how often, and on what.
func (r *Retry) String() string {
	if r == nil || r.Retries == 0 {
		return "none"
	}
	s := fmt.Sprintf("up to %d on %s", r.Retries, strings.Join(r.On.Words(), ","))
	if len(r.Codes) > 0 {
		codes := slices.Clone(r.Codes)
		slices.Sort(codes)
		s += fmt.Sprintf(" %d", codes)
	}
	if r.PerTry > 0 {
		s += ", each within " + r.PerTry.String()
	}
	return s + fmt.Sprintf(", after %v to %v", r.Base, r.Max)
}
