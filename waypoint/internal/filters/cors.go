package filters

import (
	"fmt"
	"net/http"

	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// CORS answers preflight requests and marks the responses to allowed origins. Without origins it does nothing.
type CORS struct {
	origins     []match.String
	methods     string
	headers     string
	expose      string
	maxAge      string
	credentials bool
	forward     bool // a preflight of another origin goes on to the upstream
	enabled     match.Fraction
}

func (*CORS) http() {}

// CORSPlan is what a CORS policy says of one request.
type CORSPlan struct {
	Answer   bool        // answer 200 with Response, do not forward
	Response http.Header // headers for the response; nil = leave it alone
}

// Plan decides for one request.
func (c *CORS) Plan(q *match.Request, rnd match.Rand) CORSPlan {
	origin := q.Header.Get("Origin")
	if origin == "" || len(c.origins) == 0 || !c.enabled.Hit(rnd) {
		return CORSPlan{}
	}
	preflight := q.Method == http.MethodOptions && q.Header.Get("Access-Control-Request-Method") != ""
	if !c.allowed(origin) {
		return CORSPlan{Answer: preflight && !c.forward}
	}
	h := http.Header{"Access-Control-Allow-Origin": {origin}}
	if c.credentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	if !preflight {
		setIf(h, "Access-Control-Expose-Headers", c.expose)
		return CORSPlan{Response: h}
	}
	setIf(h, "Access-Control-Allow-Methods", c.methods)
	setIf(h, "Access-Control-Allow-Headers", c.headers)
	setIf(h, "Access-Control-Max-Age", c.maxAge)
	return CORSPlan{Answer: true, Response: h}
}

func setIf(h http.Header, name, value string) {
	if value != "" {
		h.Set(name, value)
	}
}

func (c *CORS) allowed(origin string) bool {
	for _, m := range c.origins {
		if m.Match(origin) {
			return true
		}
	}
	return false
}

func compileCORS(p *corsv3.CorsPolicy) (*CORS, error) {
	if err := strict.Only(p, "allow_origin_string_match", "allow_methods", "allow_headers", "expose_headers", "max_age",
		"allow_credentials", "filter_enabled", "forward_not_matching_preflights"); err != nil {
		return nil, err
	}
	c := &CORS{
		methods: p.GetAllowMethods(), headers: p.GetAllowHeaders(), expose: p.GetExposeHeaders(), maxAge: p.GetMaxAge(),
		credentials: p.GetAllowCredentials().GetValue(), forward: true,
	}
	if f := p.GetForwardNotMatchingPreflights(); f != nil {
		c.forward = f.GetValue()
	}
	var err error
	if c.enabled, err = match.CompileRuntime(p.GetFilterEnabled()); err != nil {
		return nil, fmt.Errorf("filter_enabled: %w", err)
	}
	for _, o := range p.GetAllowOriginStringMatch() {
		m, err := match.CompileString(o)
		if err != nil {
			return nil, fmt.Errorf("allow_origin_string_match: %w", err)
		}
		c.origins = append(c.origins, m)
	}
	return c, nil
}
