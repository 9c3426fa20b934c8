//go:build lab

package envoy

import (
	"bytes"
	"encoding/json"
	"maps"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/marrowmesh/marrow/internal/testkit/tokencorpus"
)

// demoKey is the private half of the key in manifests/samples/demo/tokens.yaml: the example of RFC 8037.
const demoKey = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}`

// one is a request and what has to come back.
type one struct {
	name   string
	args   []string
	status string
	body   string // of a refusal
}

func tokenRequests(t *testing.T) []one {
	t.Helper()
	bearer := func(kid, claims string) []string {
		raw, err := tokencorpus.Sign(jose.EdDSA, demoKey, claims, map[jose.HeaderKey]any{"kid": kid})
		if err != nil {
			t.Fatal(err)
		}
		return []string{"-H", "authorization: Bearer " + raw}
	}
	del := func(args []string) []string { return append([]string{"--method", "DELETE"}, args...) }
	admin, user := `{"iss":"https://id.example","sub":"a","groups":["user","admin"]}`, `{"iss":"https://id.example","sub":"b","groups":["user"]}`
	return []one{
		{"no token", nil, "200", ""},
		{"no token, DELETE", del(nil), "403", "RBAC: access denied"},
		{"user", bearer("demo", user), "200", ""},
		{"user, DELETE", del(bearer("demo", user)), "403", "RBAC: access denied"},
		{"admin, DELETE", del(bearer("demo", admin)), "200", ""},
		{"another issuer's admin", del(bearer("demo", `{"iss":"https://evil.example","groups":["admin"]}`)), "401", "Jwt issuer is not configured"},
		{"another key", bearer("other", user), "401", "Jwks doesn't have key to match kid or alg from Jwt"},
		{"expired", bearer("demo", `{"iss":"https://id.example","exp":1}`), "401", "Jwt is expired"},
		{"no token at all", []string{"-H", "authorization: Bearer x.y.z"}, "401", "Jwt header is an invalid Base64url encoded"},
	}
}

// TestTokens puts the same objects and requests to our waypoint and to Envoy in its place: the same answers, and Envoy refuses nothing.
func TestTokens(t *testing.T) {
	command := waypointCommand(t)
	answers := map[string]map[string]string{}
	for name, with := range map[string]string{"marrow": "", "envoy": command} {
		t.Run(name, func(t *testing.T) {
			l := startLabWith(t, with)
			l.must("lab", "apply", "-f", "../../manifests/samples/demo/tokens.yaml")
			l.eventually("the policy counts", only("403"), "--count", "3", "--method", "DELETE")
			answers[name] = map[string]string{}
			for _, r := range tokenRequests(t) {
				status, body := l.first(r.args...)
				answers[name][r.name] = status + " " + body
				if status != r.status || body != r.body && r.body != "" {
					t.Errorf("%s: %s %q, want %s %q", r.name, status, body, r.status, r.body)
				}
			}
			if name == "envoy" {
				if got := l.admin("/stats?usedonly&filter=update_(rejected|failure)"); got != "" {
					t.Errorf("Envoy refused something: %s", got)
				}
			}
		})
	}
	if a, b := answers["marrow"], answers["envoy"]; len(a) > 0 && len(b) > 0 && !maps.Equal(a, b) {
		t.Errorf("answers differ:\nmarrow %v\nenvoy  %v", a, b)
	}
}

// first asks once and returns the answer's status and, of a refusal, its body.
func (l *lab) first(args ...string) (status, body string) {
	l.t.Helper()
	base := []string{"lab", "exec", "load", "-n", "shop", "--", "marrow", "app", "client", "--count", "1", "--each", "--url", "http://catalog/"}
	out := l.must(append(base, args...)...)
	var answer struct {
		Status int
		Body   string
	}
	if err := json.NewDecoder(bytes.NewReader([]byte(out))).Decode(&answer); err != nil {
		l.t.Fatalf("%v\n%s", err, out)
	}
	raw, _ := json.Marshal(answer.Status)
	if answer.Status < 400 {
		answer.Body = ""
	}
	return string(raw), answer.Body
}
