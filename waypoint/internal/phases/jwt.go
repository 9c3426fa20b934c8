package phases

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/jwt"
)

// Keys are the issuers' keys that somebody fetches.
type Keys interface {
	// Keys gives what was fetched; nil while there is nothing.
	Keys(src jwt.Source) *jwt.Keys
	// Refresh waits for keys other than seen. False: there are none, and it is not worth asking again now.
	Refresh(ctx context.Context, src jwt.Source, seen *jwt.Keys) bool
}

// noKeys stands where nobody fetches: tokens of such issuers are refused.
type noKeys struct{}

func (noKeys) Keys(jwt.Source) *jwt.Keys                           { return nil }
func (noKeys) Refresh(context.Context, jwt.Source, *jwt.Keys) bool { return false }

// authenticate verifies the request's tokens and makes of the request what they say.
func (x *exchange) authenticate(f *filters.JWT) error {
	keys := x.h.cfg.Keys
	if keys == nil {
		keys = noKeys{}
	}
	f.Sanitize(&x.q)
	v := f.Judge(&x.q, keys.Keys, time.Now())
	newer := false
	for _, w := range v.Wants {
		newer = keys.Refresh(x.ctx, w.Source, w.Seen) || newer
	}
	if x.ctx.Err() != nil {
		return x.clientGone()
	}
	if newer {
		v = f.Judge(&x.q, keys.Keys, time.Now())
	}
	if v.Status != jwt.OK {
		return x.unauthenticated(&v)
	}
	if v.Apply(&x.q) {
		x.route, x.over = nil, nil
		return x.match()
	}
	return nil
}

// tokens tells what becomes of the tokens, with the keys that are there: nothing is fetched for a question.
func (e *explanation) tokens(name string, f *filters.JWT) bool {
	keys := e.h.cfg.Keys
	if keys == nil {
		keys = noKeys{}
	}
	f.Sanitize(&e.q)
	v := f.Judge(&e.q, keys.Keys, time.Now())
	for _, w := range v.Wants {
		e.why("%s would fetch keys from %s first", name, w.Source.URI)
	}
	if v.Status != jwt.OK {
		e.why("%s refuses the token: %s", name, v.Status)
		return e.refused(e.unauthenticated(&v))
	}
	e.why("%s lets it pass", name)
	if v.Apply(&e.q) {
		e.route, e.over = nil, nil
		return e.refused(e.match())
	}
	return false
}

func (x *exchange) unauthenticated(v *filters.TokenVerdict) error {
	text := v.Status.String()
	out := &failure{
		status: v.Status.Code(),
		detail: "jwt_authn_access_denied{" + strings.ReplaceAll(text, " ", "_") + "}",
		err:    fmt.Errorf("token refused: %s", text),
	}
	if v.Strip {
		return out
	}
	challenge := `Bearer realm="` + x.realm() + `"`
	if v.Status != jwt.Missing {
		challenge += `, error="invalid_token"`
	}
	out.body, out.header = text, http.Header{"Www-Authenticate": {challenge}}
	return out
}

// realm is the URL that was asked for, as far as it may be repeated inside quotes.
func (x *exchange) realm() string {
	const limit = 256
	path := x.q.FullPath()
	if len(path) > limit {
		path = path[:limit]
	}
	return strings.NewReplacer(`"`, "%22", `\`, "%5C").Replace(x.q.Scheme + "://" + x.q.Authority + path)
}
