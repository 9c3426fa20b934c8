//go:build lab

package grpcinterop_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/integration/command"
)

// cases all run; the comments name what a proxy could get wrong.
var cases = []string{
	"empty_unary",
	"large_unary",      // more than one window each way
	"client_streaming", // many messages, one answer
	"server_streaming",
	"ping_pong", // an answer before the request's end
	"empty_stream",
	"timeout_on_sleeping_server", // grpc-timeout and the client's reset
	"cancel_after_begin",         // a reset before any DATA
	"cancel_after_first_response",
	"status_code_and_message", // trailers, and an answer of trailers alone
	"special_status_message",  // percent-encoding is left alone
	"custom_metadata",         // binary metadata, as header and as trailer
	"unimplemented_method",
	"unimplemented_service",
	"rpc_soak",     // one connection
	"channel_soak", // one connection for each call
	"orca_per_rpc", // a binary trailer
	"orca_oob",     // a stream on which the server speaks when it wants
}

// excluded are offered by the client and cannot run here.
var excluded = map[string]string{
	"compute_engine_creds":               "needs the metadata server of Google's Compute Engine",
	"service_account_creds":              "needs the key of a Google service account and Google's token server",
	"jwt_token_creds":                    "needs the key of a Google service account",
	"per_rpc_creds":                      "needs the key of a Google service account and Google's token server",
	"oauth2_auth_token":                  "needs the key of a Google service account and Google's token server",
	"google_default_credentials":         "needs Google's default credentials",
	"compute_engine_channel_credentials": "needs the metadata server of Google's Compute Engine",
	"pick_first_unary":                   "asks the server for its name, which grpc-go's own server never tells, with or without a proxy",
}

// unlisted are cases which the client has without a line in its help.
var unlisted = []string{"rpc_soak", "channel_soak"}

// reports has the client collect what servers report of their load, which the two cases of it compare.
const reports = `-service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}`

// path is one way from a client to a server.
type path struct {
	name  string
	pod   string // of the client
	proxy string // pod in the middle: without it nothing arrives
	flags []string
}

func paths(ca string) []path {
	return []path{
		{"HBONE on both sides of the waypoint", "client", "waypoint", []string{"-server_host=meshed", "-server_port=8080"}},
		{"in the clear on both sides of the gateway", "stranger", "front", []string{"-server_host=front-istio", "-server_port=80"}},
		{"TLS to the gateway, HBONE from it", "stranger", "front", []string{
			"-server_host=front-istio", "-server_port=443", "-use_tls", "-use_test_ca", "-ca_file=" + ca, "-server_host_override=rpc.example.com",
		}},
	}
}

const namespace = "rpc"

// podYAML is one of the pods: all of them run the server, those that are clients wait by it.
const podYAML = `---
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: rpc}
spec:
  selector: {app: NAME}
  ports: [{name: grpc, port: 8080, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: rpc}
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
          command: [SERVER, "-port=8080"]
          ports: [{containerPort: 8080}]
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
`

// doors lead from outside to the server in the mesh by TLS, to the other in the clear.
const doors = `---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: rpc}
spec:
  gatewayClassName: istio
  listeners:
    - {name: clear, port: 80, protocol: HTTP}
    - {name: tls, port: 443, protocol: HTTPS, hostname: rpc.example.com, tls: {certificateRefs: [{name: front}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: clear, namespace: rpc}
spec:
  parentRefs: [{name: front, sectionName: clear}]
  rules: [{backendRefs: [{name: bare, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: tls, namespace: rpc}
spec:
  parentRefs: [{name: front, sectionName: tls}]
  rules: [{backendRefs: [{name: meshed, port: 8080}]}]
`

// world is everything but the waypoint, and the file of the authority of the gateway's certificate.
func world(t *testing.T, server string) (yaml, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"rpc.example.com"},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: rpc, labels: {istio.io/dataplane-mode: ambient}}\n")
	for _, p := range []struct{ name, mode, node string }{
		{"meshed", "ambient", "node-2"}, {"bare", "none", "node-2"}, {"client", "ambient", "node-1"}, {"stranger", "none", "node-1"},
	} {
		b.WriteString(strings.NewReplacer("NAME", p.name, "MODE", p.mode, "NODE", p.node, "SERVER", server).Replace(podYAML))
	}
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Secret\nmetadata: {name: front, namespace: rpc}\ntype: kubernetes.io/tls\ndata: {tls.crt: %s, tls.key: %s}\n",
		base64.StdEncoding.EncodeToString(chain), base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})))
	b.WriteString(doors)
	return b.String(), command.File(t, string(chain))
}

// TestInterop is grpc-go's judgement of what stands between its client and its server.
func TestInterop(t *testing.T) {
	client, server := command.Program(t, "../../build/grpc-interop-client", "grpc-interop"), command.Program(t, "../../build/grpc-interop-server", "grpc-interop")
	for _, peer := range []struct {
		name     string
		waypoint func(testing.TB) string
	}{
		{"ours", func(testing.TB) string { return "" }},
		{"Envoy", command.Envoy},
	} {
		t.Run(peer.name, func(t *testing.T) {
			waypoint := peer.waypoint(t)
			yaml, ca := world(t, server)
			l := command.Up(t, "grpc", waypoint, command.File(t, yaml))
			l.Must(t, "waypoint", "apply", "-n", namespace, "--name", "waypoint", "--service", "meshed", "--wait")
			l.Must(t, "lab", "wait", "--timeout", "60s")
			pods := l.Must(t, "lab", "get", "pods", "-n", namespace)
			for _, p := range paths(ca) {
				t.Run(p.name, func(t *testing.T) {
					call := func(limit time.Duration, name string) error {
						args := append([]string{client, "-test_case=" + name}, p.flags...)
						if strings.HasPrefix(name, "orca_") {
							args = append(args, reports)
						}
						_, err := l.Exec(t, limit, namespace, p.pod, args...)
						return err
					}
					// Listeners and routes come a moment after the pods.
					for end := time.Now().Add(20 * time.Second); call(5*time.Second, "empty_unary") != nil && time.Now().Before(end); {
						time.Sleep(100 * time.Millisecond)
					}
					for _, name := range cases {
						if err := call(30*time.Second, name); err != nil {
							t.Errorf("%s: %v", name, err)
						}
					}
					// All that counts only if nothing goes around the proxy.
					middle := regexp.MustCompile(p.proxy + `-\S+`).FindString(pods)
					l.Must(t, "lab", "kill", middle, "-n", namespace, "--signal", "19")
					if call(2*time.Second, "empty_unary") == nil {
						t.Errorf("a call goes past %s, which is stopped", middle)
					}
					l.Must(t, "lab", "kill", middle, "-n", namespace, "--signal", "18")
				})
			}
		})
	}
}

// TestCases: each case that the client offers either runs or has its reason.
func TestCases(t *testing.T) {
	client := command.Program(t, "../../build/grpc-interop-client", "grpc-interop")
	help, _ := exec.CommandContext(t.Context(), client, "-help").CombinedOutput() // help is no success
	_, list, found := strings.Cut(string(help), "Valid options are:")
	list, _, _ = strings.Cut(list, "(default")
	offered := unlisted
	for _, m := range regexp.MustCompile(`(?m)^\s+(\w+)\s*:`).FindAllStringSubmatch(list, -1) {
		offered = append(offered, m[1])
	}
	if !found || len(offered) < 20 {
		t.Fatalf("the client's help is not understood: %s", help)
	}
	for _, name := range offered {
		if _, out := excluded[name]; slices.Contains(cases, name) == out {
			t.Errorf("%s: it has to run or to have a reason, and not both", name)
		}
	}
	for _, name := range append(slices.Collect(maps.Keys(excluded)), cases...) {
		if !slices.Contains(offered, name) {
			t.Errorf("%s: the client does not know it", name)
		}
	}
}
