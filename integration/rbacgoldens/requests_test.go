//go:build lab

package rbacgoldens

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// request is what policies look at. Its JSON is what the seams read.
type request struct {
	TCP       bool              `json:"tcp,omitempty"`
	Principal string            `json:"principal,omitempty"` // without its scheme; empty = no certificate
	Source    netip.AddrPort    `json:"source"`
	Remote    netip.Addr        `json:"remote"` // by the word of a trusted proxy; zero = Source
	To        netip.AddrPort    `json:"to"`
	Host      string            `json:"host,omitempty"`
	Method    string            `json:"method,omitempty"`
	Path      string            `json:"path,omitempty"`
	Header    map[string]string `json:"header,omitempty"`
	SNI       string            `json:"sni,omitempty"`
	Payload   map[string]any    `json:"payload,omitempty"` // of a token that was found good
}

// judged is a set of policies, Istio's filters for it and what is asked of both.
type judged struct {
	name      string
	filters   []*rbacv3.RBAC
	Namespace string                            `json:"namespace"`
	Policies  []*securityv1.AuthorizationPolicy `json:"policies"`
	Requests  []request                         `json:"requests"`
}

func base() request {
	return request{
		Principal: "cluster.local/ns/other/sa/client", Source: netip.MustParseAddrPort("127.0.0.9:0"), To: netip.MustParseAddrPort("127.0.0.8:80"),
		Host: "web.example", Method: "GET", Path: "/", SNI: "web.example",
	}
}

// ports on which Envoy listens.
func ports() []uint16 { return []uint16{80, 90, 91, 92, 8000, 8080, 9000, 9001, 9002} }

// spellings of a value with at most one star: what it means, what is nearly that and what is not.
func spellings(v string) []string {
	star := strings.ReplaceAll(v, "*", "")
	out := []string{star, strings.ReplaceAll(v, "*", "zz"), star + "x", "x" + star, strings.ToUpper(star), strings.TrimPrefix(star, "/")}
	if v != star {
		out = append(out, strings.ReplaceAll(v, "*", "a-b"), strings.ReplaceAll(v, "*", "a/b"))
	}
	return append(out, strings.NewReplacer("{*}", "seg", "{**}", "a/b").Replace(v), strings.NewReplacer("{*}", "", "{**}", "a").Replace(v))
}

func addresses(v string) (out []netip.Addr) {
	p, err := netip.ParsePrefix(v)
	if err != nil {
		p = netip.PrefixFrom(netip.MustParseAddr(v), 32)
	}
	first := p.Masked().Addr()
	last := first.As4()
	for bit := p.Bits(); bit < 32; bit++ {
		last[bit/8] |= 1 << (7 - bit%8)
	}
	end := netip.AddrFrom4(last)
	return []netip.Addr{first, end, first.Prev(), end.Next()}
}

// change makes another request of one.
type change func(*request)

// changes are those that the policies speak of, by what they change.
func changes(list []*securityv1.AuthorizationPolicy) map[string][]change {
	out := map[string][]change{}
	text := func(kind string, values []string, set func(*request, string)) {
		for _, v := range values {
			for _, s := range spellings(v) {
				out[kind] = append(out[kind], func(q *request) { set(q, s) })
			}
		}
	}
	ip := func(kind string, values []string, set func(*request, netip.Addr)) {
		for _, v := range values {
			for _, a := range addresses(v) {
				out[kind] = append(out[kind], func(q *request) { set(q, a) })
			}
		}
	}
	principal := func(values ...string) { text("principal", values, func(q *request, v string) { q.Principal = v }) }
	namespace := func(values ...string) {
		text("principal", values, func(q *request, v string) { q.Principal = "cluster.local/ns/" + v + "/sa/x" })
	}
	source := func(values ...string) {
		ip("source", values, func(q *request, a netip.Addr) { q.Source = netip.AddrPortFrom(a, 0) })
	}
	remote := func(values ...string) { ip("remote", values, func(q *request, a netip.Addr) { q.Remote = a }) }
	port := func(values ...string) {
		for _, p := range append(values, "80", "8080") {
			if n, err := strconv.ParseUint(p, 10, 16); err == nil && slices.Contains(ports(), uint16(n)) {
				out["port"] = append(out["port"], func(q *request) { q.To = netip.AddrPortFrom(q.To.Addr(), uint16(n)) })
			}
		}
	}
	claim := func(path []string, values ...string) {
		kind := "claim " + strings.Join(path, ".")
		text(kind, values, func(q *request, v string) { setClaim(q, path, v) })
		text(kind, values, func(q *request, v string) { setClaim(q, path, []any{"other", v}) })
	}
	issued := func(values ...string) {
		for _, v := range values {
			iss, sub, _ := strings.Cut(v, "/")
			for _, i := range spellings(iss) {
				for _, s := range append(spellings(sub), "user") {
					out["token"] = append(out["token"], func(q *request) { setClaim(q, []string{"iss"}, i); setClaim(q, []string{"sub"}, s) })
				}
			}
		}
	}
	both := slices.Concat[[]string]
	for _, p := range list {
		for _, rule := range p.Spec.GetRules() {
			for _, f := range rule.GetFrom() {
				s := f.GetSource()
				principal(both(s.GetPrincipals(), s.GetNotPrincipals())...)
				namespace(both(s.GetNamespaces(), s.GetNotNamespaces())...)
				for _, v := range both(s.GetServiceAccounts(), s.GetNotServiceAccounts()) {
					n, a, ok := strings.Cut(v, "/")
					if !ok {
						n, a = p.Namespace, v
					}
					for _, domain := range []string{"cluster.local", "other.example"} {
						principal(domain+"/ns/"+n+"/sa/"+a, domain+"/ns/other/sa/"+a, domain+"/ns/"+n+"/x/sa/"+a)
					}
				}
				for _, v := range both(s.GetTrustDomains(), s.GetNotTrustDomains()) {
					for _, d := range spellings(v) {
						principal(d + "/ns/foo/sa/a")
					}
				}
				source(both(s.GetIpBlocks(), s.GetNotIpBlocks())...)
				remote(both(s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks())...)
				issued(both(s.GetRequestPrincipals(), s.GetNotRequestPrincipals())...)
			}
			for _, t := range rule.GetTo() {
				o := t.GetOperation()
				text("host", both(o.GetHosts(), o.GetNotHosts()), func(q *request, v string) { q.Host = v })
				text("method", both(o.GetMethods(), o.GetNotMethods()), func(q *request, v string) { q.Method = v })
				text("path", both(o.GetPaths(), o.GetNotPaths()), func(q *request, v string) { q.Path = v })
				port(both(o.GetPorts(), o.GetNotPorts())...)
			}
			for _, w := range rule.GetWhen() {
				values, key := both(w.GetValues(), w.GetNotValues()), w.GetKey()
				inner := strings.TrimSuffix(key[strings.IndexByte(key, '[')+1:], "]")
				switch {
				case key == "request.headers[:method]":
					text("method", values, func(q *request, v string) { q.Method = v })
				case strings.HasPrefix(key, "request.headers["):
					text(key, values, func(q *request, v string) { q.Header = map[string]string{inner: v} })
				case key == "source.ip":
					source(values...)
				case key == "remote.ip":
					remote(values...)
				case key == "source.namespace":
					namespace(values...)
				case key == "source.principal":
					principal(values...)
				case key == "request.auth.principal":
					issued(values...)
				case key == "request.auth.audiences":
					claim([]string{"aud"}, values...)
				case key == "request.auth.presenter":
					claim([]string{"azp"}, values...)
				case strings.HasPrefix(key, "request.auth.claims["):
					claim(strings.Split(inner, "]["), values...)
				case key == "destination.ip":
					ip("to", values, func(q *request, a netip.Addr) { q.To = netip.AddrPortFrom(a, q.To.Port()) })
				case key == "destination.port":
					port(values...)
				case key == "connection.sni":
					text("sni", values, func(q *request, v string) { q.SNI = v })
				}
			}
		}
	}
	return out
}

func setClaim(q *request, path []string, v any) {
	fresh := map[string]any{}
	maps.Copy(fresh, q.Payload)
	q.Payload = fresh
	for _, name := range path[:len(path)-1] {
		next := map[string]any{}
		fresh[name], fresh = next, next
	}
	fresh[path[len(path)-1]] = v
}

// sendable says whether a client of HTTP/2 and TLS can ask that.
func sendable(q request) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!#$%&'*+^`|"
	token := func(s string) bool { return s != "" && strings.Trim(s, letters) == "" }
	name := func(s string) bool {
		return s != "" && !strings.ContainsAny(s, "/ []{}") && !strings.HasSuffix(s, ".") && !strings.HasPrefix(s, ".")
	}
	return token(q.Method) && name(q.Host) && (q.SNI == "" || name(q.SNI)) && strings.HasPrefix(q.Path, "/") && q.Method != "CONNECT" &&
		!strings.HasPrefix(q.Principal, "/") && !strings.HasPrefix(q.Principal, "[") && strings.ToLower(q.SNI) == q.SNI
}

// requests that exercise each word of the policies: alone, and in random company.
func requests(list []*securityv1.AuthorizationPolicy, tcp bool, at netip.Addr, random int) []request {
	all := changes(list)
	kinds := make([]string, 0, len(all))
	for k := range all {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	var out []request
	add := func(c ...change) {
		q := base()
		q.TCP = tcp
		if at.IsValid() {
			q.To = netip.AddrPortFrom(at, q.To.Port())
		}
		for _, f := range c {
			f(&q)
		}
		if tcp {
			q = request{TCP: true, Principal: q.Principal, Source: q.Source, To: q.To, SNI: q.SNI}
		}
		if tcp && q.To.Addr() != at || !tcp && !sendable(q) {
			return
		}
		out = append(out, q)
	}
	add()
	add(func(q *request) { q.Principal = "" })
	add(func(q *request) { q.SNI = "" })
	for _, k := range kinds {
		for _, c := range all[k] {
			add(c)
		}
	}
	c := rand.New(rand.NewPCG(7, uint64(len(kinds))))
	for range random {
		var some []change
		for _, k := range kinds {
			if c.IntN(4) > 0 {
				some = append(some, all[k][c.IntN(len(all[k]))])
			}
		}
		add(some...)
	}
	return out
}
