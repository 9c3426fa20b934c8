package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/waypoint/internal/front"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
)

// Explain answers what would become of a request:
//
//	to         authority that the client dialled, ip:port or host:port; required
//	identity   spiffe://… of the client; none = not known
//	source     ip:port of the client
//	method, authority, path, protocol (http/1.1 or h2c), header (name: value, repeatable)
func Explain(h *phases.Handler, local identity.ID) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q, err := question(r.URL.Query(), local)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writeJSON(w, h.Explain(r.Context(), q))
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	raw, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		http.Error(w, "encode: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(raw, '\n'))
}

// question reads the parameters; every one that is not known is an error, since a misspelt one would change the answer.
func question(v url.Values, local identity.ID) (*phases.Question, error) {
	q := &phases.Question{Local: local, Method: http.MethodGet, Target: "/", Header: http.Header{}}
	for name, list := range v {
		for _, s := range list {
			if err := set(q, name, s); err != nil {
				return nil, err
			}
		}
	}
	if q.Connect == "" {
		return nil, fmt.Errorf("parameter to is missing: give the address that the client dials, ip:port")
	}
	if q.Authority == "" {
		q.Authority = q.Connect
	}
	if !q.Source.IsValid() {
		q.Source = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	return q, nil
}

func set(q *phases.Question, name, s string) (err error) {
	switch name {
	case "to":
		q.Connect = s
		q.Destination, q.Port, err = front.ParseAuthority(s)
	case "identity":
		q.Peer, err = identity.Parse(s)
	case "source":
		q.Source, err = netip.ParseAddrPort(s)
	case "method":
		if q.Method = s; !httpguts.ValidHeaderFieldName(s) {
			err = fmt.Errorf("is no method")
		}
	case "authority":
		if q.Authority = s; !httpguts.ValidHostHeader(s) {
			err = fmt.Errorf("is no host")
		}
	case "path":
		if q.Target = s; !strings.HasPrefix(s, "/") && s != "*" {
			err = fmt.Errorf("does not begin with a slash")
		}
	case "protocol":
		if q.HTTP2 = s == "h2c"; !q.HTTP2 && s != "http/1.1" {
			err = fmt.Errorf("want http/1.1 or h2c")
		}
	case "header":
		k, value, ok := strings.Cut(s, ":")
		value = strings.TrimSpace(value)
		if !ok || !httpguts.ValidHeaderFieldName(k) || !httpguts.ValidHeaderFieldValue(value) {
			return fmt.Errorf("header %q: write it as \"name: value\"", s)
		}
		q.Header.Add(k, value)
	default:
		return fmt.Errorf("parameter %q is not known: use to, identity, source, method, authority, path, protocol, header", name)
	}
	if err != nil {
		return fmt.Errorf("%s %q: %w", name, s, err)
	}
	return nil
}
