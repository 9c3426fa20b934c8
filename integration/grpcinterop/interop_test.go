//go:build lab

package grpcinterop_test

import (
	"maps"
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
		{"HBONE on both sides of the waypoint", "client", command.Waypoint, []string{"-server_host=meshed", "-server_port=8080"}},
		{"in the clear on both sides of the gateway", "stranger", command.Gateway, []string{"-server_host=front-istio", "-server_port=80"}},
		{"TLS to the gateway, HBONE from it", "stranger", command.Gateway, []string{
			"-server_host=front-istio", "-server_port=443", "-use_tls", "-use_test_ca", "-ca_file=" + ca, "-server_host_override=rpc.example.com",
		}},
	}
}

// TestInterop is grpc-go's judgement of what stands between its client and its server.
func TestInterop(t *testing.T) {
	client, server := command.Program(t, "../../build/grpc-interop-client", "grpc-interop"), command.Program(t, "../../build/grpc-interop-server", "grpc-interop")
	serve := []string{server, "-port=8080"}
	world := command.World{
		// Those that are clients wait by serving.
		Pods: []command.Pod{
			{Name: "meshed", Node: "node-2", Mesh: true, Command: serve},
			{Name: "bare", Node: "node-2", Command: serve},
			{Name: "client", Node: "node-1", Mesh: true, Command: serve},
			{Name: "stranger", Node: "node-1", Command: serve},
		},
		Protocol: "grpc", Clear: "bare", TLS: "meshed", Host: "rpc.example.com",
	}
	for _, peer := range []struct {
		name     string
		waypoint func(testing.TB) string
	}{
		{"ours", func(testing.TB) string { return "" }},
		{"Envoy", command.Envoy},
	} {
		t.Run(peer.name, func(t *testing.T) {
			l, ca := world.Start(t, "grpc", peer.waypoint(t), "meshed")
			pods := l.Must(t, "lab", "get", "pods", "-n", command.Namespace)
			for _, p := range paths(ca) {
				t.Run(p.name, func(t *testing.T) {
					call := func(limit time.Duration, name string) error {
						args := append([]string{client, "-test_case=" + name}, p.flags...)
						if strings.HasPrefix(name, "orca_") {
							args = append(args, reports)
						}
						_, err := l.Exec(t, limit, p.pod, args...)
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
					l.Must(t, "lab", "kill", middle, "-n", command.Namespace, "--signal", "19")
					if call(2*time.Second, "empty_unary") == nil {
						t.Errorf("a call goes past %s, which is stopped", middle)
					}
					l.Must(t, "lab", "kill", middle, "-n", command.Namespace, "--signal", "18")
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
