package admin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/waypoint/internal/config"
	"github.com/marrowmesh/marrow/waypoint/internal/intake"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

type fixed struct{ c *mtls.Certificate }

func (f fixed) Certificate(context.Context) (*mtls.Certificate, error) { return f.c, nil }

func give(t *testing.T, in *intake.Intake, name string, m proto.Message) {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range in.Types() {
		if typ.URL == a.GetTypeUrl() {
			typ.Handle(t.Context(), []xds.Resource{{Name: name, Version: "v-" + name, Body: a}}, nil)
		}
	}
}

// shown is a waypoint with one cluster of two endpoints, one that was refused, and a certificate.
func shown(t *testing.T) (*Sources, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := url.Parse("spiffe://td/ns/shop/sa/wp")
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(255), NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(2e9, 0), URIs: []*url.URL{id}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	cert, err := mtls.NewCertificate(key, []string{text, text})
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return time.Unix(1.5e9, 0) }
	ups := upstream.NewStore(nil, now)
	in := intake.New(ups, obs.Discard())
	give(t, in, "web", &clusterv3.Cluster{Name: "web", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}})
	give(t, in, "bad", &clusterv3.Cluster{Name: "bad", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, WaitForWarmOnInit: wrapperspb.Bool(true)})
	socket := func(ip string, status corev3.HealthStatus) *endpointv3.LbEndpoint {
		return &endpointv3.LbEndpoint{HealthStatus: status, HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{
			Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 8080}}},
		}}}}
	}
	give(t, in, "web", &endpointv3.ClusterLoadAssignment{ClusterName: "web", Endpoints: []*endpointv3.LocalityLbEndpoints{{
		Locality:    &corev3.Locality{Zone: "z1"},
		LbEndpoints: []*endpointv3.LbEndpoint{socket("10.0.0.1", corev3.HealthStatus_HEALTHY), socket("10.0.0.2", corev3.HealthStatus_UNHEALTHY)},
	}}})
	give(t, in, "r", &routev3.RouteConfiguration{Name: "r"})
	_, levels, err := obs.NewLogger(&strings.Builder{}, "plain", "info")
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	obs.Counter(reg, "istio_requests_total", "n", "reporter").WithLabelValues("waypoint").Add(3)
	obs.Histogram(reg, "istio_request_bytes", "n", []float64{1, 10}).WithLabelValues().Observe(2)
	return &Sources{
		Config: &config.Config{Pod: "p", Ports: config.Ports{Admin: 15000, HBONE: 15008}}, Version: "v", Node: &corev3.Node{Id: "n"}, Intake: in, Upstreams: ups, Cert: fixed{cert},
		Stats: reg, Levels: levels, Pending: func() []string { return nil }, Started: time.Unix(1.4e9, 0), Now: now,
	}, key
}

func get(t *testing.T, s *Sources, method, target string) (int, string) {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	s.Pages()[u.Path].ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w.Code, w.Body.String()
}

// TestConfigDumpIsEnvoys reads a dump as istioctl does: as Envoy's messages.
func TestConfigDumpIsEnvoys(t *testing.T) {
	s, _ := shown(t)
	_, text := get(t, s, "GET", "/config_dump?include_eds=true")
	d := &adminv3.ConfigDump{}
	if err := protojson.Unmarshal([]byte(text), d); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	seen := map[string]proto.Message{}
	for _, a := range d.GetConfigs() {
		m, err := a.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		seen[string(m.ProtoReflect().Descriptor().Name())] = m
	}
	cs := seen["ClustersConfigDump"].(*adminv3.ClustersConfigDump).GetDynamicActiveClusters()
	if len(cs) != 2 || cs[1].GetVersionInfo() != "v-web" || cs[0].GetCluster() != nil || !strings.Contains(cs[0].GetErrorState().GetDetails(), "wait_for_warm_on_init") || cs[0].GetErrorState().GetVersionInfo() != "v-bad" {
		t.Errorf("clusters %v", cs)
	}
	c := &clusterv3.Cluster{}
	if err := cs[1].GetCluster().UnmarshalTo(c); err != nil || c.GetName() != "web" {
		t.Errorf("cluster %v, %v", c, err)
	}
	if n := len(seen["EndpointsConfigDump"].(*adminv3.EndpointsConfigDump).GetDynamicEndpointConfigs()); n != 1 {
		t.Errorf("%d endpoint lists", n)
	}
	secrets := seen["SecretsConfigDump"].(*adminv3.SecretsConfigDump).GetDynamicActiveSecrets()
	sec := &tlsv3.Secret{}
	if len(secrets) != 2 || secrets[0].GetSecret().UnmarshalTo(sec) != nil || !strings.HasPrefix(string(sec.GetTlsCertificate().GetCertificateChain().GetInlineBytes()), "-----BEGIN CERTIFICATE") {
		t.Errorf("secrets %v", secrets)
	}
	if seen["BootstrapConfigDump"].(*adminv3.BootstrapConfigDump).GetBootstrap().GetNode().GetId() != "n" {
		t.Errorf("bootstrap %v", seen["BootstrapConfigDump"])
	}
	for target, want := range map[string][]string{
		"/config_dump?resource=dynamic_active_clusters":                   {"v-web", "!EndpointsConfigDump", "!BootstrapConfigDump"},
		"/config_dump?resource=dynamic_active_clusters&mask=cluster.name": {`"web"`, "!v-web", "!EDS"},
		"/config_dump?mask=dynamic_route_configs":                         {"RouteConfiguration", "!Cluster"},
		"/config_dump?name_regex=ba.":                                     {"v-bad", "!v-web"},
		"/config_dump":                                                    {"v-web", "!ClusterLoadAssignment"},
		"/config_dump?resource=nothing":                                   {"nothing not found"},
		"/config_dump?resource=version_info":                              {"no resource"},
		"/config_dump?mask=a..b":                                          {"empty name"},
		"/config_dump?name_regex=(":                                       {"name_regex"},
		"/clusters":                                                       {"web::10.0.0.1:8080::health_flags::healthy\n", "web::10.0.0.2:8080::health_flags::/failed_eds_health\n", "web::10.0.0.1:8080::zone::z1\n", "web::default_priority::max_retries::3\n"},
		"/listeners":                                                      {""},
		"/stats":                                                          {"istiocustom.istio_requests_total.reporter.waypoint: 3\n", "cluster.web.membership_healthy: 1\n", "istiocustom.istio_request_bytes: B1(0) B10(1) count 1\n", "cluster_manager.cds.refused_resources: 1\n", "server.live: 1\n"},
		"/stats?filter=membership&usedonly":                               {"membership_total: 2", "!server.live"},
		"/stats?filter=(":                                                 {"Invalid"},
		"/ready":                                                          {"LIVE\n"},
		"/server_info":                                                    {`"state":`, "LIVE", `"version":`},
		"/certs":                                                          {"spiffe://td/ns/shop/sa/wp", `"ff"`, "5787"},
		"/state":                                                          {`"podName": "p"`},
	} {
		_, text := get(t, s, "GET", target)
		for _, w := range want {
			w, absent := strings.CutPrefix(w, "!")
			if strings.Contains(text, w) == absent {
				t.Errorf("%s: %q absent=%t in\n%s", target, w, absent, text)
			}
		}
	}
	cl := &adminv3.Clusters{}
	_, text = get(t, s, "GET", "/clusters?format=json")
	if err := protojson.Unmarshal([]byte(text), cl); err != nil || len(cl.GetClusterStatuses()) != 1 {
		t.Fatalf("%v %s", err, text)
	}
	if hs := cl.GetClusterStatuses()[0].GetHostStatuses(); len(hs) != 2 || hs[1].GetHealthStatus().GetEdsHealthStatus() != corev3.HealthStatus_UNHEALTHY || hs[0].GetLocality().GetZone() != "z1" {
		t.Errorf("hosts %v", hs)
	}
	var st struct {
		Stats []struct {
			Name  string
			Value uint64
		}
	}
	_, text = get(t, s, "GET", "/stats?format=json&filter=istio_requests")
	if err := json.Unmarshal([]byte(text), &st); err != nil || len(st.Stats) != 1 || st.Stats[0].Value != 3 {
		t.Errorf("%v %s", err, text)
	}
}

func TestDumpHasNoKeys(t *testing.T) {
	s, key := shown(t)
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for path := range s.Pages() {
		_, text := get(t, s, "GET", path)
		for _, secret := range []string{"PRIVATE KEY", base64.StdEncoding.EncodeToString([]byte("-----BEGIN EC")), string(scalar), base64.StdEncoding.EncodeToString(scalar)} {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows a key", path)
			}
		}
	}
}

func TestLevelsAndQuit(t *testing.T) {
	s, _ := shown(t)
	l, levels, err := obs.NewLogger(&strings.Builder{}, "plain", "info")
	if err != nil {
		t.Fatal(err)
	}
	l.Named("xds")
	s.Levels = levels
	for _, c := range []struct {
		method, target string
		status         int
		want           string
	}{
		{"GET", "/logging", 200, "active loggers:\n  marrow: info\n  xds: info\n"},
		{"POST", "/logging?xds=warning", 200, "  marrow: info\n  xds: warning\n"},
		{"POST", "/logging?paths=xds:debug", 200, "  xds: debug\n"},
		{"POST", "/logging?level=error", 200, "  marrow: error\n  xds: error\n"},
		{"POST", "/logging?level=loud", 400, "usage"},
		{"GET", "/logging?level=info", 405, "POST required"},
	} {
		if status, text := get(t, s, c.method, c.target); status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("%s %s: %d %q", c.method, c.target, status, text)
		}
	}
	quit := 0
	s.Quit = func() { quit++ }
	if status, _ := get(t, s, "GET", "/quitquitquit"); status != 405 || quit != 0 {
		t.Errorf("GET ended the process: %d", status)
	}
	if _, text := get(t, s, "POST", "/quitquitquit"); text != "OK\n" || quit != 1 {
		t.Errorf("POST: %q, %d", text, quit)
	}
	s.Pending = func() []string { return []string{"configuration"} }
	if status, text := get(t, s, "GET", "/ready"); status != 503 || text != "INITIALIZING\n" {
		t.Errorf("%d %q", status, text)
	}
	s.Pending = func() []string { return []string{Draining} }
	if status, text := get(t, s, "GET", "/ready"); status != 503 || text != "DRAINING\n" {
		t.Errorf("%d %q", status, text)
	}
}

func FuzzMask(f *testing.F) {
	f.Add("cluster.name,version_info")
	f.Add("dynamic_active_clusters.cluster.load_assignment.endpoints.lb_endpoints")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseMask(text)
		if err != nil || m == nil {
			return
		}
		c, err := anypb.New(&clusterv3.Cluster{Name: "x", LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: "y", Endpoints: []*endpointv3.LocalityLbEndpoints{{}}}})
		if err != nil {
			t.Fatal(err)
		}
		d := &adminv3.ClustersConfigDump{VersionInfo: "v", DynamicActiveClusters: []*adminv3.ClustersConfigDump_DynamicCluster{{Cluster: c, VersionInfo: "w"}}}
		m.keep(d.ProtoReflect())
		again := proto.Clone(d)
		m.keep(again.ProtoReflect())
		if !proto.Equal(d, again) {
			t.Errorf("keeping twice is not keeping once: %v, %v", d, again)
		}
	})
}
