package waypoint

import (
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	securityapi "istio.io/api/security/v1beta1"
)

const serverNameObjects = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-name, namespace: shop}
spec:
  action: DENY
  targetRefs: [{group: "", kind: Service, name: web}]
  rules: [{when: [{key: connection.sni, values: [Secret.example, "*.inner.example"]}]}]
`

// TestServerNames: connection.sni becomes a condition on both kinds of chains, in the case of letters in which proxies know names, and
// only ports whose policies ask for names are looked at.
func TestServerNames(t *testing.T) {
	d := &derivation{findings: map[Finding]bool{}}
	c := d.compilePolicy(onePolicy(securityapi.AuthorizationPolicy_ALLOW, when("connection.sni", "A.example")))
	for kind, p := range map[string]string{"http": c.http["ns[shop]-policy[p]-rule[0]"].String(), "tcp": c.tcp["ns[shop]-policy[p]-rule[0]"].String()} {
		if !strings.Contains(p, "requested_server_name") || !strings.Contains(p, `"a.example"`) {
			t.Errorf("%s: %s", kind, p)
		}
	}
	const services = "service web.shop 10.96.0.1 80/http,443/tcp,9/auto\nservice db.shop 10.96.0.2 3306/tcp\nworkload db.shop 127.0.0.3\n"
	looked := func(objects string) string {
		var all []string
		in := parseWorld(t, []byte(services), []byte(objects))
		for _, f := range newDerivation(in).mainInternal().GetListenerFilters() {
			if strings.Contains(f.GetName(), "tls_inspector") {
				all = append(all, f.GetFilterDisabled().String())
			}
		}
		return strings.Join(all, ";")
	}
	got := looked(serverNameObjects)
	if !strings.Contains(got, "not_match") || !strings.Contains(got, "start:9 ") || !strings.Contains(got, "start:443 ") || strings.Contains(got, "start:80 ") || strings.Contains(got, "3306") {
		t.Errorf("where it is not looked: %s", got)
	}
	if got := looked(strings.ReplaceAll(serverNameObjects, "connection.sni", "source.namespace")); got != "" {
		t.Errorf("nobody asks, and still it is looked: %s", got)
	}
}

// TestEnvoyServerNames: a stock Envoy judges by the names as well.
func TestEnvoyServerNames(t *testing.T) {
	b := startBench(t, behaviourServices, serverNameObjects)
	first := func(name string) string {
		conn, err := b.tunnel(account("shop", "client"), "10.96.0.1:9090")
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		// The application speaks no TLS: how it fails tells whether the client's words reached it.
		var mismatch tls.RecordHeaderError
		err = tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
		switch {
		case errors.As(err, &mismatch) && string(mismatch.RecordHeader[:3]) == "tcp":
			return "reached"
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return "closed"
		}
		return err.Error()
	}
	for name, want := range map[string]string{
		"open.example": "reached", "secret.example": "closed", "SECRET.example": "closed", "a.inner.example": "closed", "inner.example": "reached",
	} {
		if got := first(name); got != want && (want != "closed" || !strings.Contains(got, "reset")) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
