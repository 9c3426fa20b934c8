package phases

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/extauthz"
	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// authorizing is what the filters before have to say to those behind, and to the answer.
type authorizing struct {
	found    map[string]string // policies that shadow rules found, by filters.ShadowKey
	response []filters.HeaderChange
}

// tried remembers what shadow rules found.
func (a *authorizing) tried(f *filters.RBAC, v filters.Verdict) {
	if v.Shadow == "" {
		return
	}
	if a.found == nil {
		a.found = map[string]string{}
	}
	a.found[f.ShadowKey()] = v.Shadow
}

// change carries out what a server wanted of an answer that it let come.
func (a *authorizing) change(h http.Header) {
	for _, c := range a.response {
		c.Apply(h)
	}
}

func (h *Handler) asker() extauthz.Asker {
	return extauthz.Asker{Upstreams: h.cfg.Upstreams, Rand: h.cfg.Rand}
}

// extAuthz has a server decide, if the policies say that it is asked.
func (x *exchange) extAuthz(f *filters.ExtAuthz) error {
	if !f.Asks(x.authz.found) {
		return nil
	}
	in := filters.AuthzInput{
		Request: &x.q, Protocol: x.r.Proto, ID: x.r.Header.Get("X-Request-Id"), Time: time.Now(), Size: x.r.ContentLength,
	}
	if f.Body != nil {
		if err := x.lookAhead(f.Body, &in); err != nil {
			return err
		}
	}
	a := x.h.asker().Ask(x.ctx, f, in)
	if x.r.Context().Err() != nil {
		return x.clientGone()
	}
	switch a.Verdict {
	case filters.AuthzAllowed:
		return x.allowed(f, &a)
	case filters.AuthzDenied:
		return &failure{status: a.Status, flag: "UAEX", detail: "ext_authz_denied", header: a.Header, body: a.Body}
	case filters.AuthzFailed:
	}
	return x.unanswered(f, a.Why)
}

// unanswered does what the filter says of a question without an answer: the request is refused, unless it asks for the contrary.
func (x *exchange) unanswered(f *filters.ExtAuthz, why error) error {
	x.h.cfg.Log.Warn("authorization server gave no answer", obs.F("cluster", f.Cluster), obs.F("chain", x.facts.chain),
		obs.F("letThrough", f.FailOpen), obs.Err(why))
	if f.FailOpen {
		if f.MarkOpen {
			x.r.Header.Set("X-Envoy-Auth-Failure-Mode-Allowed", "true")
		}
		return nil
	}
	return &failure{status: f.OnError, flag: "UAEX", detail: "ext_authz_error", err: why}
}

// allowed changes the request as the server wants. What stands behind sees it so.
func (x *exchange) allowed(f *filters.ExtAuthz, a *filters.AuthzAnswer) error {
	for _, name := range a.Remove {
		delete(x.r.Header, name)
	}
	for _, c := range a.Request {
		c.Apply(x.r.Header)
	}
	x.q.Query = a.Query(x.q.Query)
	x.authz.response = append(x.authz.response, a.Response...)
	if f.ClearRoute && a.Changes() {
		return x.match()
	}
	return nil
}

// lookAhead reads as much of the body as the server is shown, and puts it back.
func (x *exchange) lookAhead(b *filters.AuthzBody, in *filters.AuthzInput) error {
	tooLarge := &failure{status: http.StatusRequestEntityTooLarge, detail: "request_payload_too_large", body: "Payload Too Large"}
	switch {
	case x.r.Body == http.NoBody || x.r.ContentLength == 0:
		return nil
	case x.r.ContentLength > int64(b.Max) && !b.Partial:
		return tooLarge
	}
	rest := x.body.ReadCloser
	begin, err := io.ReadAll(io.LimitReader(rest, int64(b.Max)+1))
	switch {
	case x.r.Context().Err() != nil:
		return x.clientGone()
	case err != nil:
		return &failure{status: http.StatusBadRequest, flag: "DPE", detail: "http1.codec_error", body: "the request's body cannot be read", close: true, err: err}
	case len(begin) > int(b.Max) && !b.Partial:
		return tooLarge
	}
	in.Body = begin
	if len(begin) > int(b.Max) {
		in.Body, in.Cut = begin[:b.Max], true
	}
	x.body.ReadCloser = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(begin), rest), rest}
	return nil
}

// extAuthz has a server decide about an opaque connection.
func (f *flow) extAuthz(ctx context.Context, n *filters.ExtAuthz, q *match.Request) error {
	if !n.Asks(f.authz.found) {
		return nil
	}
	a := f.h.asker().Ask(ctx, n, filters.AuthzInput{Request: q, Time: f.start})
	switch a.Verdict {
	case filters.AuthzAllowed:
		return nil
	case filters.AuthzDenied:
		return &failure{status: http.StatusForbidden, flag: "UAEX", detail: "ext_authz_denied", err: errors.New("denied by the authorization server")}
	case filters.AuthzFailed:
	}
	f.h.cfg.Log.Warn("authorization server gave no answer", obs.F("cluster", n.Cluster), obs.F("chain", f.chain.Name),
		obs.F("letThrough", n.FailOpen), obs.Err(a.Why))
	if n.FailOpen {
		return nil
	}
	return &failure{status: http.StatusForbidden, flag: "UAEX", detail: "ext_authz_error", err: a.Why}
}
