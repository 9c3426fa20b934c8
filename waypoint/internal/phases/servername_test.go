package phases_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	networkrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// serverNamed is a filter for connections whose client asks for one server.
func serverNamed(t *testing.T, action rbacconfig.RBAC_Action, name string) *listenerv3.Filter {
	t.Helper()
	asked := &rbacconfig.Permission{Rule: &rbacconfig.Permission_RequestedServerName{RequestedServerName: &matcherv3.StringMatcher{
		MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name},
	}}}
	return networkFilter(t, "by name", &networkrbac.RBAC{StatPrefix: "tcp.", Rules: &rbacconfig.RBAC{
		Action: action, Policies: map[string]*rbacconfig.Policy{"p": {
			Permissions: []*rbacconfig.Permission{{Rule: &rbacconfig.Permission_AndRules{AndRules: &rbacconfig.Permission_Set{Rules: []*rbacconfig.Permission{asked}}}}},
			Principals:  []*rbacconfig.Principal{{Identifier: &rbacconfig.Principal_Any{Any: true}}},
		}},
	}})
}

// TestServerNamePolicy: an opaque connection is judged by the server that its client asks for in TLS, on a declared port and on one
// that is looked at, and the bytes that told it reach the application.
func TestServerNamePolicy(t *testing.T) {
	w := basic(t)
	app := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "hello") }))
	defer app.Close()
	w.podTCP("10.0.0.3:8080", app.Listener.Addr().String(), "spiffe://td/ns/shop/sa/app")
	get := func(addr, name string) string {
		tr := &http.Transport{
			//nolint:gosec // the test is about who is reached
			TLSClientConfig: &tls.Config{ServerName: name, InsecureSkipVerify: true},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				s, _, err := w.tunnel(shopper).Connect(ctx, addr, nil)
				return s, err
			},
			DisableKeepAlives: true,
		}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("https://web/")
		if err != nil {
			return "refused"
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	for action, want := range map[rbacconfig.RBAC_Action][2]string{
		rbacconfig.RBAC_ALLOW: {"hello", "refused"}, rbacconfig.RBAC_DENY: {"refused", "hello"},
	} {
		lis := internal(t, manager(t))
		chain := lis.GetFilterChains()[1]
		chain.Filters = append([]*listenerv3.Filter{serverNamed(t, action, "a.example")}, chain.GetFilters()...)
		w.mustApply(cluster(t, "tcp"), endpoints("tcp", "10.0.0.3:8080"), lis)
		for _, addr := range []string{tcpVIP + ":80", sniffVIP + ":80"} {
			for i, name := range []string{"a.example", "b.example"} {
				if got := get(addr, name); got != want[i] {
					t.Errorf("%v of a.example, asked for %s at %s: %s", action, name, addr, got)
				}
			}
		}
		// Letters of another size make no other server of it.
		if got := get(tcpVIP+":80", "A.Example"); got != want[0] {
			t.Errorf("%v, another spelling: %s", action, got)
		}
	}
	if log := strings.Join(w.log.all(), "\n"); !strings.Contains(log, "rbac_access_denied_matched_policy[p]") {
		t.Errorf("the log does not name the policy:\n%s", log)
	}
}
