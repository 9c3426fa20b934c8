package phases

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/netip"
	"strings"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
)

// Edge is what is known of a connection that came in at the mesh's border. Nothing in it is an identity of the mesh.
type Edge struct {
	Listener, Chain string
	Encrypted       bool              // TLS was ended here
	Direct          netip.AddrPort    // whose packets come, be it a load balancer's
	Cert            *x509.Certificate // that the client showed and the chain accepted; nil = none
}

// atEdge takes what only trusted hops may say out of a stranger's request, and says what is known instead.
func (x *exchange) atEdge() {
	e := x.session.Edge
	if e == nil {
		return
	}
	scheme := "http"
	if e.Encrypted {
		scheme = "https"
	}
	h := x.r.Header
	if !x.chain.Edge {
		x.q.Scheme = scheme
		x.clientCert()
		return
	}
	for _, name := range strangersMayNot() {
		delete(h, name)
	}
	// Envoy keeps what trusted proxies said of the scheme; without any, the connection tells it.
	if given := h.Get("X-Forwarded-Proto"); x.chain.TrustedHops == 0 || given != "http" && given != "https" {
		h["X-Forwarded-Proto"] = []string{scheme}
	} else {
		scheme = given
	}
	x.q.Scheme = scheme
	peer := x.session.Source.Addr().Unmap()
	x.q.Remote = trustedClient(h["X-Forwarded-For"], peer, int(x.chain.TrustedHops))
	list := strings.Join(h["X-Forwarded-For"], ",")
	if list != "" {
		list += ","
	}
	h["X-Forwarded-For"] = []string{list + peer.String()}
	h["X-Envoy-External-Address"] = []string{x.q.Remote.String()}
	if x.chain.RequestID {
		// A stranger's id would be found in our logs as if it were ours.
		h.Set("X-Request-Id", x.h.cfg.NewID())
	}
	x.clientCert()
}

// strangersMayNot are headers by which proxies of the mesh are steered.
func strangersMayNot() []string {
	return []string{
		"X-Envoy-Attempt-Count", "X-Envoy-Decorator-Operation", "X-Envoy-Downstream-Service-Cluster", "X-Envoy-Downstream-Service-Node",
		"X-Envoy-Expected-Rq-Timeout-Ms", "X-Envoy-External-Address", "X-Envoy-Force-Trace", "X-Envoy-Hedge-On-Per-Try-Timeout",
		"X-Envoy-Internal", "X-Envoy-Ip-Tags", "X-Envoy-Max-Retries", "X-Envoy-Original-Path", "X-Envoy-Original-Host",
		"X-Envoy-Retriable-Header-Names", "X-Envoy-Retriable-Status-Codes", "X-Envoy-Retry-Grpc-On", "X-Envoy-Retry-On",
		"X-Envoy-Upstream-Alt-Stat-Name", "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms", "X-Envoy-Upstream-Rq-Timeout-Alt-Response",
		"X-Envoy-Upstream-Rq-Timeout-Ms", "X-Envoy-Upstream-Stream-Duration-Ms",
	}
}

// trustedClient is the address that the farthest trusted proxy saw: with n of them in front, the n-th from the end of what
// they wrote. What nearer ones wrote is not looked at. An address that cannot be read, or that is not there because
// somebody came around them, leaves who is connected.
func trustedClient(lists []string, peer netip.Addr, hops int) netip.Addr {
	if hops == 0 {
		return peer
	}
	list := strings.Split(strings.Join(lists, ","), ",")
	if len(list) < hops {
		return peer
	}
	a, err := netip.ParseAddr(strings.TrimSpace(list[len(list)-hops]))
	if err != nil {
		return peer
	}
	return a.Unmap()
}

// clientCert tells the application which certificate the client showed.
func (x *exchange) clientCert() {
	c := x.chain.ClientCert
	if c == nil || x.session.Edge.Cert == nil {
		return
	}
	x.r.Header["X-Forwarded-Client-Cert"] = []string{forwardedCert(x.session.Edge.Cert, c)}
}

func forwardedCert(cert *x509.Certificate, c *table.ClientCert) string {
	sum := sha256.Sum256(cert.Raw)
	out := []string{"Hash=" + hex.EncodeToString(sum[:])}
	if c.Subject {
		out = append(out, `Subject="`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(cert.Subject.String())+`"`)
	}
	if c.URI {
		if len(cert.URIs) == 0 {
			out = append(out, "URI=")
		}
		for _, u := range cert.URIs {
			out = append(out, "URI="+quoteElement(u.String()))
		}
	}
	if c.DNS {
		for _, d := range cert.DNSNames {
			out = append(out, "DNS="+quoteElement(d))
		}
	}
	return strings.Join(out, ";")
}

// quoteElement keeps a certificate's text from looking like several elements of the header.
func quoteElement(s string) string {
	if strings.ContainsAny(s, `;,="\`) {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return s
}
