package phases_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/waypoint/internal/front"
	"github.com/marrowmesh/marrow/waypoint/internal/intake"
	"github.com/marrowmesh/marrow/waypoint/internal/jwks"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/spans"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/telemetry"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority signs certificates for the tests' identities.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key: key, cert: cert, pem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

func (a *authority) issue(t testing.TB, id string) *mtls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{u},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := mtls.NewCertificate(key, []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), a.pem})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type fixed struct{ c *mtls.Certificate }

func (f fixed) Certificate(context.Context) (*mtls.Certificate, error) { return f.c, nil }

// lines collects the access log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.buf.String()), "\n")
}

// count waits until a line is there so many times.
func (l *lines) count(line string, n int) {
	for {
		have := 0
		for _, s := range l.all() {
			if s == line {
				have++
			}
		}
		if have >= n {
			return
		}
		runtime.Gosched()
	}
}

// after waits for the line that follows the first n.
func (l *lines) after(n int) string {
	for {
		if all := l.all(); len(all) > n && all[n] != "" {
			return all[n]
		}
		runtime.Gosched()
	}
}

// world is a waypoint between real clients and real applications, with real certificates, over loopback.
type world struct {
	t       testing.TB
	ca      *authority
	in      *intake.Intake
	ups     *upstream.Store
	front   *front.Server
	handler *phases.Handler
	spans   *spans.Exporter
	addr    string
	log     *lines
	reg     *prometheus.Registry
	mu      sync.Mutex
	hops    map[netip.AddrPort]string // where a pod's node proxy really listens
	random  func(uint64) uint64
	id      func() string // of the next request
	stop    func()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, ca: newAuthority(t), log: &lines{}, reg: prometheus.NewRegistry(), hops: map[netip.AddrPort]string{}}
	w.random = func(uint64) uint64 { return 0 }
	w.id = func() string { return "id-1" }
	g := run.NewGroup(context.Background())
	cert := fixed{w.ca.issue(t, "spiffe://td/ns/shop/sa/wp")}
	tunnels := upstream.NewTunnels(cert, mtls.Handshaker{}, w.dial, hbone.Config{}, time.Minute, g)
	g.Go("tunnels", tunnels.Prune)
	w.ups = upstream.NewStore(tunnels, time.Now)
	w.in = intake.New(w.ups, obs.Discard())
	tel := telemetry.New(w.reg, w.log)
	w.spans = spans.New(spans.Config{Upstreams: w.ups, Rand: func(n uint64) uint64 { return w.rnd(n) }, Log: obs.Discard(), Registry: w.reg, Flush: 10 * time.Millisecond})
	g.Go("spans", w.spans.Run)
	keys := jwks.New(jwks.Config{Group: g, Log: obs.Discard(), Via: func(c string) http.RoundTripper {
		return upstream.Way{Store: w.ups, Cluster: c, Rand: func(n uint64) uint64 { return w.rnd(n) }}
	}})
	w.in.OnTable(func(t *table.Table) { keys.Need(t.KeySources()) })
	h := phases.New(phases.Config{
		Spans: w.spans, Env: func(name string) (string, bool) { return "value of " + name, name == "POD" },
		Table: w.in.Table, Upstreams: w.ups, Rand: func(n uint64) uint64 { return w.rnd(n) }, NewID: func() string { return w.id() },
		Telemetry: tel, Log: obs.Discard(), Host: "wp-1", Group: g, Keys: keys,
	})
	w.handler = h
	w.front = front.New(front.Config{Table: w.in.Table, Cert: cert, Phases: h, Log: obs.Discard(), Detect: 200 * time.Millisecond})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	g.Go("front", func(context.Context) error { return w.front.Serve(ctx, l) })
	w.stop = sync.OnceFunc(func() {
		cancel()
		g.Stop()
		if err := g.Wait(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	t.Cleanup(w.stop)
	return w
}

func (w *world) rnd(n uint64) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.random(n) % n
}

func (w *world) dial(ctx context.Context, dst netip.AddrPort) (upstream.Conn, error) {
	w.mu.Lock()
	real, ok := w.hops[dst]
	w.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("connect to %s: refused", dst)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", real)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// pod runs an application behind a node proxy that ends its tunnels.
func (w *world) pod(addr string, h http.Handler) {
	w.t.Helper()
	p := &http.Protocols{}
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	app := &http.Server{Handler: h, Protocols: p}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = app.Serve(l) }()
	w.t.Cleanup(func() { _ = app.Close(); <-done })
	w.podTCP(addr, l.Addr().String(), "spiffe://td/ns/shop/sa/app")
}

// podTCP puts a node proxy with an identity in front of a listener.
func (w *world) podTCP(addr, app, id string) {
	w.t.Helper()
	cert := w.ca.issue(w.t, id)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	srv := hbone.NewServer(hbone.Config{})
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				c, _, err := mtls.Server(ctx, raw, cert)
				if err != nil {
					return
				}
				_ = srv.Serve(ctx, c, func(_ context.Context, in *hbone.Incoming) {
					up, err := net.Dial("tcp", app)
					if err != nil {
						_ = in.Reject(503, nil)
						return
					}
					s, err := in.Accept(nil)
					if err != nil {
						_ = up.Close()
						return
					}
					pipe(s, up.(*net.TCPConn))
				})
			})
		}
	})
	w.t.Cleanup(func() { cancel(); _ = l.Close(); wg.Wait() })
	ap := netip.MustParseAddrPort(addr)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hops[netip.AddrPortFrom(ap.Addr(), upstream.HBONEPort)] = l.Addr().String()
}

func pipe(a, b upstream.Conn) {
	var wg sync.WaitGroup
	one := func(dst, src upstream.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				if _, werr := dst.Write(buf[:n]); werr != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		_ = dst.CloseWrite()
	}
	wg.Go(func() { one(a, b); _ = a.Close(); _ = b.Close() })
	one(b, a)
	wg.Wait()
}

// apply hands resources to the intake as the control plane would.
func (w *world) apply(ms ...proto.Message) []xds.Reject {
	w.t.Helper()
	urls := map[string][]xds.Resource{}
	for _, m := range ms {
		r := xds.Resource{Version: "1", Body: pack(w.t, m)}
		switch m := m.(type) {
		case *listenerv3.Listener:
			r.Name = m.GetName()
		case *clusterv3.Cluster:
			r.Name = m.GetName()
		case *routev3.RouteConfiguration:
			r.Name = m.GetName()
		case *endpointv3.ClusterLoadAssignment:
			r.Name = m.GetClusterName()
		}
		urls[r.Body.GetTypeUrl()] = append(urls[r.Body.GetTypeUrl()], r)
	}
	var out []xds.Reject
	for _, typ := range w.in.Types() {
		if up := urls[typ.URL]; len(up) > 0 {
			out = append(out, typ.Handle(context.Background(), up, nil)...)
		}
	}
	return out
}

func (w *world) mustApply(ms ...proto.Message) {
	w.t.Helper()
	for _, r := range w.apply(ms...) {
		w.t.Fatalf("%s refused: %v", r.Name, r.Err)
	}
}

// tunnel connects as a client identity to the waypoint.
func (w *world) tunnel(id string) *hbone.Client {
	w.t.Helper()
	raw, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	c, _, err := mtls.Client(context.Background(), raw, w.ca.issue(w.t, id), []identity.ID{identity.MustParse("spiffe://td/ns/shop/sa/wp")})
	if err != nil {
		w.t.Fatal(err)
	}
	client, err := hbone.NewClient(c, hbone.Config{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = client.Close(); client.Wait() })
	return client
}

const baggage = "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=client,service.name=client,service.version=v1"

// client is an HTTP client inside a tunnel.
func (w *world) client(id, dst string, two bool) *http.Client {
	w.t.Helper()
	tn := w.tunnel(id)
	p := &http.Protocols{}
	p.SetHTTP1(!two)
	p.SetUnencryptedHTTP2(two)
	tr := &http.Transport{Protocols: p, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		s, _, err := tn.Connect(ctx, dst, []hbone.Header{{Name: "baggage", Value: baggage}})
		return s, err
	}}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

const shopper = "spiffe://td/ns/shop/sa/client"

// named answers with a name and what it saw.
func named(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-App", name)
		for k, v := range r.Header {
			w.Header()["Saw-"+k] = v
		}
		w.Header().Set("Saw-Path", r.RequestURI)
		w.Header().Set("Saw-Host", r.Host)
		_, _ = fmt.Fprintf(w, "hello from %s", name)
	})
}

// basic is a world with one application that every request reaches.
func basic(t testing.TB, rs ...*routev3.Route) *world {
	t.Helper()
	w := newWorld(t)
	w.pod("10.0.0.1:8080", named("v1"))
	w.pod("10.0.0.2:8080", named("v2"))
	if len(rs) == 0 {
		rs = []*routev3.Route{to("/", "v1")}
	}
	w.mustApply(cluster(t, "v1"), cluster(t, "v2"), cluster(t, "tcp"), endpoints("v1", "10.0.0.1:8080"), endpoints("v2", "10.0.0.2:8080"),
		terminate(t), internal(t, manager(t)), routes(t, nil, rs...))
	return w
}
