package manifest_test

import (
	"os"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/api/policy"
	"github.com/marrowmesh/marrow/internal/manifest"
)

const limitHead = "apiVersion: policy.marrow.io/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n"

// TestRateLimitPolicies: what is refused, by field, and why.
func TestRateLimitPolicies(t *testing.T) {
	const target, rules = "  targetRefs: [{group: '', kind: Service, name: web}]\n", "  rules: [{limit: {requests: 1, per: 1s}}]\n"
	rule := func(r string) string { return target + "  rules: [{" + r + "}]\n" }
	for name, tc := range map[string]struct{ spec, want string }{
		"good":                   {target + rules, ""},
		"everything":             {target + "  mode: observe\n  response: {status: 503, headers: [{name: a, value: b}], limitHeaders: true, resourceExhausted: true}\n  service: {name: rls, namespace: istio-system, port: 8081, domain: d, timeout: 50ms, failure: deny}\n  rules: [{name: r, scope: global, match: {paths: [/a, /b*, '*/c'], methods: [GET], hosts: ['*.x'], headers: [{name: a, value: b}], sourcePrincipals: ['td/ns/a/*'], sourceNamespaces: [a]}, key: {type: claim, claim: a.b}, limit: {requests: 1, per: 1d}}]\n", ""},
		"unknown field":          {target + rules + "  color: red\n", "spec.color"},
		"unknown field in rule":  {rule("limit: {requests: 1, per: 1s, color: 1}"), "color"},
		"no target":              {rules, "spec.targetRefs"},
		"no rules":               {target, "spec.rules"},
		"unknown kind":           {"  targetRefs: [{group: '', kind: Pod, name: web}]\n" + rules, "spec.targetRefs[0].kind"},
		"wrong group":            {"  targetRefs: [{group: apps, kind: Service, name: web}]\n" + rules, "spec.targetRefs[0].group"},
		"unknown mode":           {target + rules + "  mode: warn\n", "spec.mode"},
		"no requests":            {rule("limit: {requests: 0, per: 1s}"), "spec.rules[0].limit.requests"},
		"unknown window":         {rule("limit: {requests: 1, per: 5m}"), "spec.rules[0].limit.per"},
		"no window":              {rule("limit: {requests: 1}"), "spec.rules[0].limit.per"},
		"global without service": {rule("limit: {requests: 1, per: 1s}, scope: global"), "spec.service"},
		"global burst":           {rule("limit: {requests: 1, per: 1s, burst: 2}, scope: global"), "spec.rules[0].limit.burst"},
		"burst of nothing":       {rule("limit: {requests: 1, per: 1s, burst: 0}"), "spec.rules[0].limit.burst"},
		"unknown key":            {rule("limit: {requests: 1, per: 1s}, key: {type: cookie}"), "spec.rules[0].key.type"},
		"header without name":    {rule("limit: {requests: 1, per: 1s}, key: {type: header}"), "spec.rules[0].key.header"},
		"claim without path":     {rule("limit: {requests: 1, per: 1s}, key: {type: claim, claim: a..b}"), "spec.rules[0].key.claim"},
		"header of another type": {rule("limit: {requests: 1, per: 1s}, key: {type: identity, header: a}"), "spec.rules[0].key.header"},
		"too many keys":          {rule("limit: {requests: 1, per: 1s}, key: {type: identity, maxKeys: 2000000}"), "spec.rules[0].key.maxKeys"},
		"empty match":            {rule("limit: {requests: 1, per: 1s}, match: {}"), "spec.rules[0].match"},
		"path with query":        {rule("limit: {requests: 1, per: 1s}, match: {paths: ['/a?b']}"), "spec.rules[0].match.paths[0]"},
		"star inside":            {rule("limit: {requests: 1, per: 1s}, match: {paths: ['/a*b']}"), "spec.rules[0].match.paths[0]"},
		"no method":              {rule("limit: {requests: 1, per: 1s}, match: {methods: ['G ET']}"), "spec.rules[0].match.methods[0]"},
		"principal with scheme":  {rule("limit: {requests: 1, per: 1s}, match: {sourcePrincipals: ['spiffe://td/ns/a/sa/b']}"), "spec.rules[0].match.sourcePrincipals[0]"},
		"no namespace":           {rule("limit: {requests: 1, per: 1s}, match: {sourceNamespaces: ['a/b']}"), "spec.rules[0].match.sourceNamespaces[0]"},
		"names twice":            {target + "  rules: [{name: a, limit: {requests: 1, per: 1s}}, {name: a, limit: {requests: 1, per: 1s}}]\n", "spec.rules[1].name"},
		"status that is none":    {target + rules + "  response: {status: 200}\n", "spec.response.status"},
		"framing header":         {target + rules + "  response: {headers: [{name: Content-Length, value: '1'}]}\n", "spec.response.headers[0].name"},
		"header that splits":     {target + rules + "  response: {headers: [{name: a, value: \"b\\r\\nc: d\"}]}\n", "spec.response.headers[0].value"},
		"endless timeout":        {target + rules + "  service: {name: a, port: 1, timeout: 1h}\n", "spec.service.timeout"},
		"no port":                {target + rules + "  service: {name: a}\n", "spec.service.port"},
		"unknown failure":        {target + rules + "  service: {name: a, port: 1, failure: maybe}\n", "spec.service.failure"},
	} {
		objects, err := manifest.Decode("x", strings.NewReader(limitHead+tc.spec))
		switch {
		case tc.want == "" && (err != nil || len(objects) != 1):
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || len(objects) != 0):
			t.Errorf("%s: got %v, want a refusal that names %s", name, err, tc.want)
		}
	}
	if _, err := manifest.Decode("x", strings.NewReader(strings.ReplaceAll(limitHead, "v1alpha1", "v1")+target+rules)); err == nil {
		t.Error("a version that does not exist was taken")
	}
}

func TestRateLimitSamples(t *testing.T) {
	for _, file := range []string{"catalog", "global"} {
		f, err := os.Open("../../manifests/samples/ratelimit/" + file + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		objects, err := manifest.Decode(file, f)
		_ = f.Close()
		if err != nil || len(objects) != 1 {
			t.Fatalf("%s: %v", file, err)
		}
		p, ok := objects[0].(*policy.RateLimitPolicy)
		if !ok || manifest.KeyOf(p).String() != "RateLimitPolicy.policy.marrow.io/shop/catalog" {
			t.Errorf("%s holds %v", file, manifest.KeyOf(objects[0]))
		}
	}
}
