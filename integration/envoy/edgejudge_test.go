//go:build lab

package envoy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
)

// judge is an authorization server that says what the request's x-say asks for.
type judge struct {
	authv3.UnimplementedAuthorizationServer
}

func (judge) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	headers := func(k, v string) []*corev3.HeaderValueOption {
		return []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: k, Value: v}}}
	}
	h := r.GetAttributes().GetRequest().GetHttp()
	switch h.GetHeaders()["x-say"] {
	case "deny":
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: 418}, Body: "no", Headers: headers("x-why", h.GetMethod()+" "+h.GetPath()+" "+h.GetHost()),
		}}}, nil
	case "plain":
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}}, nil
	case "fail":
		return nil, errors.New("out of order")
	case "wait":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: headers("x-add", "judged")}}}, nil
}

// judgeHTTP does the same over HTTP.
func judgeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Add", "judged")
	w.Header().Set("X-Why", r.Method+" "+r.RequestURI+" "+r.Host)
	switch r.Header.Get("X-Say") {
	case "deny":
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "no")
	case "plain":
		w.WriteHeader(http.StatusForbidden)
	case "fail":
		w.WriteHeader(http.StatusInternalServerError)
	case "wait":
		<-r.Context().Done()
	}
}

// serveJudges listens at the ports of testdata/onward.yaml.
func serveJudges() {
	l, err := net.Listen("tcp", ":9000")
	if err != nil {
		panic(err)
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, judge{})
	go func() { panic(s.Serve(l)) }()
	go func() {
		h := &http.Server{Addr: ":9100", Handler: http.HandlerFunc(judgeHTTP), ReadHeaderTimeout: 10 * time.Second}
		panic(h.ListenAndServe())
	}()
}
