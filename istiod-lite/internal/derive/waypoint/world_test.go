package waypoint

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/marrowmesh/marrow/api/policy"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

var update = flag.Bool("update", false, "rewrite the wanted sections of testdata")

// parseWorld reads a world's two sections. Lines of "services" are
//
//	service NAME.NAMESPACE VIP|- PORT/PROTOCOL,... [foreign]
//	endpoint NAME.NAMESPACE ADDRESS [plain] [unready] [label=value]...
//	workload NAME.NAMESPACE ADDRESS
//	prefer NAME.NAMESPACE LABEL,...
//	place waypoint REGION/ZONE/SUBZONE
//
// Of an endpoint's labels, at=REGION/ZONE/SUBZONE and weight=N say more than that.
func parseWorld(t *testing.T, services, objects []byte) Input {
	t.Helper()
	in := Input{
		Mesh: Mesh{
			TrustDomain: "cluster.local", ClusterDomain: "cluster.local", RootNamespace: "istio-system", ClusterID: "Kubernetes",
		},
		Gateway: types.NamespacedName{Namespace: "shop", Name: "waypoint"},
	}
	at := map[string]int{}
	for line := range strings.SplitSeq(string(services), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		name, namespace, _ := strings.Cut(f[1], ".")
		switch f[0] {
		case "service":
			at[f[1]] = len(in.Services)
			in.Services = append(in.Services, parseService(t, name, namespace, f[2:]))
		case "endpoint":
			s := &in.Services[at[f[1]]]
			s.Endpoints = append(s.Endpoints, parseEndpoint(s, f[2:]))
		case "prefer":
			in.Services[at[f[1]]].Prefer = strings.Split(f[2], ",")
		case "place":
			l := kube.ParseLocality(f[2])
			in.Place = Place{l.Region, l.Zone, l.Subzone}
		case "workload":
			in.Workloads = append(in.Workloads, testWorkload(name, namespace, f[2]))
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	list, err := manifest.Decode("objects.yaml", bytes.NewReader(objects))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list {
		switch o := o.(type) {
		case *gatewayv1.HTTPRoute:
			in.HTTPRoutes = append(in.HTTPRoutes, o)
		case *gatewayv1.GRPCRoute:
			in.GRPCRoutes = append(in.GRPCRoutes, o)
		case *gatewayv1.TLSRoute:
			in.TLSRoutes = append(in.TLSRoutes, o)
		case *gatewayv1.TCPRoute:
			in.TCPRoutes = append(in.TCPRoutes, o)
		case *networkingv1.VirtualService:
			in.VirtualServices = append(in.VirtualServices, o)
		case *networkingv1.DestinationRule:
			in.DestinationRules = append(in.DestinationRules, o)
		case *corev1.Secret:
			in.Secrets = append(in.Secrets, o)
		case *corev1.ConfigMap:
			in.ConfigMaps = append(in.ConfigMaps, o)
		case *securityv1.AuthorizationPolicy:
			in.Policies = append(in.Policies, o)
		case *securityv1.RequestAuthentication:
			in.Authentications = append(in.Authentications, o)
		case *policy.RateLimitPolicy:
			in.RateLimits = append(in.RateLimits, o)
		case *gatewayv1.BackendTLSPolicy:
			in.BackendTLS.Policies = append(in.BackendTLS.Policies, o)
		case *telemetryv1.Telemetry:
			in.Telemetries = append(in.Telemetries, o)
		default:
			t.Fatalf("a world has no use for %T", o)
		}
	}
	in.BackendTLS = BackendTLSOf(in.BackendTLS.Policies, in.ConfigMaps)
	return in
}

func parseService(t *testing.T, name, namespace string, f []string) Service {
	t.Helper()
	s := Service{
		Kind: "Service", Namespace: namespace, Name: name, Bound: true,
		Hostname: name + "." + namespace + ".svc.cluster.local",
	}
	if f[0] != "-" {
		s.VIPs = []netip.Addr{netip.MustParseAddr(f[0])}
	}
	protocols := map[string]Protocol{"http": HTTP, "http2": HTTP2, "tcp": TCP, "auto": Sniffed, "udp": Ignored}
	for p := range strings.SplitSeq(f[1], ",") {
		number, protocol, _ := strings.Cut(p, "/")
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		s.Ports = append(s.Ports, Port{Number: uint32(n), Name: protocol, Protocol: protocols[protocol]})
	}
	for _, word := range f[2:] {
		s.Bound = s.Bound && word != "foreign"
		s.Resolution = max(s.Resolution, map[string]Resolution{"dns": DNS, "one": OneByDNS, "dialled": Dialled}[word])
	}
	return s
}

func testWorkload(name, namespace, addr string) Workload {
	return Workload{
		UID: "Kubernetes//Pod/" + namespace + "/" + name + "-" + addr, Namespace: namespace, Name: name,
		Addresses: []netip.Addr{netip.MustParseAddr(addr)}, HBONE: true, ServiceAccount: name, TrustDomain: "cluster.local",
		CanonicalName: name, CanonicalRevision: "latest", Labels: map[string]string{},
	}
}

func parseEndpoint(s *Service, f []string) Endpoint {
	at := f[0]
	if _, err := netip.ParseAddr(at); err != nil {
		at = "0.0.0.0"
	}
	e := Endpoint{Workload: testWorkload(s.Name, s.Namespace, at), Targets: map[uint32]uint32{}, Healthy: true}
	for _, p := range s.Ports {
		e.Targets[p.Number] = p.Number + 8000
	}
	if at != f[0] {
		e.Addresses, e.Hostname, e.HBONE = nil, f[0], false
	}
	for _, word := range f[1:] {
		switch key, value, label := strings.Cut(word, "="); {
		case key == "at":
			l := kube.ParseLocality(value)
			e.Region, e.Zone, e.Subzone = l.Region, l.Zone, l.Subzone
		case key == "weight":
			n, err := strconv.Atoi(value)
			if err != nil {
				panic(err)
			}
			e.Weight = uint32(n)
		case label:
			e.Labels[key] = value
		case word == "plain":
			e.HBONE = false
		case word == "unready":
			e.Healthy = false
		}
	}
	return e
}

type worldFile struct {
	path    string
	archive *txtar.Archive
	in      Input
}

func section(a *txtar.Archive, name string) []byte {
	for _, f := range a.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

func worlds(t *testing.T) []worldFile {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no worlds: %v", err)
	}
	var out []worldFile
	for _, p := range paths {
		a, err := txtar.ParseFile(p)
		if err != nil {
			t.Fatal(err)
		}
		in := parseWorld(t, section(a, "services"), section(a, "objects.yaml"))
		if mesh := section(a, "mesh.yaml"); mesh != nil {
			withMesh(t, string(mesh))(&in)
		}
		out = append(out, worldFile{path: p, archive: a, in: in})
	}
	return out
}

// asYAML prints messages in one stable form; protojson alone varies its spaces.
func asYAML(t *testing.T, m proto.Message) string {
	t.Helper()
	raw, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out, err := yaml.JSONToYAML(raw)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestWorlds compares what each world of testdata derives to. The listeners and clusters every waypoint has are in
// basic.txtar; the other worlds want only the sections they have.
func TestWorlds(t *testing.T) {
	for _, w := range worlds(t) {
		t.Run(strings.TrimSuffix(filepath.Base(w.path), ".txtar"), func(t *testing.T) {
			resources, findings := Derive(w.in)
			changed := false
			for i, f := range w.archive.Files {
				var got string
				switch kind, name, _ := strings.Cut(f.Name, ":"); kind {
				case "services", "objects.yaml", "mesh.yaml":
					continue
				case "findings":
					for _, f := range findings {
						got += fmt.Sprintf("%s %s/%s %s: %s\n", f.Kind, f.Namespace, f.Name, f.Reason, f.Message)
					}
				case "names":
					got = names(resources)
				case "listener":
					got = asYAML(t, resources.Listeners[name])
				case "secret":
					got = fmt.Sprintf("%s of %d bytes of roots, %d of a chain, %d of a key\n", resources.Secrets[name].GetName(),
						len(resources.Secrets[name].GetValidationContext().GetTrustedCa().GetInlineBytes()),
						len(resources.Secrets[name].GetTlsCertificate().GetCertificateChain().GetInlineBytes()),
						len(resources.Secrets[name].GetTlsCertificate().GetPrivateKey().GetInlineBytes()))
				case "cluster":
					got = asYAML(t, resources.Clusters[name])
				case "endpoints":
					got = asYAML(t, resources.Endpoints[name])
				case "routes":
					got = asYAML(t, resources.Routes[name])
				default:
					t.Fatalf("unknown section %q", f.Name)
				}
				if *update {
					w.archive.Files[i].Data, changed = []byte(got), true
				} else if diff := cmp.Diff(string(f.Data), got); diff != "" {
					t.Errorf("%s (-want +got), run with -update to accept:\n%s", f.Name, diff)
				}
			}
			if changed {
				if err := os.WriteFile(w.path, txtar.Format(w.archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func names(r Resources) string {
	var b strings.Builder
	for _, kind := range []struct{ word, url string }{
		{"listener", ListenerType}, {"cluster", ClusterType}, {"endpoints", EndpointType}, {"routes", RouteType},
	} {
		for _, res := range r.Pack(kind.url) {
			fmt.Fprintln(&b, kind.word, res.Name)
		}
	}
	return b.String()
}
