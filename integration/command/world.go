package command

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// Pod is a Deployment of one, with a Service of its name. All are in the namespace world.
type Pod struct {
	Name    string
	Node    string   // node-1 or node-2
	Mesh    bool     // enrolled
	Command []string // serves port 8080
}

// Namespace is where a World's objects are.
const Namespace = "world"

const podYAML = `---
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: world}
spec:
  selector: {app: NAME}
  ports: [{name: PROTOCOL, port: 8080, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: world}
spec:
  replicas: 1
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME, istio.io/dataplane-mode: MODE}}
    spec:
      nodeSelector: {kubernetes.io/hostname: NODE}
      terminationGracePeriodSeconds: 1
      containers:
        - name: main
          image: test
          command: [COMMAND]
          ports: [{containerPort: 8080}]
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
`

const gatewayYAML = `---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: world}
spec:
  gatewayClassName: istio
  listeners:
    - {name: clear, port: 80, protocol: HTTP}
    - {name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: front}]}}
`

const routeYAML = `---
apiVersion: gateway.networking.k8s.io/v1
kind: KIND
metadata: {name: LISTENER, namespace: world}
spec:
  parentRefs: [{name: front, sectionName: LISTENER}]
  rules: [{backendRefs: [{name: SERVICE, port: 8080}]}]
`

// World is a namespace of pods with a gateway, front, which serves plaintext on port 80 and TLS on port 443, for any host.
type World struct {
	Pods     []Pod
	Protocol string // of the pods' port: http or grpc
	Clear    string // Service to which the gateway leads from port 80
	TLS      string // and from port 443
	Host     string // for which the gateway has a certificate
}

// YAML is the world's objects, and the file with the authority of the gateway's certificate.
func (w World) YAML(tb testing.TB) (yaml, ca string) {
	tb.Helper()
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: world}\n")
	for _, p := range w.Pods {
		mode := "none"
		if p.Mesh {
			mode = "ambient"
		}
		quoted := make([]string, len(p.Command))
		for i, word := range p.Command {
			quoted[i] = fmt.Sprintf("%q", word)
		}
		b.WriteString(strings.NewReplacer("NAME", p.Name, "MODE", mode, "NODE", p.Node, "PROTOCOL", w.Protocol,
			"COMMAND", strings.Join(quoted, ", ")).Replace(podYAML))
	}
	secret, chain := certificate(tb, w.Host)
	b.WriteString(secret + gatewayYAML)
	kind := "HTTPRoute"
	if w.Protocol == "grpc" {
		kind = "GRPCRoute"
	}
	for listener, service := range map[string]string{"clear": w.Clear, "tls": w.TLS} {
		b.WriteString(strings.NewReplacer("KIND", kind, "LISTENER", listener, "SERVICE", service).Replace(routeYAML))
	}
	return b.String(), File(tb, chain)
}

// certificate is the Secret of the gateway and the certificate that verifies it, itself.
func certificate(tb testing.TB, host string) (yaml, chain string) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{host},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return fmt.Sprintf("---\napiVersion: v1\nkind: Secret\nmetadata: {name: front, namespace: world}\ntype: kubernetes.io/tls\ndata: {tls.crt: %s, tls.key: %s}\n",
		base64.StdEncoding.EncodeToString(cert), base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))), string(cert)
}

// Names of the world's proxies, of which pods' names begin.
const (
	Waypoint = "waypoint"
	Gateway  = "front"
)

// Start starts a lab with the world, with a waypoint for one Service; program is what runs in the place of ours, empty = ours.
// ca is the file of the authority of the gateway's certificate.
func (w World) Start(tb testing.TB, name, program, service string) (l *Lab, ca string) {
	tb.Helper()
	yaml, ca := w.YAML(tb)
	l = Up(tb, name, program, File(tb, yaml))
	l.Must(tb, "waypoint", "apply", "-n", Namespace, "--name", Waypoint, "--service", service, "--wait")
	l.Must(tb, "lab", "wait", "--timeout", "60s")
	return l, ca
}
