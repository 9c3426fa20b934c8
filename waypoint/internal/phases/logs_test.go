package phases_test

import (
	"strings"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	celfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

func when(t *testing.T, expression string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslogv3.ExtensionFilter{
		Name: "cel", ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: pack(t, &celfilterv3.ExpressionFilter{Expression: expression})},
	}}}
}

// TestLogConditions: a line is written for the requests for which its condition holds, and for no other.
func TestLogConditions(t *testing.T) {
	direct := &routev3.Route{Name: "teapot", Match: prefix("/tea"), Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 418}}}
	w := basic(t, direct, to("/", "v1"))
	for expression, want := range map[string]string{
		"response.code >= 400": "GET /tea 418",
		"response.code < 400 && upstream.address == '10.0.0.1:8080'":                  "GET /x 200",
		"request.headers['x-a'] == 'b' && request.url_path == '/x'":                   "GET /x 200",
		"filter_state['io.istio.peer_principal'].endsWith('/sa/client')":              "GET /tea 418,GET /x 200",
		"xds.route_name == 'teapot' && connection.mtls && !has(response.grpc_status)": "GET /tea 418",
		"response.grpc_status == 0":                                                   "",
		"destination.port == 80 && request.duration < duration('1h')":                 "GET /tea 418,GET /x 200",
	} {
		m := manager(t)
		m.AccessLog = accessLog(t, "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%")
		m.AccessLog[0].Filter = when(t, expression)
		last := accessLog(t, "end")
		m.AccessLog = append(m.AccessLog, last[0])
		w.mustApply(internal(t, m))
		w.log.mu.Lock()
		w.log.buf.Reset()
		w.log.mu.Unlock()
		c := w.client(shopper, vip+":80", false)
		do(t, c, "GET", "/tea")
		w.log.count("end", 1)
		do(t, c, "GET", "/x", header("X-A", "b"))
		w.log.count("end", 2)
		var got []string
		for _, l := range w.log.all() {
			if l != "end" {
				got = append(got, l)
			}
		}
		if s := strings.Join(got, ","); s != want {
			t.Errorf("%s: got %q, want %q", expression, s, want)
		}
	}
	m := manager(t)
	m.AccessLog[0].Filter = when(t, "request.path >")
	if r := w.apply(internal(t, m)); len(r) != 1 || !strings.Contains(r[0].Err.Error(), "request.path >") {
		t.Errorf("a bad condition: %v", r)
	}
}

func TestJSONLines(t *testing.T) {
	w := basic(t)
	labels, err := structpb.NewStruct(map[string]any{"status": "%RESPONSE_CODE%", "who": map[string]any{"agent": "%REQ(USER-AGENT)%"}, "flags": "%RESPONSE_FLAGS%", "up": "%UPSTREAM_HOST%"})
	if err != nil {
		t.Fatal(err)
	}
	m := manager(t)
	m.AccessLog = []*accesslogv3.AccessLog{{Name: "file", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(t, &filelogv3.FileAccessLog{
		Path: "/dev/stdout", AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: labels},
		}},
	})}}}
	w.mustApply(internal(t, m))
	do(t, w.client(shopper, vip+":80", false), "GET", "/", header("User-Agent", "a\"\n"[:2]))
	if got, want := w.log.after(0), `{"flags":"-","status":200,"up":"envoy://connect_originate/10.0.0.1:8080","who":{"agent":"a\""}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
