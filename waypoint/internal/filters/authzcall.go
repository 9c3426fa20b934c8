package filters

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// AuthzInput is what a server is told beside the request itself.
type AuthzInput struct {
	Request  *match.Request
	Protocol string // "HTTP/1.1"; empty for an opaque connection
	ID       string
	Time     time.Time
	Size     int64 // of the body; -1 = not known
	Body     []byte
	Cut      bool // Body is only its beginning
}

// AuthzVerdict is what became of a question.
type AuthzVerdict uint8

// The verdicts.
const (
	AuthzFailed AuthzVerdict = iota // no answer, or one that cannot be carried out
	AuthzDenied
	AuthzAllowed
)

// AuthzAnswer is what a server said, checked and ready to be carried out.
type AuthzAnswer struct {
	Verdict AuthzVerdict
	Why     error // of a failure

	Status int // of a denial
	Header http.Header
	Body   string

	Request  []HeaderChange // of what goes on
	Remove   []string
	Response []HeaderChange // of what comes back
	SetQuery [][2]string
	CutQuery []string
}

// HeaderChange sets, adds or appends one value.
type HeaderChange struct {
	Name, Value string
	How         corev3.HeaderValueOption_HeaderAppendAction
}

// Failed is the answer that did not come.
func Failed(format string, args ...any) AuthzAnswer {
	return AuthzAnswer{Why: fmt.Errorf(format, args...)}
}

// Changes says whether the answer changes the request.
func (a *AuthzAnswer) Changes() bool {
	return len(a.Request)+len(a.Remove)+len(a.SetQuery)+len(a.CutQuery) > 0
}

// Apply carries out a change.
func (c HeaderChange) Apply(h http.Header) {
	_, there := h[c.Name]
	switch c.How {
	case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		h[c.Name] = append(slices.Clip(h[c.Name]), c.Value)
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		if !there {
			h[c.Name] = []string{c.Value}
		}
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		if there {
			h[c.Name] = []string{c.Value}
		}
	default:
		h[c.Name] = []string{c.Value}
	}
}

// Query is query after the answer's changes. What does not change keeps its spelling.
func (a *AuthzAnswer) Query(query string) string {
	if len(a.SetQuery)+len(a.CutQuery) == 0 {
		return query
	}
	gone := func(name string) bool {
		return slices.Contains(a.CutQuery, name) || slices.ContainsFunc(a.SetQuery, func(kv [2]string) bool { return kv[0] == name })
	}
	var out []string
	for part := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(part, "=")
		if d, err := url.QueryUnescape(name); err == nil {
			name = d
		}
		if part != "" && !gone(name) {
			out = append(out, part)
		}
	}
	for _, kv := range a.SetQuery {
		out = append(out, url.QueryEscape(kv[0])+"="+url.QueryEscape(kv[1]))
	}
	return strings.Join(out, "&")
}

// framing are headers that belong to one message or connection; no server may change them in another.
func framing(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "Host", "Expect":
		return true
	}
	return strings.HasPrefix(name, ":")
}

// checkChange refuses what cannot be a header of somebody else's message.
func checkChange(h *corev3.HeaderValue) error {
	switch name, value := http.CanonicalHeaderKey(h.GetKey()), headerText(h); {
	case !httpguts.ValidHeaderFieldName(name):
		return fmt.Errorf("header name %q is not valid", h.GetKey())
	case framing(name):
		return fmt.Errorf("header %q may not be changed by an authorization server", h.GetKey())
	case !httpguts.ValidHeaderFieldValue(value):
		return fmt.Errorf("value of header %q is not valid", h.GetKey())
	}
	return nil
}

func headerText(h *corev3.HeaderValue) string {
	if raw := h.GetRawValue(); len(raw) > 0 {
		return string(raw)
	}
	return h.GetValue()
}

func changes(list []*corev3.HeaderValueOption) ([]HeaderChange, error) {
	const most = 200
	if len(list) > most {
		return nil, fmt.Errorf("%d header changes, more than %d", len(list), most)
	}
	out := make([]HeaderChange, 0, len(list))
	for _, o := range list {
		if err := checkChange(o.GetHeader()); err != nil {
			return nil, err
		}
		c := HeaderChange{Name: http.CanonicalHeaderKey(o.GetHeader().GetKey()), Value: headerText(o.GetHeader()), How: o.GetAppendAction()}
		switch appended := o.GetAppend(); { //nolint:staticcheck // servers still write the older field
		case appended.GetValue():
			c.How = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
		case appended != nil || c.How == corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
			c.How = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD // what an answer means that says nothing
		}
		out = append(out, c)
	}
	return out, nil
}

func anyName(list []match.String, name string) bool {
	return slices.ContainsFunc(list, func(m match.String) bool { return m.Match(strings.ToLower(name)) })
}

// tells says whether the server is told a header. name is canonical.
func (f *ExtAuthz) tells(name string) bool {
	return (!f.filtered || anyName(f.allowed, name)) && !anyName(f.hidden, name)
}

func utf8Text(s string) string { return strings.ToValidUTF8(s, "!") }

// Check is the question of a gRPC call.
func (f *ExtAuthz) Check(in AuthzInput) *authv3.CheckRequest {
	q := in.Request
	a := &authv3.AttributeContext{
		Source:      &authv3.AttributeContext_Peer{Address: socket(q.Source), Principal: q.Principal},
		Destination: &authv3.AttributeContext_Peer{Address: socket(q.Destination), Principal: q.Local},
		Request:     &authv3.AttributeContext_Request{Time: timestamppb.New(in.Time)},
	}
	if in.Protocol == "" {
		return &authv3.CheckRequest{Attributes: a}
	}
	headers := map[string]string{}
	for name := range q.Header {
		if f.tells(name) {
			v, _ := q.Get(name)
			headers[strings.ToLower(name)] = utf8Text(v)
		}
	}
	for _, name := range []string{":authority", ":method", ":path", ":scheme"} {
		if v, ok := q.Get(name); ok && f.tells(name) {
			headers[name] = utf8Text(v)
		}
	}
	h := &authv3.AttributeContext_HttpRequest{
		Id: in.ID, Method: q.Method, Headers: headers, Path: utf8Text(q.FullPath()), Host: utf8Text(q.Authority), Scheme: q.Scheme,
		Size: in.Size, Protocol: in.Protocol,
	}
	if f.Body != nil {
		headers["x-envoy-auth-partial-body"] = strconv.FormatBool(in.Cut)
		if f.Body.Bytes {
			h.RawBody = in.Body
		} else {
			h.Body = utf8Text(string(in.Body))
		}
	}
	a.Request.Http = h
	return &authv3.CheckRequest{Attributes: a}
}

func socket(ap netip.AddrPort) *corev3.Address {
	if !ap.IsValid() {
		return nil
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ap.Addr().Unmap().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(ap.Port())},
	}}}
}

// OfCheck reads the answer of a gRPC call.
func (f *ExtAuthz) OfCheck(r *authv3.CheckResponse) AuthzAnswer {
	if r.GetStatus().GetCode() != 0 {
		return denial(r)
	}
	ok := r.GetOkResponse()
	a := AuthzAnswer{Verdict: AuthzAllowed}
	var errs [2]error
	a.Request, errs[0] = changes(ok.GetHeaders())
	a.Response, errs[1] = changes(ok.GetResponseHeadersToAdd())
	if err := errors.Join(errs[:]...); err != nil {
		return Failed("the server's answer: %w", err)
	}
	for _, name := range ok.GetHeadersToRemove() {
		if name = http.CanonicalHeaderKey(name); !framing(name) {
			a.Remove = append(a.Remove, name)
		}
	}
	for _, p := range ok.GetQueryParametersToSet() {
		a.SetQuery = append(a.SetQuery, [2]string{p.GetKey(), p.GetValue()})
	}
	a.CutQuery = ok.GetQueryParametersToRemove()
	return a
}

func denial(r *authv3.CheckResponse) AuthzAnswer {
	if r.GetErrorResponse() != nil {
		return Failed("the server answered that it failed: %d %s", r.GetStatus().GetCode(), r.GetStatus().GetMessage())
	}
	d := r.GetDeniedResponse()
	a := AuthzAnswer{Verdict: AuthzDenied, Status: http.StatusForbidden, Header: http.Header{}, Body: d.GetBody()}
	if s := int(d.GetStatus().GetCode()); s != 0 {
		if s < 200 || s > 599 {
			return Failed("the server denied with status %d", s)
		}
		a.Status = s
	}
	list, err := changes(d.GetHeaders())
	if err != nil {
		return Failed("the server's denial: %w", err)
	}
	for _, c := range list {
		c.Apply(a.Header)
	}
	return a
}

// HTTPCheck is the question of an HTTP call: where to, the host, and the headers.
func (f *ExtAuthz) HTTPCheck(in AuthzInput) (target, host string, h http.Header) {
	q := in.Request
	h = http.Header{}
	for name, values := range q.Header {
		if name != "Content-Length" && !framing(name) && (anyName(f.allowed, name) || name == "Authorization") && !anyName(f.hidden, name) {
			h[name] = slices.Clone(values)
		}
	}
	for _, a := range f.call.add {
		h[http.CanonicalHeaderKey(a.GetKey())] = []string{headerText(a)}
	}
	if f.Body != nil {
		h["X-Envoy-Auth-Partial-Body"] = []string{strconv.FormatBool(in.Cut)}
	}
	if target = f.call.override; target == "" {
		target = f.call.prefix + q.FullPath()
	}
	return target, q.Authority, h
}

// OfHTTP reads the answer of an HTTP call.
func (f *ExtAuthz) OfHTTP(status int, h http.Header, body string) AuthzAnswer {
	switch {
	case status >= http.StatusInternalServerError:
		return Failed("the server answered %d", status)
	case status != http.StatusOK:
		a := AuthzAnswer{Verdict: AuthzDenied, Status: status, Header: http.Header{}, Body: body}
		for name, values := range h {
			always := name == "Www-Authenticate" || name == "Location"
			if !framing(name) && (!f.call.clientSet || always || anyName(f.call.client, name)) {
				a.Header[name] = slices.Clone(values)
			}
		}
		return a
	}
	a := AuthzAnswer{Verdict: AuthzAllowed}
	for name, values := range h {
		if framing(name) {
			continue
		}
		for i, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return Failed("the server's header %q is not valid", name)
			}
			how := corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
			if i > 0 || !anyName(f.call.upstream, name) {
				how = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
			}
			if anyName(f.call.upstream, name) || anyName(f.call.upstreamAppend, name) {
				a.Request = append(a.Request, HeaderChange{Name: name, Value: v, How: how})
			}
			if anyName(f.call.clientOnSuccess, name) {
				a.Response = append(a.Response, HeaderChange{Name: name, Value: v})
			}
		}
	}
	for name := range strings.SplitSeq(h.Get("X-Envoy-Auth-Headers-To-Remove"), ",") {
		if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); name != "" && !framing(name) {
			a.Remove = append(a.Remove, name)
		}
	}
	slices.SortStableFunc(a.Request, func(x, y HeaderChange) int { return strings.Compare(x.Name, y.Name) })
	slices.SortStableFunc(a.Response, func(x, y HeaderChange) int { return strings.Compare(x.Name, y.Name) })
	return a
}
