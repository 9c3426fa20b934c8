package waypoint

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
)

type envoyJudge struct {
	authv3.UnimplementedAuthorizationServer
}

func (envoyJudge) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	option := func(k, v string) []*corev3.HeaderValueOption {
		return []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: k, Value: v}}}
	}
	h := r.GetAttributes().GetRequest().GetHttp()
	switch h.GetHeaders()["x-say"] {
	case "deny":
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: 401}, Body: "who", Headers: option("x-why", "no "+h.GetPath()),
		}}}, nil
	case "plain":
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}}, nil
	case "fail":
		return nil, fmt.Errorf("no")
	case "wait":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if h == nil { // a stream of bytes
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}}, nil
	}
	return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers: option("x-add", "by-judge"), ResponseHeadersToAdd: option("x-ok", "1"),
	}}}, nil
}

// serveJudges runs an authorization server of each kind where the bench's service authz has its endpoint.
func serveJudges(t *testing.T) {
	t.Helper()
	listen := func(addr string) net.Listener {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	g := grpc.NewServer()
	authv3.RegisterAuthorizationServer(g, envoyJudge{})
	done := make(chan struct{}, 2)
	lg, lh := listen("127.0.0.8:17000"), listen("127.0.0.8:16000")
	go func() { _ = g.Serve(lg); done <- struct{}{} }()
	h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-user", "anna")
		w.Header().Set("x-ok", "1")
		w.Header().Set("x-why", r.Method+" "+r.RequestURI+" "+r.Host+" ask="+r.Header.Get("x-ask")+" fixed="+r.Header.Get("x-fixed")+" other="+r.Header.Get("x-other"))
		w.Header().Set("x-add", "not listed")
		switch r.Header.Get("x-ask") {
		case "deny":
			w.WriteHeader(http.StatusTeapot)
		case "fail":
			w.WriteHeader(http.StatusInternalServerError)
		}
	})}
	go func() { _ = h.Serve(lh); done <- struct{}{} }()
	t.Cleanup(func() { g.Stop(); _ = h.Close(); <-done; <-done })
}

// TestEnvoyCustom: a stock Envoy asks the provider of a CUSTOM policy exactly about the policy's requests and does what it says.
func TestEnvoyCustom(t *testing.T) {
	envoyProgram(t)
	serveJudges(t)
	client := account("shop", "client")
	const web = "10.96.0.1:80"
	type want struct {
		name, what string
		status     int
		header     string
	}
	run := func(b *bench, cases []want) {
		for _, c := range cases {
			got, err := b.ask(client, web, c.what)
			if err != nil {
				t.Fatal(err)
			}
			name, value, ok := strings.Cut(c.header, "=")
			if got.status != c.status || ok && got.header.Get(name) != value {
				t.Errorf("%s: %d %q %v, want %d %s", c.name, got.status, got.body, got.header, c.status, c.header)
			}
		}
	}
	t.Run("gRPC", func(t *testing.T) {
		b := startBench(t, customServices, customPolicy("grpc", `[{to: [{operation: {paths: [/ask*]}}]}]`), withMesh(t, customMesh))
		run(b, []want{
			{"not asked", "GET /other x-say=deny", 200, "x-seen="},
			{"allowed", "GET /ask", 200, "x-seen=by-judge"},
			{"allowed, answer changed", "GET /ask", 200, "x-ok=1"},
			{"denied", "GET /ask?a=b x-say=deny", 401, "x-why=no /ask?a=b"},
			{"denied without words", "GET /ask x-say=plain", 403, ""},
			{"failed", "GET /ask x-say=fail", 403, ""},
			{"late", "GET /ask x-say=wait", 403, ""},
			{"another spelling", "GET /x/../ask x-say=deny", 401, ""},
		})
		conn, err := b.tunnel(client, "10.96.0.1:9090")
		if err == nil {
			defer conn.Close()
			// Envoy judges a stream by its first bytes; what a server says before them still comes.
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.WriteString(conn, "knock")
			if all, _ := io.ReadAll(conn); strings.Contains(string(all), "knock") {
				t.Errorf("a refused stream brought %q", all)
			}
		}
	})
	t.Run("client identity", func(t *testing.T) {
		b := startBench(t, customServices, "", func(in *Input) { in.ClientIdentity = true })
		run(b, []want{{
			"forged", "GET /a x-forwarded-client-cert=URI=forged", 200,
			"x-cert=By=spiffe://cluster.local/ns/shop/sa/waypoint;URI=spiffe://cluster.local/ns/shop/sa/client",
		}})
		b = startBench(t, customServices, "")
		run(b, []want{{"forged, unasked", "GET /a x-forwarded-client-cert=URI=forged", 200, "x-cert="}})
	})
	t.Run("HTTP", func(t *testing.T) {
		b := startBench(t, customServices, customPolicy("http", `[{to: [{operation: {paths: [/ask*]}}]}]`), withMesh(t, customMesh))
		run(b, []want{
			{"not asked", "GET /other x-ask=deny", 200, "x-ok="},
			{"allowed", "GET /ask x-add=mine", 200, "x-seen=mine"},
			{"allowed, answer changed", "GET /ask", 200, "x-ok=1"},
			{"denied", "GET /ask?a=b x-ask=deny x-other=2", 418, "x-why=GET /check/ask?a=b web.shop ask=deny fixed=1 other="},
			{"failed and open", "GET /ask x-ask=fail", 200, ""},
		})
	})
}
