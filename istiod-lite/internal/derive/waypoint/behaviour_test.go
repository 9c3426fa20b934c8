package waypoint

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/marrowmesh/marrow/internal/hbone"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/testkit/fakeca"
	"github.com/marrowmesh/marrow/internal/testkit/tokencorpus"
)

// bench is a stock Envoy as the waypoint of a world, between clients that open real tunnels and node proxies that end
// them. Endpoints are loopback addresses.
type bench struct {
	t      *testing.T
	ca     *fakeca.CA
	front  string // where Envoy takes tunnels
	hbone  uint32 // where the node proxies take them, instead of 15008
	mu     sync.Mutex
	peers  map[string]bool // identities that node proxies have seen
	waited bool
}

func account(namespace, name string) identity.ID {
	return identity.MustParse("spiffe://cluster.local/ns/" + namespace + "/sa/" + name)
}

func startBench(t *testing.T, services, objects string, change ...func(*Input)) *bench {
	t.Helper()
	envoy := envoyProgram(t)
	ca, err := fakeca.New()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, ca: ca, hbone: uint32(freePort(t)), peers: map[string]bool{}}
	front := freePort(t)
	b.front = fmt.Sprintf("127.0.0.1:%d", front)
	in := parseWorld(t, []byte(services), []byte(objects))
	for _, f := range change {
		f(&in)
	}
	for _, s := range in.Services {
		for _, e := range s.Endpoints {
			b.node(e.Addresses[0], account(e.Namespace, e.ServiceAccount))
		}
	}
	for _, w := range in.Workloads {
		b.node(w.Addresses[0], account(w.Namespace, w.ServiceAccount))
	}
	resources, _ := Derive(in)
	config := static(t, resources)
	b.localise(config, uint32(front))
	raw, err := protojson.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "envoy.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envoy, "-c", file, "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	// The package's envoy is a script that starts the program: stop the group.
	cmd.SysProcAttr = processGroup()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stopGroup(cmd.Process.Pid)
		_ = cmd.Wait()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("Envoy said at last:\n%s", text[max(0, len(text)-2000):])
		}
	})
	return b
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// localise moves the fixed ports to free ones and puts this bench's certificates in.
func (b *bench) localise(config *bootstrapv3.Bootstrap, front uint32) {
	for _, l := range config.GetStaticResources().GetListeners() {
		if l.GetName() == ConnectTerminate {
			l.Address = socketAddress("127.0.0.1", front)
		}
	}
	for _, c := range config.GetStaticResources().GetClusters() {
		if o, ok := c.GetLbConfig().(*clusterv3.Cluster_OriginalDstLbConfig_); ok {
			o.OriginalDstLbConfig.UpstreamPortOverride = uintValue(b.hbone)
		}
	}
	cert := b.certificate(account("shop", "waypoint"))
	key, err := x509.MarshalPKCS8PrivateKey(cert.TLS.PrivateKey)
	if err != nil {
		b.t.Fatal(err)
	}
	inline := func(text []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: text}}
	}
	config.StaticResources.Secrets = []*tlsv3.Secret{
		{Name: SecretDefault, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(cert.ChainPEM),
			PrivateKey:       inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		}}},
		{Name: SecretRoots, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inline(cert.RootPEM),
		}}},
	}
}

func (b *bench) certificate(id identity.ID) *mtls.Certificate {
	b.t.Helper()
	cert, err := b.ca.Issue(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return cert
}

// node is the node proxy and the application of one pod.
func (b *bench) node(addr netip.Addr, id identity.ID) {
	b.t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, uint16(b.hbone)).String())
	if err != nil {
		if strings.Contains(err.Error(), "in use") {
			return // the pod serves several services
		}
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.t.Cleanup(func() { cancel(); l.Close() })
	server, cert := hbone.NewServer(hbone.Config{}), b.certificate(id)
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				conn, peer, err := mtls.Server(ctx, raw, cert)
				if err != nil {
					raw.Close()
					return
				}
				b.mu.Lock()
				b.peers[peer.String()] = true
				b.mu.Unlock()
				_ = server.Serve(ctx, conn, application)
			}()
		}
	}()
}

// application answers what it was asked, over HTTP, or echoes bytes on port 9090.
func application(_ context.Context, in *hbone.Incoming) {
	stream, err := in.Accept(nil)
	if err != nil {
		return
	}
	if strings.HasSuffix(in.Authority(), ":17090") {
		_, _ = io.WriteString(stream, "tcp "+in.Authority()+"\n")
		_, _ = io.Copy(stream, stream)
		stream.Close()
		return
	}
	done := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/jwks" {
			_, _ = io.WriteString(w, tokencorpus.Document)
			return
		}
		for k, v := range r.Header {
			w.Header()["Saw-"+k] = v
		}
		w.Header().Set("x-authority", in.Authority())
		w.Header().Set("x-host", r.Host)
		w.Header().Set("x-proto", r.Proto)
		w.Header().Set("x-path", r.URL.RequestURI())
		w.Header().Set("x-seen", r.Header.Get("x-add"))
		w.Header().Set("x-cert", r.Header.Get("x-forwarded-client-cert"))
		if status, err := strconv.Atoi(r.Header.Get("x-answer")); err == nil {
			w.WriteHeader(status)
		}
		if d, err := time.ParseDuration(r.Header.Get("x-sleep")); err == nil {
			time.Sleep(d)
		}
	})
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: handler, Protocols: &both, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			close(done)
		}
	}}
	_ = server.Serve(&oneConn{conn: stream, done: done})
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn net.Conn
	done chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// tunnel opens a connection to authority through the waypoint as a client.
func (b *bench) tunnel(id identity.ID, authority string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var raw net.Conn
	var err error
	for range 100 { // Envoy needs a moment to listen
		if raw, err = net.Dial("tcp", b.front); err == nil || b.waited {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return nil, err
	}
	b.waited = true
	conn, _, err := mtls.ClientTrusting(ctx, raw, b.certificate(id))
	if err != nil {
		return nil, err
	}
	client, err := hbone.NewClient(conn, hbone.Config{})
	if err != nil {
		return nil, err
	}
	b.t.Cleanup(func() { client.Close() })
	stream, _, err := client.Connect(ctx, authority, nil)
	return stream, err
}

type reply struct {
	status int
	header http.Header
	body   string
	took   time.Duration
}

// ask sends one request through a tunnel of its own. what is
// "[h2] METHOD URL-path [header=value]...".
func (b *bench) ask(id identity.ID, authority, what string) (reply, error) {
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return b.tunnel(id, authority)
	}, DisableKeepAlives: true}
	if strings.HasPrefix(what, "h2 ") { // HTTP/2 in clear text
		transport.Protocols = &http.Protocols{}
		transport.Protocols.SetUnencryptedHTTP2(true)
		what = strings.TrimPrefix(what, "h2 ")
	}
	words := strings.Fields(what)
	req, err := http.NewRequest(words[0], "http://web.shop"+words[1], nil)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, w := range words[2:] {
		k, v, _ := strings.Cut(w, "=")
		if req.Header.Add(k, v); strings.EqualFold(k, "host") {
			req.Host = v
		}
	}
	start := time.Now()
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}).Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{status: resp.StatusCode, header: resp.Header, body: string(body), took: time.Since(start)}, err
}
