//go:build seam

package filters

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// TestSeam judges the requests of integration/authzl7 and integration/rbacgoldens by the filters that the control plane derived.
func TestSeam(t *testing.T) {
	dir := os.Getenv("MARROW_SEAM")
	if dir == "" {
		t.Fatal("MARROW_SEAM is not set: integration/authzl7 runs this")
	}
	var worlds []struct {
		Requests []struct {
			TCP       bool              `json:"tcp"`
			Principal string            `json:"principal"`
			Source    netip.AddrPort    `json:"source"`
			To        netip.AddrPort    `json:"to"`
			Host      string            `json:"host"`
			Method    string            `json:"method"`
			Path      string            `json:"path"`
			Header    map[string]string `json:"header"`
			Remote    netip.Addr        `json:"remote"`
			SNI       string            `json:"sni"`
			Payload   map[string]any    `json:"payload"` // of a token
		} `json:"requests"`
	}
	var derived []struct {
		HTTP [][]byte `json:"http"`
		TCP  [][]byte `json:"tcp"`
	}
	read(t, filepath.Join(dir, "worlds.json"), &worlds)
	read(t, filepath.Join(dir, "derived.json"), &derived)
	verdicts := make([][]bool, len(worlds))
	for i, w := range worlds {
		var requests, streams []*RBAC
		for _, raw := range derived[i].HTTP {
			a := &anypb.Any{}
			if err := proto.Unmarshal(raw, a); err != nil {
				t.Fatal(err)
			}
			f, err := compileOverride(a)
			if err != nil {
				t.Fatal(err)
			}
			if r, ok := f.(*RBAC); ok {
				requests = append(requests, r)
			}
		}
		for _, raw := range derived[i].TCP {
			p := &listenerv3.Filter{}
			if err := proto.Unmarshal(raw, p); err != nil {
				t.Fatal(err)
			}
			f, err := CompileNetwork(p)
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, f.(*RBAC))
		}
		for _, q := range w.Requests {
			m := match.Request{Source: q.Source, Destination: q.To, Port: q.To.Port(), Header: http.Header{}, Remote: q.Remote, ServerName: q.SNI}
			if q.Payload != nil {
				payload, err := structpb.NewStruct(map[string]any{"payload": q.Payload})
				if err != nil {
					t.Fatal(err)
				}
				m.Metadata = map[string]*structpb.Struct{"envoy.filters.http.jwt_authn": payload}
			}
			if q.Principal != "" {
				m.Principal = "spiffe://" + q.Principal
			}
			chain := streams
			if !q.TCP {
				chain = requests
				m.Authority, m.Method, m.Path = q.Host, q.Method, q.Path
				for k, v := range q.Header {
					m.Header.Set(k, v)
				}
			}
			allowed := true
			for _, f := range chain {
				allowed = allowed && f.Judge(&m).Allowed
			}
			verdicts[i] = append(verdicts[i], allowed)
		}
	}
	raw, err := json.Marshal(verdicts)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "verdicts.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatal(err)
	}
}
