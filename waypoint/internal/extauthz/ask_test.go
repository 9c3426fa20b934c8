package extauthz_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/marrowmesh/marrow/waypoint/internal/extauthz"
	"github.com/marrowmesh/marrow/waypoint/internal/filters"
	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type direct struct{}

func (direct) Open(ctx context.Context, t upstream.Target) (upstream.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", t.Addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// store has one cluster, "authz", with one endpoint.
func store(t *testing.T, addr string, two bool) *upstream.Store {
	t.Helper()
	host, port, _ := strings.Cut(addr, ":")
	n, _ := netip.ParseAddrPort("0.0.0.0:" + port)
	c := &clusterv3.Cluster{
		Name: "authz", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, ConnectTimeout: durationpb.New(time.Second),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: "authz", Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
					Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(n.Port())},
				}}},
			}}}},
		}}},
	}
	if two {
		o, err := anypb.New(&httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
			},
		}})
		if err != nil {
			t.Fatal(err)
		}
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": o}
	}
	cfg, err := upstream.Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	s := upstream.NewStore(direct{}, time.Now)
	s.ApplyClusters([]*upstream.Config{cfg}, nil)
	t.Cleanup(func() { s.ApplyClusters(nil, []string{"authz"}) })
	return s
}

func filter(t *testing.T, p *extauthzv3.ExtAuthz) *filters.ExtAuthz {
	t.Helper()
	p.TransportApiVersion = corev3.ApiVersion_V3
	a, err := anypb.New(p)
	if err != nil {
		t.Fatal(err)
	}
	f, err := filters.CompileHTTP(&hcmv3.HttpFilter{Name: "a", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: a}})
	if err != nil {
		t.Fatal(err)
	}
	return f.Filter.(*filters.ExtAuthz)
}

func overGRPC(limit time.Duration) *extauthzv3.ExtAuthz {
	return &extauthzv3.ExtAuthz{Services: &extauthzv3.ExtAuthz_GrpcService{GrpcService: &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "authz"}}, Timeout: durationpb.New(limit),
	}}}
}

func names(list ...string) *matcherv3.ListStringMatcher {
	out := &matcherv3.ListStringMatcher{}
	for _, n := range list {
		out.Patterns = append(out.Patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: n}})
	}
	return out
}

func overHTTP(limit time.Duration) *extauthzv3.ExtAuthz {
	return &extauthzv3.ExtAuthz{
		AllowedHeaders: names("x-ask"),
		Services: &extauthzv3.ExtAuthz_HttpService{HttpService: &extauthzv3.HttpService{
			PathPrefix: "/check",
			ServerUri: &corev3.HttpUri{
				Uri: "http://authz", HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "authz"}, Timeout: durationpb.New(limit),
			},
			AuthorizationRequest: &extauthzv3.AuthorizationRequest{HeadersToAdd: []*corev3.HeaderValue{{Key: "x-added", Value: "1"}}},
			AuthorizationResponse: &extauthzv3.AuthorizationResponse{
				AllowedUpstreamHeaders: names("x-up"), AllowedClientHeaders: names("x-down"), AllowedClientHeadersOnSuccess: names("x-ok"),
			},
		}},
	}
}

func input() filters.AuthzInput {
	return filters.AuthzInput{Protocol: "HTTP/1.1", Time: time.Now(), Request: &match.Request{
		Method: "GET", Authority: "web", Path: "/a//b", Query: "c=d", Scheme: "http",
		Header: http.Header{"X-Ask": {"1"}, "X-Other": {"2"}, "Authorization": {"t"}},
	}}
}

// checker is a server whose answer a test chooses.
type checker struct {
	authv3.UnimplementedAuthorizationServer
	answer func(*authv3.CheckRequest) (*authv3.CheckResponse, error)
}

func (c checker) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return c.answer(r)
}

func serveGRPC(t *testing.T, answer func(*authv3.CheckRequest) (*authv3.CheckResponse, error)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, checker{answer: answer})
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

func ask(t *testing.T, s *upstream.Store, f *filters.ExtAuthz) filters.AuthzAnswer {
	t.Helper()
	return extauthz.Asker{Upstreams: s, Rand: func(uint64) uint64 { return 0 }}.Ask(t.Context(), f, input())
}

func TestAsk(t *testing.T) {
	t.Run("gRPC", func(t *testing.T) {
		var got *authv3.CheckRequest
		addr := serveGRPC(t, func(r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			got = r
			if r.GetAttributes().GetRequest().GetHttp().GetMethod() == "GET" {
				return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
					Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-user", Value: "u"}}}, HeadersToRemove: []string{"x-other", ":path"},
				}}}, nil
			}
			return nil, nil
		})
		a := ask(t, store(t, addr, true), filter(t, overGRPC(time.Second*5)))
		if a.Verdict != filters.AuthzAllowed || len(a.Request) != 1 || a.Request[0].Name != "X-User" || strings.Join(a.Remove, " ") != "X-Other" {
			t.Errorf("%+v", a)
		}
		h := got.GetAttributes().GetRequest().GetHttp()
		if h.GetPath() != "/a//b?c=d" || h.GetHost() != "web" || h.GetHeaders()["x-other"] != "2" || h.GetHeaders()[":authority"] != "web" || h.GetProtocol() != "HTTP/1.1" {
			t.Errorf("the server was asked %v", h)
		}
	})
	t.Run("gRPC denial", func(t *testing.T) {
		addr := serveGRPC(t, func(*authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: &authv3.CheckResponse_DeniedResponse{
				DeniedResponse: &authv3.DeniedHttpResponse{
					Status: &typev3.HttpStatus{Code: 401}, Body: "who?",
					Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "www-authenticate", Value: "Basic"}}},
				},
			}}, nil
		})
		a := ask(t, store(t, addr, true), filter(t, overGRPC(time.Second*5)))
		if a.Verdict != filters.AuthzDenied || a.Status != 401 || a.Body != "who?" || a.Header.Get("Www-Authenticate") != "Basic" {
			t.Errorf("%+v", a)
		}
	})
	t.Run("HTTP", func(t *testing.T) {
		var got *http.Request
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got = r
			for _, k := range []string{"X-Up-User", "X-Down-A", "X-Ok-B", "X-Else"} {
				w.Header().Set(k, "v")
			}
			w.Header().Set("X-Envoy-Auth-Headers-To-Remove", "x-other, authorization")
			if r.Header.Get("X-Ask") == "deny" {
				w.Header().Set("Location", "/login")
				w.WriteHeader(http.StatusFound)
			}
		}))
		defer srv.Close()
		s := store(t, srv.Listener.Addr().String(), false)
		f := filter(t, overHTTP(5*time.Second))
		a := ask(t, s, f)
		if a.Verdict != filters.AuthzAllowed || len(a.Request) != 1 || a.Request[0].Name != "X-Up-User" || len(a.Response) != 1 || a.Response[0].Name != "X-Ok-B" || len(a.Remove) != 2 {
			t.Errorf("%+v", a)
		}
		if got.RequestURI != "/check/a//b?c=d" || got.Host != "web" || got.Header.Get("X-Other") != "" || got.Header.Get("Authorization") != "t" || got.Header.Get("X-Added") != "1" {
			t.Errorf("the server was asked %s %s %v", got.Host, got.RequestURI, got.Header)
		}
		in := input()
		in.Request.Header.Set("X-Ask", "deny")
		a = extauthz.Asker{Upstreams: s, Rand: func(uint64) uint64 { return 0 }}.Ask(t.Context(), f, in)
		if a.Verdict != filters.AuthzDenied || a.Status != 302 || a.Header.Get("Location") != "/login" || a.Header.Get("X-Down-A") != "v" || a.Header.Get("X-Else") != "" {
			t.Errorf("%+v", a)
		}
	})
}

func TestEveryFailureIsAFailure(t *testing.T) {
	ok, _ := proto.Marshal(&authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}})
	frame := func(flag byte, n int, msg []byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{flag}, uint32(n)), msg...)
	}
	speak := func(code int, contentType, grpcStatus string, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("Trailer", "Grpc-Status")
			w.WriteHeader(code)
			_, _ = w.Write(body)
			if grpcStatus != "" {
				w.Header().Set("Grpc-Status", grpcStatus)
			}
		}
	}
	wait := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	const g = "application/grpc"
	for name, h := range map[string]http.HandlerFunc{
		"no status":           speak(200, g, "", frame(0, len(ok), ok)),
		"status of an error":  speak(200, g, "14", frame(0, len(ok), ok)),
		"HTTP error":          speak(503, g, "0", frame(0, len(ok), ok)),
		"no gRPC":             speak(200, "text/html", "0", frame(0, len(ok), ok)),
		"no message":          speak(200, g, "0", nil),
		"compressed":          speak(200, g, "0", frame(1, len(ok), ok)),
		"length is too long":  speak(200, g, "0", frame(0, len(ok)+1, ok)),
		"length is too short": speak(200, g, "0", frame(0, len(ok)-1, ok)),
		"two messages":        speak(200, g, "0", append(frame(0, len(ok), ok), frame(0, len(ok), ok)...)),
		"no protobuf":         speak(200, g, "0", frame(0, 3, []byte{0xff, 0xff, 0xff})),
		"too long":            speak(200, g, "0", make([]byte, 2<<20)),
		"too late":            wait,
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewUnstartedServer(h)
			srv.Config.Protocols = &http.Protocols{}
			srv.Config.Protocols.SetUnencryptedHTTP2(true)
			srv.Start()
			defer srv.Close()
			s := store(t, srv.Listener.Addr().String(), true)
			if a := ask(t, s, filter(t, overGRPC(300*time.Millisecond))); a.Verdict != filters.AuthzFailed || a.Why == nil {
				t.Errorf("%+v", a)
			}
			s.ApplyClusters(nil, []string{"authz"})
		})
	}
	t.Run("no cluster", func(t *testing.T) {
		s := upstream.NewStore(direct{}, time.Now)
		if a := ask(t, s, filter(t, overGRPC(time.Second))); a.Verdict != filters.AuthzFailed {
			t.Errorf("%+v", a)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		for _, p := range []*extauthzv3.ExtAuthz{overGRPC(time.Second), overHTTP(time.Second)} {
			if a := ask(t, store(t, "127.0.0.1:1", true), filter(t, p)); a.Verdict != filters.AuthzFailed {
				t.Errorf("%+v", a)
			}
		}
	})
	t.Run("HTTP", func(t *testing.T) {
		for name, h := range map[string]http.HandlerFunc{
			"server error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
			"too long":     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 2<<20)) },
			"broken off": func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "10")
				_, _ = io.WriteString(w, "half")
			},
			"too late": wait,
		} {
			srv := httptest.NewServer(h)
			s := store(t, srv.Listener.Addr().String(), false)
			if a := ask(t, s, filter(t, overHTTP(300*time.Millisecond))); a.Verdict != filters.AuthzFailed {
				t.Errorf("%s: %+v", name, a)
			}
			s.ApplyClusters(nil, []string{"authz"})
			srv.Close()
		}
	})
	t.Run("answers that cannot be carried out", func(t *testing.T) {
		option := func(k, v string) []*corev3.HeaderValueOption {
			return []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: k, Value: v}}}
		}
		for _, r := range []*authv3.CheckResponse{
			{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: option(":path", "/secret")}}},
			{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: option("transfer-encoding", "chunked")}}},
			{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: option("x", "a\r\nb: c")}}},
			{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{ResponseHeadersToAdd: option("a b", "c")}}},
			{Status: &rpcstatus.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 100}}}},
			{Status: &rpcstatus.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_ErrorResponse{ErrorResponse: &authv3.DeniedHttpResponse{}}},
		} {
			if a := filter(t, overGRPC(time.Second)).OfCheck(r); a.Verdict != filters.AuthzFailed {
				t.Errorf("%v: %+v", r, a)
			}
		}
	})
	t.Run("an error of the server", func(t *testing.T) {
		addr := serveGRPC(t, func(*authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return nil, status.Error(codes.Internal, "no")
		})
		if a := ask(t, store(t, addr, true), filter(t, overGRPC(5*time.Second))); a.Verdict != filters.AuthzFailed {
			t.Errorf("%+v", a)
		}
	})
}
