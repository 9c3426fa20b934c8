package config

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/conf"
)

func load(env, files map[string]string) (*Config, error) {
	all := map[string]string{"NODE_NAME": "n1"}
	maps.Copy(all, env)
	return Load(conf.FromMap(all), func(p string) ([]byte, bool) { b, ok := files[p]; return []byte(b), ok })
}

func TestDefaults(t *testing.T) {
	c, err := load(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.XDS.Address != "https://localhost:15012" || c.CA.RootCA != defaultRoot || c.Auth != (Auth{}) || c.Drain != 5*time.Second ||
		c.Ports != (Ports{15000, 15020, 15021}) || c.Data.Mark != 1337 || !c.Data.ReusePort || c.Data.KeepSource != nil ||
		c.Node.ClusterID != "Kubernetes" || c.HBONE.StreamWindow != 4194304 || c.SecretTTL != 24*time.Hour || c.Log != (Log{"plain", "info"}) || c.HBONE.SameNode != SameNodeSplice {
		t.Errorf("%+v", c)
	}
}

// The environment of Istio's DaemonSet, as its chart writes it.
func TestDaemonSet(t *testing.T) {
	c, err := load(map[string]string{
		"CA_ADDRESS": "istiod.istio-system.svc:15012", "XDS_ADDRESS": "istiod.istio-system.svc:15012", "RUST_LOG": "info", "RUST_BACKTRACE": "1",
		"ISTIO_META_CLUSTER_ID": "c1", "INPOD_ENABLED": "true", "TERMINATION_GRACE_PERIOD_SECONDS": "30", "POD_NAME": "ztunnel-abc",
		"POD_NAMESPACE": "istio-system", "NODE_NAME": "node-1", "INSTANCE_IP": "10.0.0.7", "SERVICE_ACCOUNT": "ztunnel", "ISTIO_META_ENABLE_HBONE": "true",
		"ZTUNNEL_CPU_LIMIT": "2", "KUBERNETES_SERVICE_HOST": "10.96.0.1", "CLUSTER_ID": "loses", "ISTIO_META_DNS_CAPTURE": "true",
	}, map[string]string{defaultToken: "t"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Drain != 25*time.Second || c.Node.ClusterID != "c1" || c.Node.Metadata["ENABLE_HBONE"] != "true" || c.Auth.TokenPath != defaultToken ||
		c.Node.InstanceIP != netip.MustParseAddr("10.0.0.7") || len(c.Ignored) != 1 {
		t.Errorf("%+v", c)
	}
}

func TestRefusals(t *testing.T) {
	_, err := load(map[string]string{
		"NODE_NAME": "", "PROXY_MODE": "dedicated", "CRL_PATH": "/x", "XDS_ON_DEMAND": "true", "ENABLE_PROXY": "false", "LOG_FORMAT": "xml",
		"PACKET_MARK": "1", "HTTP2_FRAME_SIZE": "1", "HTTP2_STREAM_WINDOW_SIZE": "3000000000", "KEEPALIVE_RETRIES": "0", "IPV6_ENABLED": "yes",
		"MARROW_ANYTHING": "1", "XDS_ADDRESS": "", "ZTUNNEL_WORKER_THREADS": "0%", "PROXY_CONFIG": "statsPort: 70000", "ENABLE_ORIG_SRC": "maybe", "RUST_LOG": "loud",
	}, map[string]string{meshFile: "{"})
	var ce *conf.Error
	if !errors.As(err, &ce) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"NODE_NAME", "PROXY_MODE", "CRL_PATH", "XDS_ON_DEMAND", "ENABLE_PROXY", "LOG_FORMAT", "PACKET_MARK", "HTTP2_FRAME_SIZE",
		"HTTP2_STREAM_WINDOW_SIZE", "KEEPALIVE_RETRIES", "IPV6_ENABLED", "MARROW_ANYTHING", "XDS_ADDRESS", "ZTUNNEL_WORKER_THREADS", "PROXY_CONFIG", "ENABLE_ORIG_SRC", "RUST_LOG", meshFile,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word about %s in: %v", want, err)
		}
	}
	if len(ce.Problems) != 18 {
		t.Errorf("%d problems: %v", len(ce.Problems), err)
	}
}

func TestTLS(t *testing.T) {
	for env, want := range map[[2]string]TLS{
		{"MARROW_TLS_RECORDS", "own"}: {}, {"MARROW_TLS_RECORDS", "std"}: {StdRecords: true}, {"COMPLIANCE_POLICY", "pqc"}: {PostQuantum: true}, {"COMPLIANCE_POLICY", ""}: {},
	} {
		if c, err := load(map[string]string{env[0]: env[1]}, nil); err != nil || c.TLS != want {
			t.Errorf("%v: %+v, %v", env, c, err)
		}
	}
	for name, value := range map[string]string{"MARROW_TLS_RECORDS": "", "COMPLIANCE_POLICY": "fips-140-2"} {
		if _, err := load(map[string]string{name: value}, nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%q: %v", name, value, err)
		}
	}
}

func TestIgnored(t *testing.T) {
	c, err := load(map[string]string{"TLS12_ENABLED": "true", "USER_TIMEOUT_ENABLED": "false", "FAKE_CA": "false", "PROXY_MODE": "shared", "XDS_ON_DEMAND": "false"}, nil)
	if err != nil || strings.Join(c.Ignored, " ") != "TLS12_ENABLED" {
		t.Errorf("%v %v", c.Ignored, err)
	}
}

func TestProxyConfigMerges(t *testing.T) {
	c, err := load(map[string]string{
		"PROXY_CONFIG":     "discoveryAddress: env:15012\nproxyMetadata: {ISTIO_META_A: env, B: env}\nconcurrency: 3",
		"ISTIO_META_B":     "wins",
		"XDS_HEADER_x-key": "secret-header",
	}, map[string]string{meshFile: "defaultConfig:\n  discoveryAddress: file:15012\n  statsPort: 16020\n  proxyMetadata: {ISTIO_META_A: file, C: file}\n"})
	if err != nil {
		t.Fatal(err)
	}
	if c.XDS.Address != "env:15012" || c.CA.Address != "https://localhost:15012" || c.Ports.Stats != 16020 || c.Workers != 3 ||
		c.Node.Metadata["A"] != "env" || c.Node.Metadata["B"] != "wins" || c.Node.Metadata["C"] != "file" || c.XDS.Headers["x-key"] == "" {
		t.Errorf("%+v", c)
	}
}

func TestDeadline(t *testing.T) {
	for env, want := range map[[2]string]time.Duration{
		{"TERMINATION_GRACE_PERIOD_SECONDS", "11"}: 6 * time.Second, {"TERMINATION_GRACE_PERIOD_SECONDS", "10"}: 9 * time.Second,
		{"TERMINATION_GRACE_PERIOD_SECONDS", "1"}: time.Second, {"CONNECTION_TERMINATION_DEADLINE", "90"}: 90 * time.Second,
		{"CONNECTION_TERMINATION_DEADLINE", "0"}: 0,
	} {
		if c, err := load(map[string]string{env[0]: env[1]}, nil); err != nil || c.Drain != want {
			t.Errorf("%v: %v, %v", env, c.Drain, err)
		}
	}
}

func TestDumpHidesSecrets(t *testing.T) {
	c, err := load(map[string]string{"AUTH_TOKEN": "s3cret", "CA_HEADER_key": "s3cret"}, nil)
	if err != nil || c.Auth.Token != "s3cret" {
		t.Fatal(err)
	}
	b, err := json.Marshal(c)
	if err != nil || strings.Contains(string(b), "s3cret") {
		t.Errorf("%s, %v", b, err)
	}
}

func TestSameNode(t *testing.T) {
	if c, err := load(map[string]string{"MARROW_SAME_NODE": "tunnel"}, nil); err != nil || c.HBONE.SameNode != SameNodeTunnel {
		t.Errorf("%v", err)
	}
	if _, err := load(map[string]string{"MARROW_SAME_NODE": "plaintext"}, nil); err == nil || !strings.Contains(err.Error(), "MARROW_SAME_NODE") {
		t.Errorf("%v", err)
	}
}
