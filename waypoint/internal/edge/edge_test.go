package edge

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/telemetry"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// world is an edge server with one listener of direct answers.
type world struct {
	t      *testing.T
	cur    atomic.Pointer[table.Table]
	server *Server
	logs   *lockedBuffer
	stop   func()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

const name = "0.0.0.0_443"

func manager(t testing.TB, answer string, change func(*hcmv3.HttpConnectionManager)) *listenerv3.Filter {
	t.Helper()
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: answer, UseRemoteAddress: wrapperspb.Bool(true), ServerName: "istio-envoy",
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			VirtualHosts: []*routev3.VirtualHost{{Name: "any", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
					Status: 200, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: answer}},
				}},
			}}}},
		}},
		HttpFilters: []*hcmv3.HttpFilter{{
			Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &routerv3.Router{})},
		}},
	}
	if change != nil {
		change(m)
	}
	return &listenerv3.Filter{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, m)}}
}

func socketOf(t testing.TB, certificate, roots string) *corev3.TransportSocket {
	t.Helper()
	d := &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		AlpnProtocols: []string{"h2", "http/1.1"}, TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: certificate}},
	}}
	if roots != "" {
		d.RequireClientCertificate = wrapperspb.Bool(true)
		d.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         &tlsv3.CertificateValidationContext{},
				ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: roots},
			},
		}
	}
	return &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(t, d)}}
}

func listener(t testing.TB, proxy bool, chains ...*listenerv3.FilterChain) *table.Edge {
	t.Helper()
	l := &listenerv3.Listener{
		Name: name, FilterChains: chains, ListenerFiltersTimeout: durationpb.New(300 * time.Millisecond),
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "0.0.0.0", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 443},
		}}},
	}
	filter := func(m proto.Message) {
		l.ListenerFilters = append(l.ListenerFilters, &listenerv3.ListenerFilter{Name: "f", ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(t, m)}})
	}
	if proxy {
		filter(&proxyprotocolv3.ProxyProtocol{})
	}
	filter(&tlsinspectorv3.TlsInspector{})
	e, err := table.CompileEdge(l)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func tlsChain(t testing.TB, chain, sni, secret, roots string, change func(*hcmv3.HttpConnectionManager)) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		Name: chain, FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: []string{sni}, TransportProtocol: "tls"},
		Filters: []*listenerv3.Filter{manager(t, chain, change)}, TransportSocket: socketOf(t, secret, roots),
	}
}

func start(t *testing.T, limit int64, tab *table.Table) *world {
	t.Helper()
	w := &world{t: t, logs: &lockedBuffer{}}
	w.cur.Store(tab)
	log, _, err := obs.NewLogger(w.logs, "plain", "debug")
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Parse("spiffe://cluster.local/ns/shop/sa/front-istio")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := run.NewGroup(ctx)
	h := phases.New(phases.Config{
		Table: w.cur.Load, Upstreams: upstream.NewStore(nil, time.Now), Rand: func(uint64) uint64 { return 0 }, NewID: func() string { return "id" },
		Telemetry: telemetry.New(prometheus.NewRegistry(), io.Discard), Log: log, Group: g,
	})
	w.server = New(Config{
		Table: w.cur.Load, Phases: h, Local: id, Limit: limit, Log: log,
		Listen: func(ctx context.Context, _ uint16) (net.Listener, error) {
			var lc net.ListenConfig
			return lc.Listen(ctx, "tcp", "127.0.0.1:0")
		},
	})
	g.Go("edge", w.server.Run)
	w.stop = sync.OnceFunc(func() { cancel(); _ = g.Wait() })
	t.Cleanup(w.stop)
	return w
}

func (w *world) addr() string {
	w.t.Helper()
	for range 500 {
		if a := w.server.Addr(name); a != nil {
			return a.String()
		}
		<-time.After(10 * time.Millisecond)
	}
	w.t.Fatal("no socket")
	return ""
}

// issue makes a certificate by itself or by an authority.
func issue(t testing.TB, ca *tls.Certificate, change func(*x509.Certificate)) (tls.Certificate, *table.Secret) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	change(tmpl)
	parent, signer := tmpl, any(key)
	if ca != nil {
		if parent, err = x509.ParseCertificate(ca.Certificate[0]); err != nil {
			t.Fatal(err)
		}
		signer = ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s := &table.Secret{
		Chain: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})),
	}
	c, err := tls.X509KeyPair([]byte(s.Chain), []byte(s.Key))
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func authority(t testing.TB) tls.Certificate {
	c, _ := issue(t, nil, func(x *x509.Certificate) { x.IsCA, x.KeyUsage = true, x509.KeyUsageCertSign })
	return c
}

func roots(ca tls.Certificate) *table.Secret {
	return &table.Secret{Roots: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate[0]}))}
}

// get asks by TLS for a host; the certificate's serial number comes back too.
func (w *world) get(host string, two bool, client *tls.Certificate) (status int, body, serial string, err error) {
	w.t.Helper()
	cfg := &tls.Config{ServerName: host, InsecureSkipVerify: true} //nolint:gosec // who answers is compared by serial number
	if client != nil {
		cfg.Certificates = []tls.Certificate{*client}
	}
	tr := &http.Transport{
		TLSClientConfig: cfg, ForceAttemptHTTP2: two, DisableKeepAlives: !two,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", w.addr())
		},
	}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "https://"+host+"/", nil)
	if err != nil {
		return 0, "", "", err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if two && resp.ProtoMajor != 2 {
		w.t.Errorf("%s: spoke HTTP/%d", host, resp.ProtoMajor)
	}
	return resp.StatusCode, string(b), resp.TLS.PeerCertificates[0].SerialNumber.String(), err
}

func serial(c tls.Certificate) string { return c.Leaf.SerialNumber.String() }

// TestReload: hosts have certificates of their own, and a new one serves the next connection.
func TestReload(t *testing.T) {
	a, sa := issue(t, nil, func(x *x509.Certificate) { x.DNSNames = []string{"a.example.com"} })
	b, sb := issue(t, nil, func(x *x509.Certificate) { x.DNSNames = []string{"*.example.com"} })
	edges := map[string]*table.Edge{name: listener(t, false, tlsChain(t, "a", "a.example.com", "sa", "", nil), tlsChain(t, "wide", "*.example.com", "sb", "", nil))}
	w := start(t, 0, &table.Table{Edges: edges, Secrets: map[string]*table.Secret{"sa": sa, "sb": sb}})
	want := func(host, body string, c tls.Certificate) {
		t.Helper()
		for _, two := range []bool{false, true} {
			status, got, by, err := w.get(host, two, nil)
			if err != nil || status != 200 || got != body || by != serial(c) {
				t.Errorf("%s: %d %q by %s, %v", host, status, got, by, err)
			}
		}
	}
	want("a.example.com", "a", a)
	want("b.example.com", "wide", b)
	if _, _, _, err := w.get("elsewhere.org", false, nil); err == nil {
		t.Error("a name that nobody serves was served")
	}
	fresh, sf := issue(t, nil, func(x *x509.Certificate) { x.DNSNames = []string{"a.example.com"} })
	w.cur.Store(&table.Table{Edges: edges, Secrets: map[string]*table.Secret{"sa": sf, "sb": sb}})
	w.server.Changed()
	want("a.example.com", "a", fresh)
	want("b.example.com", "wide", b)
}

// TestNoCertificateNoService: a chain whose secret did not come serves nobody, its neighbour goes on.
func TestNoCertificateNoService(t *testing.T) {
	_, sb := issue(t, nil, func(x *x509.Certificate) {})
	w := start(t, 0, &table.Table{
		Edges:   map[string]*table.Edge{name: listener(t, false, tlsChain(t, "a", "a.example.com", "sa", "", nil), tlsChain(t, "b", "b.example.com", "sb", "", nil))},
		Secrets: map[string]*table.Secret{"sb": sb},
	})
	if status, body, _, err := w.get("a.example.com", false, nil); err == nil {
		t.Errorf("served without a certificate: %d %s", status, body)
	}
	if status, _, _, err := w.get("b.example.com", false, nil); err != nil || status != 200 {
		t.Errorf("%d %v", status, err)
	}
}

// TestNobodyIsIdentified: a client's certificate lets it in and is told to the application, but it is no identity of the mesh.
func TestNobodyIsIdentified(t *testing.T) {
	ca := authority(t)
	spiffe, err := url.Parse("spiffe://cluster.local/ns/shop/sa/admin")
	if err != nil {
		t.Fatal(err)
	}
	client, _ := issue(t, &ca, func(x *x509.Certificate) { x.URIs = []*url.URL{spiffe} })
	stranger, _ := issue(t, nil, func(x *x509.Certificate) { x.URIs = []*url.URL{spiffe} })
	_, s := issue(t, nil, func(x *x509.Certificate) {})
	onlyIdentified := func(m *hcmv3.HttpConnectionManager) {
		rules := &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW, Policies: map[string]*rbacv3.Policy{"p": {
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}},
			Principals:  []*rbacv3.Principal{{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{}}}},
		}}}
		m.HttpFilters = append([]*hcmv3.HttpFilter{{Name: "rbac", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &httprbacv3.RBAC{Rules: rules})}}}, m.GetHttpFilters()...)
	}
	w := start(t, 0, &table.Table{
		Edges: map[string]*table.Edge{name: listener(t, false, tlsChain(t, "open", "open.example.com", "s", "ca", nil),
			tlsChain(t, "closed", "closed.example.com", "s", "ca", onlyIdentified))},
		Secrets: map[string]*table.Secret{"s": s, "ca": roots(ca)},
	})
	if status, _, _, err := w.get("open.example.com", true, &client); err != nil || status != 200 {
		t.Errorf("a client with a good certificate: %d %v", status, err)
	}
	if status, _, _, err := w.get("closed.example.com", true, &client); err != nil || status != 403 {
		t.Errorf("a client's certificate counted as an identity: %d %v", status, err)
	}
	for what, c := range map[string]*tls.Certificate{"none": nil, "another authority's": &stranger} {
		if status, _, _, err := w.get("open.example.com", false, c); err == nil {
			t.Errorf("certificate %s: %d", what, status)
		}
	}
}

// TestSilentClientsGo: who says nothing, or never ends what was begun, is let go.
func TestSilentClientsGo(t *testing.T) {
	_, s := issue(t, nil, func(x *x509.Certificate) {})
	w := start(t, 0, &table.Table{
		Edges: map[string]*table.Edge{name: listener(t, true, tlsChain(t, "a", "a.example.com", "s", "", nil))}, Secrets: map[string]*table.Secret{"s": s},
	})
	for _, first := range []string{"", "PROXY TCP4 ", "PROXY TCP4 203.0.113.7 10.0.0.1 1 1\r\n", "PROXY TCP4 203.0.113.7 10.0.0.1 1 1\r\n\x16\x03\x01\x01", "GET / HTTP/1.1\r\n\r\n"} {
		c, err := net.Dial("tcp", w.addr())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, first)
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("after %q: %d bytes, %v", first, n, err)
		}
		_ = c.Close()
	}
}

// TestConnectionLimit: beyond the limit a connection is closed at once, and room that is given back is used again.
func TestConnectionLimit(t *testing.T) {
	w := start(t, 1, &table.Table{Edges: map[string]*table.Edge{name: listener(t, false, &listenerv3.FilterChain{Name: "plain", Filters: []*listenerv3.Filter{manager(t, "plain", nil)}})}})
	first, err := net.Dial("tcp", w.addr())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(c net.Conn) error {
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			return err
		}
		b := make([]byte, 15)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "HTTP/1.1 200 OK" {
			return fmt.Errorf("%q %w", b, err)
		}
		return nil
	}
	if err := ask(first); err != nil {
		t.Fatal(err)
	}
	second, err := net.Dial("tcp", w.addr())
	if err == nil {
		if ask(second) == nil {
			t.Error("a second connection was served")
		}
		_ = second.Close()
	}
	_ = first.Close()
	for range 200 {
		third, err := net.Dial("tcp", w.addr())
		if err != nil {
			t.Fatal(err)
		}
		err = ask(third)
		_ = third.Close()
		if err == nil {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Error("the room of a closed connection was not given back")
}

// TestDrainLosesNothing: kept connections without a request are closed, who comes meanwhile is answered and told to go.
func TestDrainLosesNothing(t *testing.T) {
	for _, two := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", two), func(t *testing.T) { drainLosesNothing(t, two) })
	}
}

func drainLosesNothing(t *testing.T, two bool) {
	w := start(t, 0, &table.Table{Edges: map[string]*table.Edge{name: listener(t, false, &listenerv3.FilterChain{Name: "plain", Filters: []*listenerv3.Filter{manager(t, "plain", nil)}})}})
	p := &http.Protocols{}
	p.SetHTTP1(!two)
	p.SetUnencryptedHTTP2(two)
	tr := &http.Transport{Protocols: p}
	defer tr.CloseIdleConnections()
	get := func() *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.addr()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if (resp.ProtoMajor == 2) != two {
			t.Errorf("spoke HTTP/%d", resp.ProtoMajor)
		}
		return resp
	}
	gone := func() {
		t.Helper()
		for i := 0; w.server.Open() > 0; i++ {
			if i > 500 {
				t.Fatalf("%d connections stay", w.server.Open())
			}
			<-time.After(10 * time.Millisecond)
		}
	}
	if resp := get(); resp.Close {
		t.Error("closed before the drain")
	}
	w.server.Drain()
	w.server.cfg.Phases.Drain()
	gone()
	if resp := get(); resp.StatusCode != 200 || !two && !resp.Close {
		t.Errorf("during the drain: %d, close %v", resp.StatusCode, resp.Close)
	}
	gone()
}

// TestProxyHeader: what the load balancer says is the client's address, but not where the packets come from.
func TestProxyHeader(t *testing.T) {
	onlyFrom := func(m *hcmv3.HttpConnectionManager) {
		rules := &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW, Policies: map[string]*rbacv3.Policy{"p": {
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}},
			Principals: []*rbacv3.Principal{{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: &corev3.CidrRange{
				AddressPrefix: "203.0.113.0", PrefixLen: wrapperspb.UInt32(24),
			}}}},
		}}}
		packets := &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{"p": {
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}},
			Principals: []*rbacv3.Principal{{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: &corev3.CidrRange{
				AddressPrefix: "203.0.113.0", PrefixLen: wrapperspb.UInt32(24),
			}}}},
		}}}
		for _, r := range []*rbacv3.RBAC{packets, rules} {
			m.HttpFilters = append([]*hcmv3.HttpFilter{{Name: "rbac", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(t, &httprbacv3.RBAC{Rules: r})}}}, m.GetHttpFilters()...)
		}
	}
	w := start(t, 0, &table.Table{Edges: map[string]*table.Edge{name: listener(t, true, &listenerv3.FilterChain{Name: "plain", Filters: []*listenerv3.Filter{manager(t, "plain", onlyFrom)}})}})
	for from, want := range map[string]string{"203.0.113.7": "200", "198.51.100.1": "403"} {
		c, err := net.Dial("tcp", w.addr())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "PROXY TCP4 "+from+" 10.0.0.1 4000 443\r\nGET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n")
		b, _ := io.ReadAll(c)
		if !strings.HasPrefix(string(b), "HTTP/1.1 "+want) {
			t.Errorf("from %s: %.40q", from, b)
		}
		_ = c.Close()
	}
}
