//go:build lab

package rbacgoldens

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// object is a piece of Envoy's configuration.
type object = map[string]any

type list = []any

func typed(name string, fields object) object {
	out := object{"@type": "type.googleapis.com/envoy." + name}
	maps.Copy(out, fields)
	return out
}

func raw(t *testing.T, m proto.Message) json.RawMessage {
	t.Helper()
	out, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// stranger is a stock Envoy with Istio's filters: those for requests each in a route of its own, those for connections at an address.
type stranger struct {
	t     *testing.T
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
	certs map[string]*tls.Certificate
	http  map[string]*http.Client
}

// caseHeader picks the route. No policy looks at it.
const caseHeader = "x-rbac-case"

func startEnvoy(t *testing.T, sets []*judged, streams map[netip.Addr]*listenerv3.Filter) *stranger {
	t.Helper()
	s := &stranger{t: t, certs: map[string]*tls.Certificate{}, http: map[string]*http.Client{}}
	dir := t.TempDir()
	s.makeCA(dir)
	program, err := filepath.Abs(envoyProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	var listeners list
	for _, port := range ports() {
		listeners = append(listeners, listener(t, dir, port, sets, streams))
	}
	config, err := json.Marshal(object{
		"static_resources": object{"listeners": listeners},
		"admin":            object{"address": object{"pipe": object{"path": filepath.Join(dir, "admin.sock")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	log := &bytes.Buffer{}
	cmd := exec.CommandContext(ctx, program, "-c", file, "--disable-hot-restart", "--concurrency", "1", "-l", "warn")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() { stop(); <-done })
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1500 {
		select {
		case <-done:
			t.Fatalf("Envoy ended: %s", log)
		case <-tick.C:
		}
		if c, err := net.Dial("tcp", "127.0.0.8:9002"); err == nil {
			_ = c.Close()
			return s
		}
	}
	t.Fatalf("Envoy does not listen: %s", log)
	return nil
}

func envoyProgram(t *testing.T) string {
	t.Helper()
	for _, path := range []string{os.Getenv("MARROW_ENVOY"), "../../build/envoy/bin/envoy"} {
		if _, err := os.Stat(path); path != "" && err == nil {
			return path
		}
	}
	t.Fatal("there is no Envoy: `make envoy-bin` installs it, or name one by MARROW_ENVOY")
	return ""
}

func listener(t *testing.T, dir string, port uint16, sets []*judged, streams map[netip.Addr]*listenerv3.Filter) object {
	t.Helper()
	routes := make(list, 0, len(sets)+1)
	for i, set := range sets {
		per := object{}
		for k, f := range set.filters {
			per[fmt.Sprintf("rbac%d", k)] = typed("extensions.filters.http.rbac.v3.RBACPerRoute", object{"rbac": raw(t, f)})
		}
		routes = append(routes, object{
			"match":                   object{"prefix": "/", "headers": list{object{"name": caseHeader, "string_match": object{"exact": strconv.Itoa(i)}}}},
			"direct_response":         object{"status": 200},
			"typed_per_filter_config": per,
		})
	}
	metadata := func(header, namespace, key string) object {
		return object{"header": header, "on_header_present": object{
			"metadata_namespace": namespace, "key": key, "type": "PROTOBUF_VALUE", "encode": "BASE64",
		}, "remove": true}
	}
	filters := list{object{"name": "metadata", "typed_config": typed("extensions.filters.http.header_to_metadata.v3.Config", object{
		"request_rules": list{metadata("x-rbac-payload", "envoy.filters.http.jwt_authn", "payload")},
	})}}
	for k := range 2 {
		filters = append(filters, object{"name": fmt.Sprintf("rbac%d", k), "typed_config": raw2(t, &rbacv3.RBAC{})})
	}
	filters = append(filters, object{"name": "router", "typed_config": typed("extensions.filters.http.router.v3.Router", nil)})
	manager := typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", object{
		"stat_prefix": "http", "http_filters": filters, "xff_num_trusted_hops": 0,
		"route_config": object{"virtual_hosts": list{object{"name": "all", "domains": list{"*"}, "routes": routes}}},
	})
	file := func(name string) object { return object{"filename": filepath.Join(dir, name)} }
	socket := object{"name": "tls", "typed_config": typed("extensions.transport_sockets.tls.v3.DownstreamTlsContext", object{
		"common_tls_context": object{
			"alpn_protocols":     list{"h2"},
			"tls_certificates":   list{object{"certificate_chain": file("server.pem"), "private_key": file("server.key")}},
			"validation_context": object{"trusted_ca": file("ca.pem")},
		},
	})}
	var chains list
	for at, f := range streams {
		chains = append(chains, object{
			"name":               at.String(),
			"filter_chain_match": object{"prefix_ranges": list{object{"address_prefix": at.String(), "prefix_len": 32}}},
			"transport_socket":   socket,
			"filters":            list{raw(t, f), object{"name": "echo", "typed_config": typed("extensions.filters.network.echo.v3.Echo", nil)}},
		})
	}
	chains = append(chains, object{"name": "http", "transport_socket": socket, "filters": list{object{"name": "http", "typed_config": manager}}})
	return object{
		"name": strconv.Itoa(int(port)), "address": object{"socket_address": object{"address": "0.0.0.0", "port_value": port}},
		"listener_filters": list{object{"name": "tls", "typed_config": typed("extensions.filters.listener.tls_inspector.v3.TlsInspector", nil)}},
		"filter_chains":    chains,
	}
}

// raw2 is a message with its type in it.
func raw2(t *testing.T, m proto.Message) object {
	t.Helper()
	var out object
	if err := json.Unmarshal(raw(t, m), &out); err != nil {
		t.Fatal(err)
	}
	return typed("extensions.filters.http.rbac.v3.RBAC", out)
}

func (s *stranger) makeCA(dir string) {
	s.t.Helper()
	var err error
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		s.t.Fatal(err)
	}
	s.ca = &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, s.ca, s.ca, s.key.Public(), s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	server := s.cert(&x509.Certificate{DNSNames: []string{"server"}})
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		s.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca.pem":     {Type: "CERTIFICATE", Bytes: der},
		"server.pem": {Type: "CERTIFICATE", Bytes: server.Certificate[0]}, "server.key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *stranger) cert(c *x509.Certificate) *tls.Certificate {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	c.SerialNumber, c.NotAfter, c.KeyUsage = big.NewInt(2), s.ca.NotAfter, x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, c, s.ca, key.Public(), s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// config of a client with the request's identity and server name.
func (s *stranger) config(q request) *tls.Config {
	s.t.Helper()
	c := &tls.Config{InsecureSkipVerify: true, ServerName: q.SNI, NextProtos: []string{"h2"}}
	if q.Principal == "" {
		return c
	}
	if s.certs[q.Principal] == nil {
		u, err := url.Parse("spiffe://" + q.Principal)
		if err != nil {
			s.t.Fatal(err)
		}
		s.certs[q.Principal] = s.cert(&x509.Certificate{URIs: []*url.URL{u}})
	}
	c.Certificates = []tls.Certificate{*s.certs[q.Principal]}
	return c
}

func (s *stranger) dial(ctx context.Context, q request) (*tls.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: q.Source.Addr().AsSlice()}, Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", q.To.String())
	if err != nil {
		return nil, err
	}
	secure := tls.Client(c, s.config(q))
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return secure, nil
}

// asks puts a request to the filters of a set.
func (s *stranger) asks(set int, q request) (bool, error) {
	if q.TCP {
		return s.opens(q)
	}
	at := fmt.Sprint(q.Principal, "|", q.Source, "|", q.To, "|", q.SNI)
	client := s.http[at]
	if client == nil {
		transport := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx, q) }}
		client = &http.Client{Transport: transport, Timeout: 10 * time.Second}
		s.http[at] = client
		s.t.Cleanup(transport.CloseIdleConnections)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), q.Method, "https://envoy"+q.Path, nil)
	if err != nil {
		return false, err
	}
	req.Host = q.Host
	req.Header.Set(caseHeader, strconv.Itoa(set))
	for k, v := range q.Header {
		req.Header.Set(k, v)
	}
	if q.Remote.IsValid() {
		req.Header.Set("x-forwarded-for", q.Remote.String())
	}
	if q.Payload != nil {
		v, err := structpb.NewValue(q.Payload)
		if err != nil {
			return false, err
		}
		wire, err := proto.Marshal(v)
		if err != nil {
			return false, err
		}
		req.Header.Set("x-rbac-payload", base64.StdEncoding.EncodeToString(wire))
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusForbidden {
		return false, fmt.Errorf("status %d", resp.StatusCode)
	}
	return resp.StatusCode == http.StatusOK, nil
}

// opens says whether a connection carries bytes.
func (s *stranger) opens(q request) (bool, error) {
	c, err := s.dial(s.t.Context(), q)
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return false, nil // refused before it was read
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		if ne, ok := err.(net.Error); ok && ne.Timeout() { //nolint:errorlint // of this call
			return false, err
		}
		return false, nil
	}
	return true, nil
}
