package phases_test

import (
	"net/http"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// counted is a chain's metadata that says how it is counted.
func counted(t *testing.T, wish map[string]any) *corev3.Metadata {
	t.Helper()
	s, err := structpb.NewStruct(wish)
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"marrow.metrics": s}}
}

// TestMetricOverrides: a chain's metadata changes the labels of its requests' metrics, by expressions on what is known of each.
func TestMetricOverrides(t *testing.T) {
	w := basic(t)
	lis := internal(t, manager(t))
	lis.FilterChains[0].Metadata = counted(t, map[string]any{
		"REQUEST_COUNT": map[string]any{
			"set": map[string]any{
				"path": "request.url_path", "to": "upstream_peer.identity", "by": "downstream_peer.identity", "port": "destination.port", "late": "response.code >= 400",
				"text": "'fixed'", "none": "request.headers['x-none']", "bad": "request.", "list": "[1]", "raw": "request.headers['x-raw']",
				"reporter": "'mine'",
			},
			"remove": []any{"source_principal", "destination_principal"},
		},
		"REQUEST_SIZE": map[string]any{"disabled": true},
	})
	w.mustApply(lis)
	raw := func(r *http.Request) { r.Header.Set("x-raw", "\xff"+strings.Repeat("é", 200)) }
	if resp, _ := do(t, w.client(shopper, vip+":80", false), "GET", "/a?b", raw); resp.StatusCode != 200 {
		t.Fatalf("status %d", resp.StatusCode)
	}
	families, err := w.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{}
	for _, f := range families {
		switch f.GetName() {
		case "istio_requests_total":
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					labels[l.GetName()] = l.GetValue()
				}
			}
		case "istio_request_bytes":
			t.Errorf("a metric that is off: %v", f.GetMetric())
		}
	}
	for name, want := range map[string]string{
		"path": "/a", "to": "spiffe://td/ns/shop/sa/app", "by": shopper, "port": "80", "late": "false", "text": "fixed", "none": "unknown", "bad": "unknown",
		"list": "unknown", "reporter": "mine", "source_principal": "", "destination_principal": "", "response_code": "200",
	} {
		if labels[name] != want {
			t.Errorf("%s is %q, want %q", name, labels[name], want)
		}
	}
	if raw := labels["raw"]; len(raw) > 260 || !strings.HasPrefix(raw, "\uFFFDé") {
		t.Errorf("what a client sends became %q", raw)
	}
	for _, wish := range []map[string]any{
		{"WEATHER": map[string]any{"disabled": true}},
		{"REQUEST_COUNT": map[string]any{"sometimes": true}},
		{"REQUEST_COUNT": map[string]any{"set": map[string]any{"a-b": "'x'"}}},
		{"REQUEST_COUNT": map[string]any{"remove": []any{"__name__"}}},
	} {
		lis := internal(t, manager(t))
		lis.FilterChains[0].Metadata = counted(t, wish)
		if rejects := w.apply(lis); len(rejects) != 1 || !strings.Contains(rejects[0].Err.Error(), "marrow.metrics") {
			t.Errorf("%v: %v", wish, rejects)
		}
	}
}
