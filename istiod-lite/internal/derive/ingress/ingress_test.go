package ingress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// secretYAML is a Secret with a certificate, its key and an authority.
func secretYAML(t *testing.T, namespace, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) string {
		text := string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
		return "|\n    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
	}
	return fmt.Sprintf("\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\nstringData:\n  tls.crt: %s\n  tls.key: %s\n  ca.crt: %s\n",
		name, namespace, block("CERTIFICATE", der), block("PRIVATE KEY", raw), block("CERTIFICATE", der))
}

func parse(t *testing.T, text string) Input {
	t.Helper()
	list, err := manifest.Decode("world.yaml", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	in := Input{ClusterDomain: "cluster.local"}
	for _, o := range list {
		switch o := o.(type) {
		case *gatewayv1.Gateway:
			in.Gateways = append(in.Gateways, o)
		case *networkingv1.Gateway:
			in.IstioGateways = append(in.IstioGateways, o)
		case *corev1.Secret:
			in.Secrets = append(in.Secrets, o)
		case *corev1.Pod:
			in.Pods = append(in.Pods, o)
		case *corev1.Service:
			in.Services = append(in.Services, o)
		case *corev1.Namespace:
			in.Namespaces = append(in.Namespaces, o)
		case *gatewayv1.ReferenceGrant:
			in.Grants = append(in.Grants, o)
		case *gatewayv1.HTTPRoute:
			in.HTTPRoutes = append(in.HTTPRoutes, o)
		case *gatewayv1.TLSRoute:
			in.TLSRoutes = append(in.TLSRoutes, o)
		case *gatewayv1.TCPRoute:
			in.TCPRoutes = append(in.TCPRoutes, o)
		case *networkingv1.VirtualService:
			in.VirtualServices = append(in.VirtualServices, o)
		default:
			t.Fatalf("no use for %T", o)
		}
	}
	return in
}

func gatewayYAML(name, listeners string) string {
	return "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: " + name + ", namespace: shop}\nspec:\n  gatewayClassName: istio\n  listeners:\n" + listeners
}

func routeYAML(name, namespace, spec string) string {
	return "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nspec: " + spec + "\n"
}

// shape is a plan in few words: port, server, names, and for each domain its routes.
func shape(e *waypoint.Edge) string {
	var out []string
	for _, p := range e.Ports {
		for _, s := range p.Servers {
			line := fmt.Sprintf("%d>%d %s", p.Number, p.Target, s.Name)
			if len(s.SNI) > 0 {
				line += " sni=" + strings.Join(s.SNI, ",")
			}
			if s.TLS != nil {
				line += " tls=" + strings.Join(s.TLS.Certificates, ",")
				if s.TLS.Client != nil {
					line += fmt.Sprintf(" client=%s optional=%v", s.TLS.Client.Roots, s.TLS.Client.Optional)
				}
			}
			if s.HTTP != nil {
				for _, h := range s.HTTP.Hosts {
					line += " " + h.Domain + "["
					for _, r := range h.HTTPRoutes {
						line += r.Name + " "
					}
					for _, v := range h.VirtualServices {
						line += v.Name + " "
					}
					if h.Redirect {
						line += "redirect"
					}
					line = strings.TrimSpace(line) + "]"
				}
			}
			if s.TCP != nil {
				line += fmt.Sprintf(" passthrough=%v", s.TCP.Passthrough)
				for _, b := range s.TCP.Backends {
					line += fmt.Sprintf(" %s:%d*%d", b.Host, b.Port, b.Weight)
				}
			}
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

func plan(t *testing.T, out Output, name string) string {
	t.Helper()
	e := out.Edges[types.NamespacedName{Namespace: "shop", Name: name}]
	if e == nil {
		t.Fatalf("no plan for %s", name)
	}
	return shape(e)
}

func reasons(out Output, name string) string {
	var list []string
	for _, l := range out.Listeners[types.NamespacedName{Namespace: "shop", Name: name}] {
		list = append(list, fmt.Sprintf("%s: %s %s %s %d", l.Name, l.Accepted.Reason, l.Resolved.Reason, l.Conflicted.Reason, l.Attached))
	}
	return strings.Join(list, "\n")
}

// TestListenerIsolation: a host is served by the most specific listener alone, even where that one has no route for it.
func TestListenerIsolation(t *testing.T) {
	in := parse(t, gatewayYAML("front", `
    - {name: any, port: 80, protocol: HTTP}
    - {name: wide, port: 80, protocol: HTTP, hostname: "*.example.com"}
    - {name: exact, port: 80, protocol: HTTP, hostname: shop.example.com}
`)+routeYAML("all", "shop", "{parentRefs: [{name: front}]}")+
		routeYAML("shop", "shop", "{parentRefs: [{name: front, sectionName: wide}], hostnames: [shop.example.com, other.example.com]}")+
		routeYAML("elsewhere", "shop", "{parentRefs: [{name: front, sectionName: exact}], hostnames: [elsewhere.org]}")+
		routeYAML("foreign", "bank", "{parentRefs: [{name: front, namespace: shop}]}"))
	out := Derive(in)
	want := "80>80 http.80 *[all] *.example.com[all] other.example.com[shop] shop.example.com[all]"
	if got := plan(t, out, "front"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	verdicts := map[string]string{}
	for k, list := range out.Parents {
		verdicts[k.Namespace+"/"+k.Name] = list[0].Accepted.Reason
	}
	if want := map[string]string{
		"shop/all": "Accepted", "shop/shop": "Accepted", "shop/elsewhere": "NoMatchingListenerHostname", "bank/foreign": "NotAllowedByListeners",
	}; !reflect.DeepEqual(verdicts, want) {
		t.Errorf("verdicts %v", verdicts)
	}
}

// TestSecretsNeedGrants: a Secret of another namespace is used only where that namespace says so, and one that is not used
// is not in the plan.
func TestSecretsNeedGrants(t *testing.T) {
	world := gatewayYAML("front", `
    - {name: own, port: 443, protocol: HTTPS, hostname: own.example.com, tls: {certificateRefs: [{name: own}]}}
    - {name: far, port: 443, protocol: HTTPS, hostname: far.example.com, tls: {certificateRefs: [{name: far, namespace: vault}]}}
    - {name: none, port: 443, protocol: HTTPS, hostname: none.example.com, tls: {certificateRefs: [{name: none}]}}
`) + secretYAML(t, "shop", "own") + secretYAML(t, "vault", "far") + secretYAML(t, "shop", "unused")
	grant := `
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g, namespace: vault}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: FROM}]
  to: [{group: "", kind: Secret, name: far}]
`
	names := func(out Output) string {
		var list []string
		for _, s := range out.Edges[types.NamespacedName{Namespace: "shop", Name: "front"}].Secrets {
			list = append(list, s.Name)
		}
		return strings.Join(list, " ")
	}
	for from, want := range map[string]string{"": "kubernetes://shop/own", "bank": "kubernetes://shop/own", "shop": "kubernetes://shop/own kubernetes://vault/far"} {
		text := world
		if from != "" {
			text += strings.Replace(grant, "FROM", from, 1)
		}
		out := Derive(parse(t, text))
		if got := names(out); got != want {
			t.Errorf("grant for %q: secrets %s", from, got)
		}
		far := "RefNotPermitted"
		if from == "shop" {
			far = "ResolvedRefs"
		}
		want := "own: Accepted ResolvedRefs NoConflicts 0\nfar: Accepted " + far + " NoConflicts 0\nnone: Accepted InvalidCertificateRef NoConflicts 0"
		if got := reasons(out, "front"); got != want {
			t.Errorf("grant for %q:\n%s", from, got)
		}
	}
}

// TestConflicts: the loser is told, the others go on.
func TestConflicts(t *testing.T) {
	out := Derive(parse(t, gatewayYAML("front", `
    - {name: a, port: 80, protocol: HTTP, hostname: a.example.com}
    - {name: same, port: 80, protocol: HTTP, hostname: A.example.com}
    - {name: bytes, port: 80, protocol: TCP}
    - {name: b, port: 80, protocol: HTTP, hostname: b.example.com}
    - {name: udp, port: 53, protocol: UDP}
    - {name: kinds, port: 81, protocol: HTTP, allowedRoutes: {kinds: [{kind: TCPRoute}, {kind: HTTPRoute}]}}
`)+secretYAML(t, "shop", "x")))
	want := "a: Accepted ResolvedRefs NoConflicts 0\nsame: HostnameConflict ResolvedRefs HostnameConflict 0\n" +
		"bytes: ProtocolConflict ResolvedRefs ProtocolConflict 0\nb: Accepted ResolvedRefs NoConflicts 0\n" +
		"udp: UnsupportedProtocol ResolvedRefs NoConflicts 0\nkinds: Accepted InvalidRouteKinds NoConflicts 0"
	if got := reasons(out, "front"); got != want {
		t.Errorf("got\n%s", got)
	}
	if got := plan(t, out, "front"); got != "80>80 http.80 a.example.com[] b.example.com[]\n81>81 http.81 *[]" {
		t.Errorf("plan %s", got)
	}
}

const istioWorld = `
---
apiVersion: v1
kind: Pod
metadata: {name: gw-1, namespace: shop, labels: {istio: ingressgateway, app: gw}}
spec: {containers: [{name: istio-proxy, image: x, ports: [{name: tls, containerPort: 8443}]}]}
status: {phase: Running}
---
apiVersion: v1
kind: Service
metadata: {name: gw, namespace: shop}
spec: {selector: {app: gw}, ports: [{name: http, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: tls}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: public, namespace: shop}
spec:
  selector: {istio: ingressgateway}
  servers:
    - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*.example.com"], tls: {httpsRedirect: true}}
    - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: MUTUAL, credentialName: cert}}
    - {port: {number: 443, name: pass, protocol: TLS}, hosts: [raw.example.com], tls: {mode: PASSTHROUGH}}
    - {port: {number: 81, name: more, protocol: HTTP}, hosts: ["bank/*"]}
    - {port: {number: 443, name: late, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: cert}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: shop}
spec:
  hosts: [shop.example.com]
  gateways: [public]
  http: [{route: [{destination: {host: web, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw, namespace: shop}
spec:
  hosts: [raw.example.com]
  gateways: [shop/public]
  tls:
    - match: [{sniHosts: [raw.example.com], port: 443}]
      route: [{destination: {host: secure, port: {number: 443}}, weight: 100}]
`

// TestIstioGateway: servers become what Istio makes of them; the Service's target port counts.
func TestIstioGateway(t *testing.T) {
	out := Derive(parse(t, istioWorld+secretYAML(t, "shop", "cert")))
	want := "80>8080 http.80 *.example.com[redirect]\n81>81 http.81\n" +
		"443>8443 https.443.shop.public.1 sni=shop.example.com tls=kubernetes://shop/cert client=kubernetes://shop/cert-roots optional=false shop.example.com[shop]\n" +
		"443>8443 tls.443.shop.public.2.0 sni=raw.example.com passthrough=true secure.shop.svc.cluster.local:443*100"
	if got := plan(t, out, "pods/gw"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(out.Findings) != 1 || !strings.Contains(out.Findings[0].Message, "servers[4]") {
		t.Errorf("findings %+v", out.Findings)
	}
}

// TestServersThatAreNot: a server that cannot be served as it says is told of and takes nothing else away.
func TestServersThatAreNot(t *testing.T) {
	const good = "    - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: MUTUAL, credentialName: cert}}\n"
	for server, says := range map[string]string{
		`{port: {number: 444, name: a, protocol: HTTPS}, bind: 10.0.0.1, hosts: [a.test], tls: {mode: SIMPLE, credentialName: cert}}`:                `bind "10.0.0.1" is not supported`,
		`{port: {number: 444, name: a, protocol: HTTPS}, hosts: [a.test], tls: {mode: SIMPLE, serverCertificate: /etc/a, privateKey: /etc/b}}`:       "certificates from files are not supported",
		`{port: {number: 444, name: a, protocol: HTTPS}, hosts: [a.test], tls: {mode: SIMPLE, credentialName: nowhere}}`:                             "Secret shop/nowhere does not exist",
		`{port: {number: 444, name: a, protocol: HTTPS}, hosts: [a.test], tls: {mode: SIMPLE}}`:                                                      "tls.credentialName is missing",
		`{port: {number: 444, name: a, protocol: HTTPS}, hosts: [a.test], tls: {mode: ISTIO_MUTUAL, credentialName: cert}}`:                          "tls.mode ISTIO_MUTUAL is not supported",
		`{port: {number: 444, name: a, protocol: TLS}, hosts: [a.test], tls: {mode: AUTO_PASSTHROUGH, credentialName: cert}}`:                        "tls.mode AUTO_PASSTHROUGH is not supported",
		`{port: {number: 444, name: a, protocol: HTTPS}, hosts: [a.test], tls: {mode: MUTUAL, credentialName: cert, caCertCredentialName: nowhere}}`: "Secret shop/nowhere does not exist",
		`{port: {number: 444, name: a, protocol: MQTT}, hosts: [a.test]}`:                                                                            `port.protocol "MQTT" is not supported`,
		`{port: {number: 444, name: a, protocol: TLS}, hosts: [a.test]}`:                                                                             "tls is missing",
		`{port: {number: 443, name: a, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: cert}}`:                      "are taken by an older server",
	} {
		text := strings.Replace(istioWorld, "    - {port: {number: 443, name: pass,", "    - "+server+"\n    - {port: {number: 443, name: pass,", 1)
		if text == istioWorld || !strings.Contains(text, good) {
			t.Fatal("the world has changed")
		}
		out := Derive(parse(t, text+secretYAML(t, "shop", "cert")))
		told := ""
		for _, f := range out.Findings {
			told += f.Message + "\n"
		}
		if !strings.Contains(told, "servers[2]: ") || !strings.Contains(told, says) {
			t.Errorf("%s: %q is not told, but %q", server, says, told)
		}
		if got := plan(t, out, "pods/gw"); !strings.Contains(got, "https.443.shop.public.1 sni=shop.example.com") || !strings.Contains(got, "raw.example.com passthrough=true") || strings.Contains(got, "444") {
			t.Errorf("%s: its neighbours:\n%s", server, got)
		}
	}
}

// TestDeterministic: the order of the rows does not matter.
func TestDeterministic(t *testing.T) {
	in := parse(t, istioWorld+secretYAML(t, "shop", "cert")+gatewayYAML("front", `
    - {name: any, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
    - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
`)+routeYAML("a", "shop", "{parentRefs: [{name: front}]}")+routeYAML("b", "bank", "{parentRefs: [{name: front, namespace: shop}]}"))
	first := Derive(in)
	slices.Reverse(in.HTTPRoutes)
	slices.Reverse(in.VirtualServices)
	slices.Reverse(in.Secrets)
	second := Derive(in)
	for k := range first.Edges {
		first.Edges[k].Permitted, second.Edges[k].Permitted = nil, nil
	}
	if !reflect.DeepEqual(first.Edges, second.Edges) || !reflect.DeepEqual(first.Listeners, second.Listeners) {
		t.Error("another order gives another plan")
	}
}
