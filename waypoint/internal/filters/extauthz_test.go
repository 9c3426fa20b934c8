package filters

import (
	"errors"
	"net/http"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

func grpcAuthz() *extauthzv3.ExtAuthz {
	return &extauthzv3.ExtAuthz{TransportApiVersion: corev3.ApiVersion_V3, Services: &extauthzv3.ExtAuthz_GrpcService{GrpcService: &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "c"}},
	}}}
}

// TestExtAuthzStrict: what is not understood is refused; the usual values are Envoy's.
func TestExtAuthzStrict(t *testing.T) {
	f, err := compileExtAuthz(grpcAuthz())
	if err != nil {
		t.Fatal(err)
	}
	if f.Timeout != 200*time.Millisecond || f.OnError != 403 || f.FailOpen || f.Authority != "c" || !f.Asks(nil) {
		t.Errorf("%+v", f)
	}
	http := func(s *extauthzv3.HttpService) func(*extauthzv3.ExtAuthz) {
		return func(p *extauthzv3.ExtAuthz) { p.Services = &extauthzv3.ExtAuthz_HttpService{HttpService: s} }
	}
	uri := &corev3.HttpUri{Uri: "u", HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "c"}, Timeout: durationpb.New(time.Second)}
	for name, change := range map[string]func(*extauthzv3.ExtAuthz){
		"no service":     func(p *extauthzv3.ExtAuthz) { p.Services = nil },
		"old API":        func(p *extauthzv3.ExtAuthz) { p.TransportApiVersion = corev3.ApiVersion_V2 }, //nolint:staticcheck // that is the case
		"certificate":    func(p *extauthzv3.ExtAuthz) { p.IncludePeerCertificate = true },
		"a share":        func(p *extauthzv3.ExtAuthz) { p.FilterEnabled = &corev3.RuntimeFractionalPercent{} },
		"shadow mode":    func(p *extauthzv3.ExtAuthz) { p.ShadowMode = true },
		"no cluster":     func(p *extauthzv3.ExtAuthz) { p.GetGrpcService().GetEnvoyGrpc().ClusterName = "" },
		"google":         func(p *extauthzv3.ExtAuthz) { p.GetGrpcService().TargetSpecifier = &corev3.GrpcService_GoogleGrpc_{} },
		"no time":        func(p *extauthzv3.ExtAuthz) { p.GetGrpcService().Timeout = durationpb.New(0) },
		"bad status":     func(p *extauthzv3.ExtAuthz) { p.StatusOnError = &typev3.HttpStatus{Code: 100} },
		"no bytes":       func(p *extauthzv3.ExtAuthz) { p.WithRequestBody = &extauthzv3.BufferSettings{} },
		"too many bytes": func(p *extauthzv3.ExtAuthz) { p.WithRequestBody = &extauthzv3.BufferSettings{MaxRequestBytes: 1 << 30} },
		"other metadata": func(p *extauthzv3.ExtAuthz) {
			p.FilterEnabledMetadata = &matcherv3.MetadataMatcher{Filter: "else", Path: []*matcherv3.MetadataMatcher_PathSegment{{}}}
		},
		"HTTP without time":  http(&extauthzv3.HttpService{ServerUri: &corev3.HttpUri{Uri: "u", HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "c"}}}),
		"HTTP, bad prefix":   http(&extauthzv3.HttpService{ServerUri: uri, PathPrefix: "x"}),
		"HTTP, retries":      http(&extauthzv3.HttpService{ServerUri: uri, RetryPolicy: &corev3.RetryPolicy{}}),
		"HTTP, framing":      http(&extauthzv3.HttpService{ServerUri: uri, AuthorizationRequest: &extauthzv3.AuthorizationRequest{HeadersToAdd: []*corev3.HeaderValue{{Key: "host", Value: "h"}}}}),
		"HTTP, metadata":     http(&extauthzv3.HttpService{ServerUri: uri, AuthorizationResponse: &extauthzv3.AuthorizationResponse{DynamicMetadataFromHeaders: &matcherv3.ListStringMatcher{}}}),
		"HTTP, two prefixes": http(&extauthzv3.HttpService{ServerUri: uri, PathPrefix: "/a", PathOverride: "/b"}),
	} {
		p := grpcAuthz()
		change(p)
		if f, err := compileExtAuthz(p); err == nil {
			t.Errorf("%s was accepted: %+v", name, f)
		}
	}
	if _, err := compileExtAuthzPerRoute(&extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_CheckSettings{CheckSettings: &extauthzv3.CheckSettings{}}}); !errors.Is(err, strict.ErrUnsupported) {
		t.Errorf("check settings: %v", err)
	}
	if o, err := compileExtAuthzPerRoute(&extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_Disabled{Disabled: true}}); err != nil || o != (Off{}) {
		t.Errorf("disabled: %v %v", o, err)
	}
}

func TestHeaderChanges(t *testing.T) {
	for how, want := range map[corev3.HeaderValueOption_HeaderAppendAction][2]int{
		corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:    {2, 1},
		corev3.HeaderValueOption_ADD_IF_ABSENT:              {1, 1},
		corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:        {1, 0},
		corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD: {1, 1},
	} {
		c := HeaderChange{Name: "X-A", Value: "new", How: how}
		there, absent := http.Header{"X-A": {"old"}}, http.Header{}
		c.Apply(there)
		c.Apply(absent)
		if len(there["X-A"]) != want[0] || len(absent["X-A"]) != want[1] {
			t.Errorf("%v: %v, %v", how, there, absent)
		}
	}
	a := AuthzAnswer{CutQuery: []string{"gone"}, SetQuery: [][2]string{{"n", "x y&"}}}
	if got := a.Query("a=%41&gone=1&n=2&g%6fne=3&&b"); got != "a=%41&b&n=x+y%26" {
		t.Errorf("query %q", got)
	}
}

// FuzzCheckResponse: whatever a server answers, what is carried out can stand in a message.
func FuzzCheckResponse(f *testing.F) {
	seed, _ := proto.Marshal(&authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "a", Value: "b"}}}, HeadersToRemove: []string{"host"},
	}}})
	f.Add(seed)
	ask, err := compileExtAuthz(grpcAuthz())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := &authv3.CheckResponse{}
		if proto.Unmarshal(raw, r) != nil {
			return
		}
		a := ask.OfCheck(r)
		if a.Verdict == AuthzAllowed && r.GetStatus().GetCode() != 0 || a.Verdict == AuthzDenied && (a.Status < 200 || a.Status > 599) {
			t.Errorf("%+v", a)
		}
		for _, c := range append(a.Request, a.Response...) {
			if framing(c.Name) || checkChange(&corev3.HeaderValue{Key: c.Name, Value: c.Value}) != nil {
				t.Errorf("change %+v", c)
			}
		}
	})
}
