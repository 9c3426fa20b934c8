package phases_test

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	// Messages that only the world's file names.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"

	"github.com/marrowmesh/marrow/internal/testkit/tokencorpus"
)

// derived reads the resources that the control plane derives for a world of its test data.
func derived(t testing.TB, file string) (out []proto.Message) {
	t.Helper()
	a, err := txtar.ParseFile("../../../istiod-lite/internal/derive/waypoint/testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]func() proto.Message{
		"listener": func() proto.Message { return &listenerv3.Listener{} }, "cluster": func() proto.Message { return &clusterv3.Cluster{} },
		"endpoints": func() proto.Message { return &endpointv3.ClusterLoadAssignment{} },
		"routes":    func() proto.Message { return &routev3.RouteConfiguration{} },
	}
	for _, f := range a.Files {
		kind, _, _ := strings.Cut(f.Name, ":")
		empty := kinds[kind]
		if empty == nil {
			continue
		}
		js, err := yaml.YAMLToJSON(bytes.ReplaceAll(f.Data, []byte("spiffe://cluster.local/"), []byte("spiffe://td/")))
		if err != nil {
			t.Fatal(err)
		}
		m := empty()
		if err := protojson.Unmarshal(js, m); err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		out = append(out, m)
	}
	return out
}

// tokenWorld is the corpus' world: what istiod-lite derives for it, compiled and served.
func tokenWorld(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	app := httptest.NewServer(named("web"))
	t.Cleanup(app.Close)
	w.podTCP("127.0.0.2:8080", strings.TrimPrefix(app.URL, "http://"), "spiffe://td/ns/shop/sa/web")
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tokencorpus.Document) }))
	t.Cleanup(issuer.Close)
	w.podTCP("127.0.0.3:16080", strings.TrimPrefix(issuer.URL, "http://"), "spiffe://td/ns/auth/sa/keys")
	w.mustApply(append(derived(t, "corpus.txtar"), terminate(t))...)
	return w
}

// TestTokenCorpus puts to our waypoint what TestEnvoyTokens puts to a stock Envoy. A difference stands in the corpus, with its reason.
func TestTokenCorpus(t *testing.T) {
	w := tokenWorld(t)
	cases, err := tokencorpus.Cases(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, two := range []bool{false, true} {
		client := w.client(shopper, "10.96.0.1:80", two)
		for _, c := range cases {
			t.Run(c.Name, func(t *testing.T) { askToken(t, client, c) })
		}
	}
}

func askToken(t *testing.T, client *http.Client, c tokencorpus.Case) {
	t.Helper()
	req, err := http.NewRequest(c.Method, "http://web.shop"+c.Path, nil)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, c.Header)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if c.Ours != 0 {
		if resp.StatusCode != c.Ours {
			t.Errorf("status %d, want %d (%s)", resp.StatusCode, c.Ours, body)
		}
		return
	}
	if resp.StatusCode != c.Status {
		t.Errorf("status %d, want %d (%s)", resp.StatusCode, c.Status, body)
	}
	if c.Body != "" && string(body) != c.Body {
		t.Errorf("body %q, want %q", body, c.Body)
	}
	want := ""
	if c.Detail != "" {
		want = `Bearer realm="http://web.shop` + c.Path[:min(len(c.Path), 256)] + `"` + c.Detail
	}
	if got := resp.Header.Get("Www-Authenticate"); got != want {
		t.Errorf("challenge %q, want %q", got, want)
	}
	for name, want := range c.Seen {
		if got := strings.Join(resp.Header["Saw-"+name], ","); got != want {
			t.Errorf("the application saw %s: %q, want %q", name, got, want)
		}
	}
	if got := resp.Header.Get("Saw-Path"); c.URI != "" && got != c.URI {
		t.Errorf("the application saw %q, want %q", got, c.URI)
	}
}

// TestTokenRefusalIsRecorded: details and flags as Envoy writes them, and a gRPC client is told in its own words.
func TestTokenRefusalIsRecorded(t *testing.T) {
	w := tokenWorld(t)
	client := w.client(shopper, "10.96.0.1:80", true)
	req, _ := http.NewRequest(http.MethodPost, "http://web.shop/open", nil)
	req.Header.Set("Authorization", "Bearer x")
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "16" || !strings.HasPrefix(resp.Header.Get("Grpc-Message"), "Jwt is not in the form") {
		t.Errorf("gRPC: %d %v", resp.StatusCode, resp.Header)
	}
	w.stop()
	const want = "- jwt_authn_access_denied{Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots_and_3_sections}"
	if got := strings.Join(w.log.all(), "\n"); !strings.Contains(got, want) {
		t.Errorf("logged:\n%s", got)
	}
}
