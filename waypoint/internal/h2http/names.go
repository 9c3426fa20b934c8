package h2http

import (
	"net/http"
	"net/textproto"
	"strings"
)

// common are names that need not be made again for each message.
//
//nolint:gochecknoglobals // constant
var common = func() (t struct{ upper, lower map[string]string }) {
	names := []string{
		"Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Accept-Ranges", "Access-Control-Allow-Credentials",
		"Access-Control-Allow-Headers", "Access-Control-Allow-Methods", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers",
		"Access-Control-Max-Age", "Access-Control-Request-Headers", "Access-Control-Request-Method", "Age", "Allow", "Authorization",
		"B3", "Baggage", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Length", "Content-Location",
		"Content-Range", "Content-Security-Policy", "Content-Type", "Cookie", "Date", "Etag", "Expect", "Expires", "Forwarded", "From",
		"Grpc-Accept-Encoding", "Grpc-Encoding", "Grpc-Message", "Grpc-Status", "Grpc-Status-Details-Bin", "Grpc-Timeout", "Host", "If-Match",
		"If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Last-Modified", "Link", "Location", "Max-Forwards", "Origin",
		"Pragma", "Proxy-Authenticate", "Proxy-Authorization", "Range", "Referer", "Refresh", "Retry-After", "Server", "Set-Cookie",
		"Strict-Transport-Security", "Te", "Traceparent", "Tracestate", "Trailer", "Transfer-Encoding", "User-Agent", "Vary", "Via",
		"Www-Authenticate", "X-B3-Flags", "X-B3-Parentspanid", "X-B3-Sampled", "X-B3-Spanid", "X-B3-Traceid", "X-Content-Type-Options",
		"X-Envoy-Attempt-Count", "X-Envoy-Decorator-Operation", "X-Envoy-Expected-Rq-Timeout-Ms", "X-Envoy-External-Address",
		"X-Envoy-Internal", "X-Envoy-Original-Path", "X-Envoy-Peer-Metadata", "X-Envoy-Peer-Metadata-Id", "X-Envoy-Upstream-Service-Time",
		"X-Forwarded-Client-Cert", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Frame-Options",
		"X-Real-Ip", "X-Request-Id", "X-Requested-With",
	}
	t.upper, t.lower = make(map[string]string, len(names)), make(map[string]string, len(names))
	for _, n := range names {
		l := strings.ToLower(n)
		t.upper[l], t.lower[n] = n, l
	}
	return t
}()

// canonical is a field's name as net/http has it.
func canonical(name string) string {
	if n, ok := common.upper[name]; ok {
		return n
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}

// lower is a header's name as HTTP/2 has it.
func lower(name string) string {
	if n, ok := common.lower[name]; ok {
		return n
	}
	return strings.ToLower(name)
}

// ownOfHTTP1 are headers that mean something on one HTTP/1 connection, or say
// what frames say here.
func ownOfHTTP1(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// statusText is the status in digits.
func statusText(status int) string {
	switch status {
	case http.StatusOK:
		return "200"
	case http.StatusNoContent:
		return "204"
	case http.StatusNotModified:
		return "304"
	case http.StatusNotFound:
		return "404"
	case http.StatusServiceUnavailable:
		return "503"
	}
	return string([]byte{'0' + byte(status/100), '0' + byte(status/10%10), '0' + byte(status%10)})
}
