package admin

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/zds"
	"github.com/marrowmesh/marrow/ztunnel/internal/certs"
	"github.com/marrowmesh/marrow/ztunnel/internal/config"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
	"github.com/marrowmesh/marrow/ztunnel/internal/pods"
)

func world(t *testing.T) (*Sources, *ecdsa.PrivateKey) {
	t.Helper()
	web := mesh.NamespacedHostname{Namespace: "shop", Hostname: "web.shop.svc.cluster.local"}
	gone := mesh.NamespacedHostname{Namespace: "shop", Hostname: "later.shop.svc.cluster.local"}
	id := identity.MustParse("spiffe://cluster.local/ns/shop/sa/web")
	v, rejects := mesh.NewView().With(mesh.Batch{
		Workloads: []*mesh.Workload{
			{UID: "b", Name: "plain", Namespace: "other", Capacity: 1, Runtime: mesh.Runtime{ClusterID: "Kubernetes"}},
			{
				UID: "a", Name: "web-1", Namespace: "shop", Network: "n", Node: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
				Protocol: mesh.HBONE, ID: id, Capacity: 2, Unhealthy: true, HostNetwork: true, Policies: []string{"shop/p"},
				Waypoint: &mesh.GatewayAddress{Host: mesh.NamespacedHostname{Namespace: "shop", Hostname: "wp"}, Port: 15008},
				Tunnel:   &mesh.ApplicationTunnel{Protocol: mesh.TunnelProxy, Port: 15088},
				Runtime:  mesh.Runtime{ClusterID: "c", WorkloadName: "web", WorkloadType: "deployment", CanonicalName: "web", CanonicalRevision: "v1", Locality: mesh.Locality{Region: "r"}},
				Services: []mesh.Membership{{Service: web, Ports: []mesh.PortMapping{{Service: 80, Target: 8080}}}, {Service: gone}},
			},
		},
		Services: []*mesh.Service{{
			Name: "web", Namespace: "shop", Hostname: web.Hostname, Ports: []mesh.PortMapping{{Service: 80, Target: 8080}}, Canonical: true,
			VIPs:          []mesh.VIP{{Network: "n", Prefix: netip.MustParsePrefix("10.96.0.1/32")}, {Network: "n", Prefix: netip.MustParsePrefix("10.97.0.0/24")}},
			LoadBalancing: mesh.LoadBalancing{Mode: mesh.ModeFailover, Preferences: []mesh.Scope{mesh.ScopeRegion}}, Families: mesh.DualStack,
		}},
		Policies: []*mesh.Policy{{
			Resource: "shop/p", Name: "p", Namespace: "shop", Scope: mesh.PolicySelector, Action: mesh.Deny,
			Rules: []mesh.Rule{{{{Principals: []mesh.StringMatch{{Kind: mesh.Exact, Value: "x"}, {Kind: mesh.Presence}}, NotDestinationPorts: []uint16{80}}}}},
		}},
	})
	if len(rejects) > 0 {
		t.Fatal(rejects)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(42), NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(2e9, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	c := &mtls.Certificate{ID: id, Leaf: leaf, Chain: []*x509.Certificate{leaf}, Roots: []*x509.Certificate{leaf}}
	c.TLS.PrivateKey = key
	return &Sources{
		View: func() *mesh.View { return v },
		Certs: func() []certs.State {
			return []certs.State{{ID: id, Cert: c}, {ID: identity.MustParse("spiffe://cluster.local/ns/shop/sa/z"), Err: errors.New("refused")}}
		},
		Pods: func() []pods.State {
			return []pods.State{{UID: "u1", Info: zds.Info{Name: "web-1", Namespace: "shop", ServiceAccount: "web"}, Up: true}, {UID: "u2"}}
		},
		Conns: func(pod string, d conns.Direction) []conns.Entry {
			if pod != "u1" || d != conns.Inbound {
				return nil
			}
			return []conns.Entry{
				{Src: netip.MustParseAddrPort("10.0.0.2:4000"), Original: "web", Actual: netip.MustParseAddrPort("10.0.0.1:8080"), Protocol: "HBONE"},
				{Src: netip.MustParseAddrPort("10.0.0.3:4000"), Actual: netip.MustParseAddrPort("10.0.0.1:8080"), Protocol: "TCP"},
			}
		},
		Config: &config.Config{Auth: config.Auth{Token: "s3cret"}}, Build: obs.BuildInfo("1.32"),
	}, key
}

const want = `{
"workloads": [
 {"workloadIps":["10.0.0.1"],"waypoint":{"destination":"shop/wp","hboneMtlsPort":15008},"protocol":"HBONE","networkMode":"HostNetwork","uid":"a","name":"web-1","namespace":"shop",
  "trustDomain":"cluster.local","serviceAccount":"web","workloadName":"web","workloadType":"deployment","canonicalName":"web","canonicalRevision":"v1","network":"n","node":"n1","clusterId":"c",
  "locality":{"region":"r"},"applicationTunnel":{"protocol":"PROXY","port":15088},"authorizationPolicies":["shop/p"],"status":"Unhealthy",
  "services":["shop/web.shop.svc.cluster.local","shop/later.shop.svc.cluster.local"],"capacity":2},
 {"workloadIps":[],"protocol":"TCP","networkMode":"Standard","uid":"b","name":"plain","namespace":"other","clusterId":"Kubernetes","status":"Healthy","capacity":1}],
"services": [
 {"name":"web","namespace":"shop","hostname":"web.shop.svc.cluster.local","vips":["n/10.96.0.1"],"cidrVips":[{"network":"n","cidr":"10.97.0.0/24"}],"ports":{"80":8080},
  "endpoints":{"a":{"workloadUid":"a","port":{"80":8080},"status":"Unhealthy"}},
  "loadBalancer":{"routingPreferences":["Region"],"mode":"Failover","healthPolicy":"OnlyHealthy"},"ipFamilies":"Dual","canonical":true,"visibility":"Public"}],
"policies": [{"name":"p","namespace":"shop","scope":"WorkloadSelector","action":"Deny","rules":[[[{"principals":[{"Exact":"x"},{"Presence":[]}],"notDestinationPorts":[80]}]]]}],
"stagedServices": {"shop/later.shop.svc.cluster.local":{"a":{"workloadUid":"a","port":{},"status":"Unhealthy"}}},
"staticConfig": {"workloads":[],"policies":[],"services":[]},
"workloadState": {
 "u1":{"state":"Up","connections":{"inbound":[{"src":"10.0.0.2:4000","originalDst":"web","actualDst":"10.0.0.1:8080","protocol":"HBONE"},
   {"src":"10.0.0.3:4000","originalDst":null,"actualDst":"10.0.0.1:8080","protocol":"TCP"}],"outbound":[]},"info":{"name":"web-1","namespace":"shop","serviceAccount":"web"}},
 "u2":{"state":"Pending","connections":{"inbound":[],"outbound":[]},"info":{"name":"","namespace":"","serviceAccount":""}}}
}`

func TestDumpShape(t *testing.T) {
	s, _ := world(t)
	d, err := s.Dump()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var got, exp map[string]any
	if err := errors.Join(json.Unmarshal(b, &got), json.Unmarshal([]byte(want), &exp)); err != nil {
		t.Fatal(err)
	}
	list := got["certificates"].([]any)
	first := list[0].(map[string]any)
	chain := first["certChain"].([]any)[0].(map[string]any)
	text, err := base64.StdEncoding.DecodeString(chain["pem"].(string))
	if err != nil || !strings.HasPrefix(string(text), "-----BEGIN CERTIFICATE-----\n") || chain["serialNumber"] != "42" ||
		chain["validFrom"] != "2001-09-09T01:46:40Z" || chain["expirationTime"] != "2033-05-18T03:33:20Z" || first["state"] != "Available" {
		t.Errorf("%v", first)
	}
	if second := list[1].(map[string]any); second["state"] != "Unavailable: refused" || len(second["certChain"].([]any)) != 0 {
		t.Errorf("%v", second)
	}
	for _, k := range []string{"certificates", "version", "config"} {
		if got[k] == nil {
			t.Errorf("no %s", k)
		}
		delete(got, k)
	}
	if diff := cmp.Diff(exp, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestDumpHasNoKeys(t *testing.T) {
	s, key := world(t)
	d, err := s.Dump()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range [][]byte{[]byte("s3cret"), []byte("PRIVATE KEY"), scalar, []byte(base64.StdEncoding.EncodeToString(scalar)), []byte(new(big.Int).SetBytes(scalar).String())} {
		if bytes.Contains(b, secret) {
			t.Errorf("the dump holds %q", secret)
		}
	}
}
