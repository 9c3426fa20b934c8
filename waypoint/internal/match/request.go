package match

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"
)

// Request is what one request, or one opaque connection, is judged by. The path is normalized before anything sees it.
type Request struct {
	Method    string
	Scheme    string
	Authority string
	Path      string // normalized, without query
	Query     string // without "?"
	Header    http.Header
	GRPC      bool

	Source      netip.AddrPort // the client's socket, as the previous hop told it
	Direct      netip.AddrPort // where the packets come from, be it a load balancer that told of the client; zero = Source
	Remote      netip.Addr     // the client by the word of trusted proxies in front; zero = Source
	Destination netip.AddrPort // what the client dialled; zero when it was a host name
	Port        uint16         // port that the client dialled
	Principal   string         // "spiffe://…" proven on the HBONE connection; empty = none
	Local       string         // this waypoint's own "spiffe://…"
	Connect     string         // authority of the CONNECT
	ServerName  string         // TLS SNI of an opaque connection, empty = not visible

	// Metadata is what filters found out about this request, by the filter's name: Envoy's dynamic metadata.
	Metadata map[string]*structpb.Struct
}

// Client is who asks, as far as anybody trusted says: what limits and balancing go by.
func (q *Request) Client() netip.Addr {
	if q.Remote.IsValid() {
		return q.Remote
	}
	return q.Source.Addr()
}

// Packets is where the connection's packets come from.
func (q *Request) Packets() netip.AddrPort {
	if q.Direct.IsValid() {
		return q.Direct
	}
	return q.Source
}

// Names under which the standard waypoint configuration keeps facts of the outer connection.
const (
	StatePeerPrincipal  = "io.istio.peer_principal"
	StateLocalPrincipal = "io.istio.local_principal"
	StateAuthority      = "io.istio.connect_authority"
)

// State returns the fact that Envoy would keep in its filter state under key.
func (q *Request) State(key string) (string, bool) {
	var v string
	switch key {
	case StatePeerPrincipal:
		v = q.Principal
	case StateLocalPrincipal:
		v = q.Local
	case StateAuthority:
		v = q.Connect
	}
	return v, v != ""
}

// KnownState says whether State can ever answer for key.
func KnownState(key string) bool {
	return key == StatePeerPrincipal || key == StateLocalPrincipal || key == StateAuthority
}

// FullPath is the path with its query, as it goes on the wire.
func (q *Request) FullPath() string {
	if q.Query == "" {
		return q.Path
	}
	return q.Path + "?" + q.Query
}

// CheckAuthority refuses an authority that is more than a host and a port: what an application would make of it is not known, so no
// policy on hosts could be right about it. An empty one is as good as a host that no policy names.
func CheckAuthority(a string) error {
	host := a
	if inner, ok := strings.CutPrefix(a, "["); ok {
		ip, port, closed := strings.Cut(inner, "]")
		if addr, err := netip.ParseAddr(ip); !closed || err != nil || !addr.Is6() || port != "" && port[0] != ':' {
			return fmt.Errorf("authority %q has brackets around something other than an IPv6 address: %w", a, ErrBadPath)
		}
		host = port
	}
	for i := range len(host) {
		switch c := host[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '-', c == '.', c == '_', c == '~', c == ':':
		default:
			return fmt.Errorf("authority %q has the character %q: %w", a, c, ErrBadPath)
		}
	}
	return nil
}

// Get returns a header, or one of the pseudo headers; several values are one string joined by commas. name is in canonical form.
func (q *Request) Get(name string) (string, bool) {
	switch name {
	case ":method":
		return q.Method, q.Method != ""
	case ":path":
		return q.FullPath(), q.Path != ""
	case ":authority", "Host":
		return q.Authority, q.Authority != ""
	case ":scheme":
		return q.Scheme, q.Scheme != ""
	}
	v := q.Header[name]
	switch len(v) {
	case 0:
		return "", false
	case 1:
		return v[0], true
	}
	return strings.Join(v, ","), true
}

// canonical is the form of a header name under which Get looks it up.
func canonical(name string) string {
	if strings.HasPrefix(name, ":") {
		return strings.ToLower(name)
	}
	return http.CanonicalHeaderKey(name)
}
