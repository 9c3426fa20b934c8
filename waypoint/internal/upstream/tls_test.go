package upstream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// party is a certificate with its key.
type party struct {
	cert       *x509.Certificate
	key        *ecdsa.PrivateKey
	chain, pem string
}

var serial = big.NewInt(time.Now().UnixNano())

func issue(t *testing.T, by *party, change func(*x509.Certificate)) *party {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial = new(big.Int).Add(serial, big.NewInt(1))
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: serial.String()}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if by == nil {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
	}
	if change != nil {
		change(c)
	}
	p := &party{key: key}
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p.chain = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	p.pem = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
	return p
}

// server is one that speaks TLS (or not) after its first bytes, and tells what it saw.
type server struct {
	mu    sync.Mutex
	names []string // asked for
	first []string // plain lines before
	conns int
}

// opener connects every target to a server that answers HTTP.
func (s *server) opener(t *testing.T, cfg *tls.Config, lines int) Opener {
	return openFunc(func(context.Context, Target) (Conn, error) {
		a, b := tcppair.New(t)
		s.mu.Lock()
		s.conns++
		s.mu.Unlock()
		go func() {
			defer b.Close()
			for range lines {
				line := readLine(b)
				s.mu.Lock()
				s.first = append(s.first, line)
				s.mu.Unlock()
			}
			var c net.Conn = b
			if cfg != nil {
				own := cfg.Clone()
				own.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
					s.mu.Lock()
					defer s.mu.Unlock()
					s.names = append(s.names, h.ServerName)
					return nil, nil
				}
				c = tls.Server(b, own)
			}
			l := &single{c: c, done: make(chan struct{})}
			_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, r.Host)
			}))
		}()
		return a, nil
	})
}

func readLine(c net.Conn) string {
	var b bytes.Buffer
	one := make([]byte, 1)
	for {
		if _, err := c.Read(one); err != nil || one[0] == '\n' {
			return b.String()
		}
		b.Write(one)
	}
}

type openFunc func(context.Context, Target) (Conn, error)

func (f openFunc) Open(ctx context.Context, t Target) (Conn, error) { return f(ctx, t) }

// single is a listener with one connection.
type single struct {
	c    net.Conn
	done chan struct{}
	once sync.Once
}

func (l *single) Accept() (net.Conn, error) {
	if c := l.c; c != nil {
		l.c = nil
		return &closing{Conn: c, l: l}, nil
	}
	<-l.done
	return nil, net.ErrClosed
}
func (l *single) Close() error   { return nil }
func (l *single) Addr() net.Addr { return &net.TCPAddr{} }

type closing struct {
	net.Conn
	l *single
}

func (c *closing) Close() error {
	c.l.once.Do(func() { close(c.l.done) })
	return c.Conn.Close()
}

func socket(t *testing.T, m proto.Message) *corev3.TransportSocket {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.TransportSocket{Name: "x", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: a}}
}

func inline(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}

// served is a cluster with a transport socket in front of a server.
func served(t *testing.T, o Opener, s *corev3.TransportSocket, change ...func(*Config)) *Cluster {
	t.Helper()
	cfg, err := Compile(&clusterv3.Cluster{
		Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, TransportSocket: s,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(cfg)
	}
	store := NewStore(o, time.Now)
	store.ApplyClusters([]*Config{cfg}, nil)
	store.ApplyEndpoints([]*Assignment{list("c", 1)}, nil)
	t.Cleanup(func() { store.ApplyClusters(nil, []string{"c"}) })
	return store.Get("c")
}

func get(t *testing.T, c *Cluster, via Via) (string, error) {
	t.Helper()
	if via.Major == 0 {
		via.Major = 1
	}
	r := &http.Request{Method: "GET", URL: &url.URL{Scheme: "http", Host: c.Hosts[0].Addr.String(), Opaque: "/"}, Host: via.Authority, Header: http.Header{}}
	resp, err := c.Transport(c.Hosts[0], via).RoundTrip(r.WithContext(t.Context()))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func altName(kind tlsv3.SubjectAltNameMatcher_SanType, s string) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}}
}

func TestTLSOrigination(t *testing.T) {
	ca, other := issue(t, nil, nil), issue(t, nil, nil)
	owner := func(c *x509.Certificate) {
		u, _ := url.Parse("spiffe://td/ns/n/sa/s")
		c.DNSNames, c.URIs, c.IPAddresses = []string{"*.example.com", "one.test"}, []*url.URL{u}, []net.IP{net.ParseIP("10.0.0.1")}
	}
	leaf, me := issue(t, ca, owner), issue(t, ca, nil)
	pair, err := tls.X509KeyPair([]byte(leaf.chain), []byte(leaf.pem))
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(ca.cert)
	demanding := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	plain := &tls.Config{Certificates: []tls.Certificate{pair}}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, []byte(ca.chain), 0o600); err != nil {
		t.Fatal(err)
	}
	crl := func(revoked ...*party) string {
		l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
		for _, p := range revoked {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: p.cert.SerialNumber, RevocationTime: time.Now()})
		}
		der, err := x509.CreateRevocationList(rand.Reader, l, ca.cert, ca.key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	}
	type validation = tlsv3.CertificateValidationContext
	names := func(ns ...*tlsv3.SubjectAltNameMatcher) func(*validation) {
		return func(v *validation) { v.MatchTypedSubjectAltNames = ns }
	}
	for name, tc := range map[string]struct {
		server *tls.Config
		with   func(*validation)
		auto   bool
		host   string
		mine   bool
		want   bool
		sni    string
	}{
		"roots": {plain, nil, false, "web", false, true, ""},
		"roots in a file": {plain, func(v *validation) {
			v.TrustedCa = &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: file}}
		}, false, "web", false, true, ""},
		"other roots":              {plain, func(v *validation) { v.TrustedCa = inline(other.chain) }, false, "web", false, false, ""},
		"no roots, no check":       {plain, func(v *validation) { v.TrustedCa = nil }, false, "web", false, true, ""},
		"DNS by wildcard":          {plain, names(altName(tlsv3.SubjectAltNameMatcher_DNS, "a.example.com")), false, "web", false, true, ""},
		"DNS of two labels":        {plain, names(altName(tlsv3.SubjectAltNameMatcher_DNS, "a.b.example.com")), false, "web", false, false, ""},
		"URI":                      {plain, names(altName(tlsv3.SubjectAltNameMatcher_URI, "spiffe://td/ns/n/sa/s")), false, "web", false, true, ""},
		"wrong URI":                {plain, names(altName(tlsv3.SubjectAltNameMatcher_URI, "spiffe://td/ns/n/sa/x")), false, "web", false, false, ""},
		"any of several":           {plain, names(altName(tlsv3.SubjectAltNameMatcher_DNS, "no"), altName(tlsv3.SubjectAltNameMatcher_IP_ADDRESS, "10.0.0.1")), false, "web", false, true, ""},
		"name of the host":         {plain, nil, true, "ONE.test:8443", false, true, "one.test"},
		"wrong name of the host":   {plain, nil, true, "two.test", false, false, "two.test"},
		"an address is no name":    {plain, nil, true, "10.0.0.1", false, false, ""},
		"client certificate":       {demanding, nil, false, "web", true, true, ""},
		"no client certificate":    {demanding, nil, false, "web", false, false, ""},
		"revocation list, current": {plain, func(v *validation) { v.Crl = inline(crl()) }, false, "web", false, true, ""},
		"revoked":                  {plain, func(v *validation) { v.Crl = inline(crl(leaf)) }, false, "web", false, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := &validation{TrustedCa: inline(ca.chain)}
			if tc.with != nil {
				tc.with(v)
			}
			common := &tlsv3.CommonTlsContext{ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v}}
			if tc.mine {
				common.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: inline(me.chain), PrivateKey: inline(me.pem)}}
			}
			s := &server{}
			c := served(t, s.opener(t, tc.server, 0), socket(t, &tlsv3.UpstreamTlsContext{CommonTlsContext: common}), func(c *Config) {
				c.TLS.FromHost, c.TLS.MatchName = tc.auto, tc.auto
			})
			body, err := get(t, c, Via{Authority: tc.host})
			if (err == nil) != tc.want || tc.want && body != tc.host {
				t.Fatalf("got %q, %v", body, err)
			}
			var ce *ConnectError
			if !tc.want && tc.server != demanding && !errors.As(err, &ce) {
				t.Errorf("%v is no failure to connect", err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.names) > 0 && s.names[0] != tc.sni {
				t.Errorf("asked for %q", s.names)
			}
		})
	}
}

func TestNamesShareNoConnection(t *testing.T) {
	ca := issue(t, nil, nil)
	leaf := issue(t, ca, func(c *x509.Certificate) { c.DNSNames = []string{"a.test", "b.test"} })
	pair, _ := tls.X509KeyPair([]byte(leaf.chain), []byte(leaf.pem))
	s := &server{}
	c := served(t, s.opener(t, &tls.Config{Certificates: []tls.Certificate{pair}}, 0), socket(t, &tlsv3.UpstreamTlsContext{}), func(c *Config) {
		c.TLS.FromHost = true
	})
	for _, h := range []string{"a.test", "b.test", "a.test", "b.test", "A.test:80"} {
		if body, err := get(t, c, Via{Authority: h}); err != nil || body != h {
			t.Fatalf("got %q, %v", body, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.Join(s.names, " ") != "a.test b.test" {
		t.Errorf("asked for %v", s.names)
	}
}

func TestSecretsArrive(t *testing.T) {
	ca := issue(t, nil, nil)
	leaf := issue(t, ca, func(c *x509.Certificate) { c.DNSNames = []string{"a.test"} })
	pair, _ := tls.X509KeyPair([]byte(leaf.chain), []byte(leaf.pem))
	s := &server{}
	sds := func(name string) *tlsv3.SdsSecretConfig { return &tlsv3.SdsSecretConfig{Name: name} }
	c := served(t, s.opener(t, &tls.Config{Certificates: []tls.Certificate{pair}}, 0), socket(t, &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sds("kubernetes://c")},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			ValidationContextSdsSecretConfig: sds("kubernetes://c-cacert"),
		}},
	}}))
	if got := c.store.Secrets(); strings.Join(got, " ") != "kubernetes://c kubernetes://c-cacert" {
		t.Fatalf("wanted are %v", got)
	}
	if _, err := get(t, c, Via{Authority: "web"}); err == nil || !strings.Contains(err.Error(), "not known yet") {
		t.Fatalf("connected without its secrets: %v", err)
	}
	me := issue(t, ca, nil)
	c.store.ApplySecrets(map[string]Secret{"kubernetes://c": {Chain: me.chain, Key: me.pem}, "kubernetes://c-cacert": {Roots: ca.chain}}, nil)
	if _, err := get(t, c, Via{Authority: "web"}); err != nil {
		t.Fatal(err)
	}
	c.store.ApplySecrets(nil, []string{"kubernetes://c-cacert"})
	if _, err := c.Dial(t.Context(), c.Hosts[0], "", Via{}); err == nil {
		t.Fatal("a removed secret still serves")
	}
}

func TestProxyProtocolUpstream(t *testing.T) {
	s := &server{}
	c := served(t, s.opener(t, nil, 1), socket(t, &proxyprotocolv3.ProxyProtocolUpstreamTransport{Config: &corev3.ProxyProtocolConfig{}}))
	via := func(src string) Via {
		return Via{Authority: "web", Source: netip.MustParseAddrPort(src), Destination: netip.MustParseAddrPort("10.96.0.1:80")}
	}
	for _, src := range []string{"10.0.0.8:1000", "10.0.0.9:2000", "10.0.0.8:1000"} {
		if body, err := get(t, c, via(src)); err != nil || body != "web" {
			t.Fatalf("got %q, %v", body, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := strings.Join(s.first, "|"); got != "PROXY TCP4 10.0.0.8 10.96.0.1 1000 80\r|PROXY TCP4 10.0.0.9 10.96.0.1 2000 80\r" {
		t.Errorf("told %q: clients must not share connections", got)
	}
}

func TestProxyHeader(t *testing.T) {
	four, six := netip.MustParseAddrPort("1.2.3.4:5"), netip.MustParseAddrPort("[fd00::1]:6")
	for _, tc := range []struct {
		version  uint8
		src, dst netip.AddrPort
		want     string
	}{
		{1, four, four, "PROXY TCP4 1.2.3.4 1.2.3.4 5 5\r\n"},
		{1, six, six, "PROXY TCP6 fd00::1 fd00::1 6 6\r\n"},
		{1, four, six, "PROXY UNKNOWN\r\n"},
		{1, four, netip.AddrPort{}, "PROXY UNKNOWN\r\n"},
		{2, four, four, "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x01\x02\x03\x04\x01\x02\x03\x04\x00\x05\x00\x05"},
		{2, four, six, "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"},
	} {
		if got := string(proxyHeader(tc.version, tc.src, tc.dst)); got != tc.want {
			t.Errorf("%d %v %v: got %q, want %q", tc.version, tc.src, tc.dst, got, tc.want)
		}
	}
	if got := len(proxyHeader(2, six, six)); got != 16+36 {
		t.Errorf("%d bytes for IPv6", got)
	}
}

func TestConnectionsHaveALife(t *testing.T) {
	s := &server{}
	c := served(t, s.opener(t, nil, 0), nil, func(c *Config) { c.Conns.MaxRequests = 2 })
	for range 5 {
		if _, err := get(t, c, Via{Authority: "web"}); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	if s.conns != 3 {
		t.Errorf("%d connections for 5 requests of which 2 may share one", s.conns)
	}
	s.mu.Unlock()
	old := &server{}
	c = served(t, old.opener(t, nil, 0), nil, func(c *Config) { c.Conns.MaxAge = time.Nanosecond })
	for range 3 {
		if _, err := get(t, c, Via{Authority: "web"}); err != nil {
			t.Fatal(err)
		}
	}
	old.mu.Lock()
	defer old.mu.Unlock()
	if old.conns != 3 {
		t.Errorf("%d connections for 3 requests that came too late for each other's", old.conns)
	}
}

func TestMeshSecretsStayInTunnels(t *testing.T) {
	_, err := Compile(&clusterv3.Cluster{
		Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		TransportSocket: socket(t, &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: "default"}},
		}}),
	})
	if !errors.Is(err, strict.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}
