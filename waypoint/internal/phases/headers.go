package phases

import (
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
)

// hopHeaders belong to one connection and are never passed on.
func hopHeaders() []string {
	return []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}
}

// keptHeaders cannot be declared to belong to a connection: a client could else hide from the application what policies saw.
func keptHeader(name string) bool {
	switch name {
	case "Host", "Authorization", "Cookie", "Content-Length", "Content-Type", "X-Request-Id", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host":
		return true
	}
	return false
}

// removeHop takes the headers of a connection out of h. It returns the protocol that an upgrade asked for.
func removeHop(h http.Header) (upgrade string) {
	if httpguts.HeaderValuesContainsToken(h["Connection"], "Upgrade") {
		upgrade = offered(h["Upgrade"])
	}
	trailers := httpguts.HeaderValuesContainsToken(h["Te"], "trailers")
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); name != "" && !keptHeader(name) {
				delete(h, name)
			}
		}
	}
	for _, name := range hopHeaders() {
		delete(h, name)
	}
	if trailers {
		h["Te"] = []string{"trailers"} // gRPC insists on it, and it is true: trailers are passed on
	}
	return upgrade
}

// offered are the protocols that a client would change to, without HTTP/2: nobody has to take that offer, and the request is the
// same without it.
func offered(lists []string) string {
	var out []string
	for _, list := range lists {
		for one := range strings.SplitSeq(list, ",") {
			if one = strings.TrimSpace(one); one != "" && !strings.EqualFold(one, "h2c") {
				out = append(out, one)
			}
		}
	}
	return strings.Join(out, ", ")
}

// sanitize removes what a client may not say and adds what every request has, before anything is judged.
func (x *exchange) sanitize() {
	h := x.r.Header
	x.facts.upgrade = removeHop(h)
	for _, name := range forgeable() {
		delete(h, name)
	}
	if h.Get("X-Forwarded-Proto") == "" {
		h.Set("X-Forwarded-Proto", "http")
	}
	if x.chain.RequestID && h.Get("X-Request-Id") == "" {
		h.Set("X-Request-Id", x.h.cfg.NewID())
	}
}

// mutateRequest makes the upstream's headers from the client's. It returns the host and the target.
func (x *exchange) mutateRequest(f *table.Forward, attempt int) (h http.Header, host, path string) {
	h = x.r.Header.Clone()
	host = x.q.Authority
	set := func(m *table.Mutations) {
		if a := m.Apply(h, &x.facts); a != "" {
			host = a
		}
	}
	if w := x.facts.weighted; w != nil {
		set(&w.Request)
	}
	for i := range x.route.Request {
		set(&x.route.Request[i])
	}
	rewritten := host
	switch w := x.facts.weighted; {
	case w != nil && w.Host != "":
		rewritten = w.Host
	case f.Rewrite.Host != "":
		rewritten = f.Rewrite.Host
	case f.Rewrite.HostHeader != "" && h.Get(f.Rewrite.HostHeader) != "":
		rewritten = h.Get(f.Rewrite.HostHeader)
	}
	if rewritten != host && f.Rewrite.Forwarded {
		h.Add("X-Forwarded-Host", host)
	}
	host = rewritten
	path = x.route.Path(x.q.Path)
	if path != x.q.Path {
		h.Set("X-Envoy-Original-Path", x.q.FullPath())
	}
	if x.route.Attempts {
		h.Set("X-Envoy-Attempt-Count", strconv.Itoa(attempt))
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // otherwise the HTTP client names itself
	}
	return h, host, path
}

// mutateResponse changes the headers of an answer as route and cluster say.
func (x *exchange) mutateResponse(h http.Header) {
	if w := x.facts.weighted; w != nil {
		w.Response.Apply(h, &x.facts)
	}
	if x.route != nil {
		for i := range x.route.Response {
			x.route.Response[i].Apply(h, &x.facts)
		}
	}
}

// writeHeaders starts the response to the client.
func (x *exchange) writeHeaders(status int, h http.Header, detail string) {
	out := x.w.Header()
	maps.Copy(out, h)
	maps.Copy(out, x.cors)
	x.authz.change(out)
	x.tellLimits(out)
	if x.chain != nil {
		switch _, there := out["Server"]; {
		case x.chain.ServerMode == table.ServerOverwrite, x.chain.ServerMode == table.ServerIfAbsent && !there:
			out.Set("Server", x.chain.ServerName)
		}
	}
	if _, ok := out["Content-Type"]; !ok {
		out["Content-Type"] = nil // nobody guesses it from the body
	}
	if x.h.draining.Load() {
		out.Set("Connection", "close")
	}
	x.facts.status, x.facts.response = status, out
	if x.facts.detail == "" {
		x.facts.detail = detail
	}
	x.sent = true
	x.w.WriteHeader(status)
}

// respondHeaders answers without a body.
func (x *exchange) respondHeaders(status int, h http.Header, detail string) {
	x.respond(status, h, detail, "")
}

// respond answers by ourselves.
func (x *exchange) respond(status int, h http.Header, detail, body string) {
	if status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	x.writeHeaders(status, h, detail)
	if body != "" && x.r.Method != http.MethodHead {
		n, _ := x.w.Write([]byte(body)) // a client that is gone is seen by its context
		x.facts.sentBytes += int64(n)
	}
}

// grpcTimeout reads a grpc-timeout header; ok is false when there is none that can be read.
func grpcTimeout(h http.Header) (time.Duration, bool) {
	v := h.Get("Grpc-Timeout")
	const digits = 8
	if len(v) < 2 || len(v) > digits+1 {
		return 0, false
	}
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	unit, ok := units[v[len(v)-1]]
	if !ok {
		return 0, false
	}
	const longest = 1 << 62
	if d := time.Duration(n); d > longest/unit {
		return longest, true
	}
	return time.Duration(n) * unit, true
}
