package intake

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	// Messages that only the worlds' files name.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// TestControlPlanesWorlds takes what our control plane derives for its own test worlds: every resource of them has to be accepted.
func TestControlPlanesWorlds(t *testing.T) {
	files, err := filepath.Glob("../../../istiod-lite/internal/derive/waypoint/testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no worlds found: %v", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			a, err := txtar.ParseFile(f)
			if err != nil {
				t.Fatal(err)
			}
			up, want := worldOf(t, a)
			if len(up) == 0 {
				t.Fatal("the world has no resources")
			}
			in := New(upstream.NewStore(nil, time.Now), obs.Discard())
			in.OnNames(func(string, []string) {})
			for _, typ := range in.Types() {
				for _, r := range typ.Handle(t.Context(), up[typ.URL], nil) {
					t.Errorf("%s %s refused: %v", typ.URL, r.Name, r.Err)
				}
			}
			if got := len(in.InForce()); got != want {
				t.Errorf("%d resources are in force, want %d", got, want)
			}
		})
	}
}

// worldOf reads the resources that a world's file shows in full.
func worldOf(t *testing.T, a *txtar.Archive) (map[string][]xds.Resource, int) {
	t.Helper()
	kinds := map[string]func() proto.Message{
		"listener:":  func() proto.Message { return &listenerv3.Listener{} },
		"cluster:":   func() proto.Message { return &clusterv3.Cluster{} },
		"endpoints:": func() proto.Message { return &endpointv3.ClusterLoadAssignment{} },
		"routes:":    func() proto.Message { return &routev3.RouteConfiguration{} },
	}
	up, n := map[string][]xds.Resource{}, 0
	for _, f := range a.Files {
		for kind, empty := range kinds {
			name, ok := strings.CutPrefix(f.Name, kind)
			if !ok {
				continue
			}
			js, err := yaml.YAMLToJSON(f.Data)
			if err != nil {
				t.Fatal(err)
			}
			m := empty()
			if err := protojson.Unmarshal(js, m); err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
			body, err := anypb.New(m)
			if err != nil {
				t.Fatal(err)
			}
			up[body.GetTypeUrl()] = append(up[body.GetTypeUrl()], xds.Resource{Name: name, Version: "1", Body: body})
			n++
		}
	}
	return up, n
}
