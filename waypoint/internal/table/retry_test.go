package table

import (
	"errors"
	"net/http"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	previousv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

func TestWaitByTheAnswer(t *testing.T) {
	now := time.Unix(1000, 0)
	l := RateLimited{Max: time.Minute, Headers: []ResetHeader{{Name: "Retry-After"}, {Name: "X-Reset", Unix: true}}}
	for _, tc := range []struct {
		after, reset string
		want         time.Duration
		ok           bool
	}{
		{"", "", 0, false},
		{"7", "", 7 * time.Second, true},
		{"60", "", time.Minute, true},
		{"61", "", 0, false},
		{"-1", "", 0, false},
		{"soon", "1005", 5 * time.Second, true},
		{"", "999", 0, false},
		{"", "99999999999999999999", 0, false},
		{"61", "1001", time.Second, true},
	} {
		h := http.Header{}
		h.Set("Retry-After", tc.after)
		h.Set("X-Reset", tc.reset)
		if got, ok := l.Wait(h, now); got != tc.want || ok != tc.ok {
			t.Errorf("%q %q: got %v %v", tc.after, tc.reset, got, ok)
		}
	}
}

func TestRetryElsewhere(t *testing.T) {
	r, err := compileRetry(&routev3.RetryPolicy{RetryOn: "5xx", RetryPriority: &routev3.RetryPolicy_RetryPriority{
		Name:       "envoy.retry_priorities.previous_priorities",
		ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{TypedConfig: pack(t, &previousv3.PreviousPrioritiesConfig{UpdateFrequency: 2})},
	}})
	if err != nil || r.Elsewhere != 2 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestStreamLimits(t *testing.T) {
	to := &tcpproxyv3.TcpProxy_Cluster{Cluster: "c"}
	c, err := compileTCP(&tcpproxyv3.TcpProxy{StatPrefix: "x", ClusterSpecifier: to})
	if err != nil || c.Idle != time.Hour || c.Attempts != 1 || c.MaxAge != 0 {
		t.Errorf("defaults: %+v, %v", c, err)
	}
	c, err = compileTCP(&tcpproxyv3.TcpProxy{
		StatPrefix: "x", ClusterSpecifier: to, IdleTimeout: durationpb.New(0), MaxConnectAttempts: wrapperspb.UInt32(3),
		MaxDownstreamConnectionDuration: durationpb.New(time.Minute),
		HashPolicy:                      []*typev3.HashPolicy{{PolicySpecifier: &typev3.HashPolicy_SourceIp_{SourceIp: &typev3.HashPolicy_SourceIp{}}}},
	})
	if err != nil || c.Idle != 0 || c.Attempts != 3 || c.MaxAge != time.Minute {
		t.Errorf("got %+v, %v", c, err)
	}
	if _, err = compileTCP(&tcpproxyv3.TcpProxy{StatPrefix: "x", ClusterSpecifier: to, HashPolicy: []*typev3.HashPolicy{
		{PolicySpecifier: &typev3.HashPolicy_FilterState_{FilterState: &typev3.HashPolicy_FilterState{Key: "k"}}},
	}}); !errors.Is(err, strict.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
	if _, err := compileHash(&routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{
		Cookie: &routev3.RouteAction_HashPolicy_Cookie{Name: "a\r\nX: y"},
	}}); err == nil {
		t.Error("a cookie with a line break was accepted")
	}
}
