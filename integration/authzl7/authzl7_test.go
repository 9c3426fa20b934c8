package authzl7_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/integration/authzl7"
)

const perSet = 50

// TestVerdictsEqualReference is goal R7 at layer 7.
func TestVerdictsEqualReference(t *testing.T) {
	cases := 5000
	if v, err := strconv.Atoi(os.Getenv("MARROW_AUTHZ_CASES")); err == nil {
		cases = v
	}
	seed := rand.Uint64()
	if v, err := strconv.ParseUint(os.Getenv("MARROW_AUTHZ_SEED"), 10, 64); err == nil {
		seed = v
	}
	all := worlds(seed, cases/perSet, perSet)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "worlds.json"), all)
	seam(t, dir, "./istiod-lite/internal/derive/waypoint")
	seam(t, dir, "./waypoint/internal/filters")
	var verdicts [][]bool
	raw, err := os.ReadFile(filepath.Join(dir, "verdicts.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &verdicts); err != nil || len(verdicts) != len(all) {
		t.Fatalf("%d verdicts, %v", len(verdicts), err)
	}
	var allowed, denied, permissive, different int
	for i, w := range all {
		for k, q := range w.Requests {
			want := authzl7.Allows(w.Policies, q)
			if want {
				allowed++
			} else {
				denied++
			}
			if got := verdicts[i][k]; got != want {
				different++
				if got {
					permissive++
				}
				if different <= 3 {
					t.Errorf("seed %d, set %d: allowed is %v, want %v: %s", seed, i, got, want, describe(w, k))
				}
			}
		}
	}
	t.Logf("seed %d: %d cases in %d sets, %d allowed, %d denied; %d more permissive, %d different", seed, allowed+denied, len(all), allowed, denied, permissive, different)
	fmt.Printf("authzl7: seed %d: %d cases, %d allowed, %d denied; %d more permissive, %d different\n", seed, allowed+denied, allowed, denied, permissive, different)
	if total := allowed + denied; allowed*10 < total || denied*10 < total {
		t.Errorf("the cases say little: %d allowed, %d denied", allowed, denied)
	}
}

func write(t *testing.T, file string, v any) {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// seam has another program's room read what is in dir and leave what it makes of it.
func seam(t *testing.T, dir, room string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-pgo=off", "-tags", "seam", "-count=1", "-run", "^TestSeam$", room)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "MARROW_SEAM="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", room, err, out)
	}
}

// TestReference: the reference says what the API's documentation says in words.
func TestReference(t *testing.T) {
	policy := func(action securityapi.AuthorizationPolicy_Action, rules ...*securityapi.Rule) *securityv1.AuthorizationPolicy {
		p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
		p.Spec.Action, p.Spec.Rules = action, rules
		p.Spec.TargetRefs = []*typeapi.PolicyTargetReference{{Kind: "Service", Name: "web"}}
		return p
	}
	const allow, deny = securityapi.AuthorizationPolicy_ALLOW, securityapi.AuthorizationPolicy_DENY
	to := func(o *securityapi.Operation) *securityapi.Rule {
		return &securityapi.Rule{To: []*securityapi.Rule_To{{Operation: o}}}
	}
	get := authzl7.Request{
		Principal: "cluster.local/ns/shop/sa/client", Source: netip.MustParseAddrPort("10.0.0.1:1"), To: netip.MustParseAddrPort("10.96.0.1:80"),
		Host: "web:80", Method: "GET", Path: "/a/b",
	}
	tcp := authzl7.Request{TCP: true, Source: get.Source, To: get.To}
	for name, c := range map[string]struct {
		q    authzl7.Request
		p    []*securityv1.AuthorizationPolicy
		want bool
	}{
		"no policy":                  {get, nil, true},
		"allow nothing":              {get, []*securityv1.AuthorizationPolicy{policy(allow)}, false},
		"allow all":                  {get, []*securityv1.AuthorizationPolicy{policy(allow, &securityapi.Rule{})}, true},
		"deny all":                   {get, []*securityv1.AuthorizationPolicy{policy(deny, &securityapi.Rule{}), policy(allow, &securityapi.Rule{})}, false},
		"a host is not host:port":    {get, []*securityv1.AuthorizationPolicy{policy(allow, to(&securityapi.Operation{Hosts: []string{"web"}}))}, false},
		"but where it refuses it is": {get, []*securityv1.AuthorizationPolicy{policy(deny, to(&securityapi.Operation{Hosts: []string{"web"}}))}, false},
		"template":                   {get, []*securityv1.AuthorizationPolicy{policy(allow, to(&securityapi.Operation{Paths: []string{"/a/{*}"}}))}, true},
		"bytes have no path: allow":  {tcp, []*securityv1.AuthorizationPolicy{policy(allow, to(&securityapi.Operation{Paths: []string{"/a"}}))}, false},
		"bytes have no path: deny":   {tcp, []*securityv1.AuthorizationPolicy{policy(deny, to(&securityapi.Operation{Paths: []string{"/a"}}))}, false},
	} {
		if got := authzl7.Allows(c.p, c.q); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
