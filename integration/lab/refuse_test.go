//go:build lab

package lab_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/marrowmesh/marrow/internal/lab"
)

// undisturbed runs an attack between two control requests, one of them over a connection that stays open.
func (w *world) undisturbed(attack func()) {
	w.t.Helper()
	w.mustAsk("client", "http://server/")
	h := w.hold("client", "server:9090", 60*time.Second)
	w.awaitConnection("client", 9090)
	attack()
	if !h.alive() {
		w.t.Errorf("an open connection died of it: %+v %v", h.report, h.err)
	}
	h.cancel()
	<-h.done
	w.mustAsk("client", "http://server/")
}

const denyRogue = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-client, namespace: NS}
spec:
  action: DENY
  selector: {matchLabels: {app: near}}
  rules:
    - from: [{source: {principals: ["cluster.local/ns/NS/sa/client"]}}]
`

// TestConfigRefused: what is wrong changes nothing, and its author is told why.
func TestConfigRefused(t *testing.T) {
	w := newWorld(t, "config", true)
	policy := strings.ReplaceAll(denyRogue, "NS", w.ns)
	w.undisturbed(func() {
		for name, c := range map[string]struct{ yaml, want string }{
			"malformed":      {"apiVersion: v1\nkind: [\n", "line 2"},
			"unknown field":  {strings.Replace(policy, "action: DENY", "aktion: DENY", 1), "spec.aktion"},
			"unknown kind":   {strings.Replace(policy, "AuthorizationPolicy", "AuthorisationPolicy", 1), "AuthorisationPolicy"},
			"wrong type":     {strings.Replace(policy, "selector: {matchLabels: {app: near}}", "selector: 7", 1), "selector"},
			"good, then bad": {policy + "---\n" + strings.Replace(policy, "rules:", "roles:", 1), "spec.roles"},
		} {
			file := filepath.Join(here.tmp, "refused.yaml")
			if err := os.WriteFile(file, []byte(c.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			r := here.marrow(t, 20*time.Second, "lab", "apply", "--lab", sharedName, "-f", file)
			if r.exit == 0 || !strings.Contains(r.stderr, c.want) || !strings.Contains(r.stderr, "refused.yaml") {
				t.Errorf("%s: status %d, want the file and %q in: %s", name, r.exit, c.want, r.stderr)
			}
		}
		w.mustAsk("client", "http://near/") // the good one in front of the bad one is not in force either
	})
}

// TestLastGoodStays: files that somebody breaks in the store itself.
func TestLastGoodStays(t *testing.T) {
	w := newWorld(t, "last-good", true)
	policy := strings.ReplaceAll(denyRogue, "NS", w.ns)
	w.apply(policy)
	denied := func() error { return w.ask("client", "http://near/", "--count", "2").none() }
	w.eventually(10*time.Second, "the policy is in force", denied)
	file := filepath.Join(w.c.State.Objects(), "security.istio.io", "AuthorizationPolicy", w.ns, "deny-client.yaml")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(raw []byte) {
		tmp := file + ".new"
		if err := os.WriteFile(tmp, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, file); err != nil {
			t.Fatal(err)
		}
	}
	w.undisturbed(func() {
		for name, bad := range map[string]string{
			"malformed":     "apiVersion: [",
			"unknown field": strings.Replace(string(good), "action:", "aktion:", 1),
			"empty":         "",
			"other object":  strings.Replace(string(good), "name: deny-client", "name: other", 1),
		} {
			if bad == string(good) {
				t.Fatalf("%s: the file is not changed", name)
			}
			mark := time.Now()
			write([]byte(bad))
			w.eventually(5*time.Second, name+": the control plane says why", func() error { return w.logged("istiod-lite", mark, "deny-client") })
			if err := denied(); err != nil {
				t.Errorf("%s: the last good policy is not in force any more: %v", name, err)
			}
		}
	})
	write(good)
	// A policy that can be read but not obeyed: the status tells its author.
	w.apply(strings.Replace(policy, "  rules:\n", "  rules:\n    - to: [{operation: {methods: [DELETE]}}]\n", 1))
	w.eventually(5*time.Second, "the status says why", func() error {
		raw, err := os.ReadFile(file)
		if err == nil && (!strings.Contains(string(raw), "conditions:") || !strings.Contains(string(raw), "HTTP attributes (methods)")) {
			err = fmt.Errorf("the object says nothing:\n%s", raw)
		}
		return err
	})
	w.remove(lab.Ref{Group: "security.istio.io", Kind: "AuthorizationPolicy", Namespace: w.ns, Name: "deny-client"})
	w.eventually(10*time.Second, "the policy is gone", func() error { return w.ask("client", "http://near/", "--count", "2").good() })
}

// logged wants a line of a component's log that is younger than since and holds all words.
func (w *world) logged(name string, since time.Time, words ...string) error {
	var b strings.Builder
	if err := w.c.Logs(w.t.Context(), &b, component(name), false, 2000); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		stamp, _, _ := strings.Cut(line, "\t")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil || at.Before(since.Add(-time.Millisecond)) {
			continue
		}
		if containsAll(line, words) {
			return nil
		}
	}
	return fmt.Errorf("%s logs no %q", name, words)
}

func containsAll(s string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(s, word) {
			return false
		}
	}
	return true
}

// forger signs tokens that the control plane accepts: its key joins the lab's key set.
type forger struct {
	w   *world
	key *ecdsa.PrivateKey
}

const forgerID = "forger"

// newForger with trusted false has a key that nobody knows.
func newForger(w *world, trusted bool) *forger {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	f := &forger{w: w, key: key}
	if !trusted {
		return f
	}
	path := w.c.State.JWKS()
	raw, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(raw, &set); err != nil {
		w.t.Fatal(err)
	}
	set.Keys = append(set.Keys, jose.JSONWebKey{Key: &key.PublicKey, KeyID: forgerID, Algorithm: "ES256", Use: "sig"})
	more, err := json.Marshal(set)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, more, 0o644); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = os.WriteFile(path, raw, 0o644) })
	return f
}

// token speaks for a pod, with any audience and time.
func (f *forger) token(pod *corev1.Pod, audience string, expires time.Time) string {
	f.w.t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: f.key, KeyID: forgerID}}, nil)
	if err != nil {
		f.w.t.Fatal(err)
	}
	sa := pod.Spec.ServiceAccountName
	text, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: "marrow-lab", Subject: "system:serviceaccount:" + pod.Namespace + ":" + sa, Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(expires.Add(-time.Hour)), Expiry: jwt.NewNumericDate(expires),
	}).Claims(map[string]any{"kubernetes.io": map[string]any{
		"namespace": pod.Namespace, "node": map[string]any{"name": pod.Spec.NodeName},
		"pod": map[string]any{"name": pod.Name, "uid": string(pod.UID)}, "serviceaccount": map[string]any{"name": sa},
	}}).Serialize()
	if err != nil {
		f.w.t.Fatal(err)
	}
	return text
}

func spiffe(ns, sa string) string { return "spiffe://cluster.local/ns/" + ns + "/sa/" + sa }

// TestAuthorityRefuses: the certificate authority gives nobody another's identity.
func TestAuthorityRefuses(t *testing.T) {
	w := newWorld(t, "authority", true)
	f, stranger := newForger(w, true), newForger(w, false)
	own, foreign := spiffe(w.ns, "rogue"), spiffe(w.ns, "server")
	hour := time.Now().Add(time.Hour)
	ztunnel1 := w.proxyPod("ztunnel-node-1")
	rogue := w.podObject("rogue")
	w.undisturbed(func() {
		// What is right works, so that the refusals mean something.
		if got := in[signed](w, "rogue", "csr", csrArgs{Token: "pod", Identity: own}); got.Code != "OK" || len(got.URIs) != 1 || got.URIs[0] != own {
			t.Errorf("a pod's own certificate: %+v", got)
		}
		if got := in[signed](w, "rogue", "csr", csrArgs{Token: f.token(ztunnel1, "istio-ca", hour), Identity: spiffe(w.ns, "near"), Impersonate: spiffe(w.ns, "near")}); got.Code != "OK" || got.URIs[0] != spiffe(w.ns, "near") {
			t.Errorf("node-1's proxy for a pod on node-1: %s %s", got.Code, got.Message)
		}
		// A foreign name in the request itself is not worth more than the token.
		if got := in[signed](w, "rogue", "csr", csrArgs{Token: "pod", Identity: foreign}); got.Code == "OK" && (len(got.URIs) != 1 || got.URIs[0] != own) {
			t.Errorf("a request that names another identity got %v", got.URIs)
		}
		for name, c := range map[string]struct {
			args csrArgs
			code string
		}{
			"no token":                            {csrArgs{Identity: own}, "Unauthenticated"},
			"garbage token":                       {csrArgs{Token: "abc.def.ghi", Identity: own}, "Unauthenticated"},
			"unknown key":                         {csrArgs{Token: stranger.token(rogue, "istio-ca", hour), Identity: own}, "Unauthenticated"},
			"expired":                             {csrArgs{Token: f.token(rogue, "istio-ca", time.Now().Add(-10*time.Minute)), Identity: own}, "Unauthenticated"},
			"for another audience":                {csrArgs{Token: f.token(rogue, "kubernetes", hour), Identity: own}, "Unauthenticated"},
			"a pod for another pod":               {csrArgs{Token: "pod", Identity: foreign, Impersonate: foreign}, "Unauthenticated"},
			"node-1's proxy for a pod on node-2":  {csrArgs{Token: f.token(ztunnel1, "istio-ca", hour), Identity: foreign, Impersonate: foreign}, "Unauthenticated"},
			"node-1's proxy for nobody":           {csrArgs{Token: f.token(ztunnel1, "istio-ca", hour), Identity: spiffe(w.ns, "ghost"), Impersonate: spiffe(w.ns, "ghost")}, "Unauthenticated"},
			"node-1's proxy for another domain":   {csrArgs{Token: f.token(ztunnel1, "istio-ca", hour), Identity: own, Impersonate: "spiffe://evil.local/ns/" + w.ns + "/sa/near"}, "Unauthenticated"},
			"a request that is none":              {csrArgs{Token: "pod", Identity: own, CSR: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"}, "InvalidArgument"},
			"a life longer than any":              {csrArgs{Token: "pod", Identity: own, Seconds: 1 << 40}, "InvalidArgument"},
			"a proxy that claims another pod UID": {csrArgs{Token: f.token(withUID(ztunnel1, "other"), "istio-ca", hour), Identity: spiffe(w.ns, "near"), Impersonate: spiffe(w.ns, "near")}, "Unauthenticated"},
		} {
			if got := in[signed](w, "rogue", "csr", c.args); got.Code != c.code || got.Message == "" || len(got.Chain) > 0 {
				t.Errorf("%s: %s %q, want %s and a reason", name, got.Code, got.Message, c.code)
			}
		}
	})
}

// proxyPod is a component's pod.
func (w *world) proxyPod(name string) *corev1.Pod {
	w.t.Helper()
	pods, err := lab.Get[*corev1.Pod](w.t.Context(), w.c, "istio-system", name)
	if err != nil {
		w.t.Fatal(err)
	}
	return pods[0]
}

func withUID(p *corev1.Pod, uid string) *corev1.Pod {
	p = p.DeepCopy()
	p.UID = types.UID(uid)
	return p
}

const (
	addressType  = "type.googleapis.com/istio.workload.Address"
	policyType   = "type.googleapis.com/istio.security.Authorization"
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// TestDiscoveryRefuses: nobody learns of the mesh without a token, and a waypoint learns of its own only.
func TestDiscoveryRefuses(t *testing.T) {
	w := newWorld(t, "discovery", true)
	f, stranger := newForger(w, true), newForger(w, false)
	hour := time.Now().Add(time.Hour)
	rogue := w.podObject("rogue")
	proxy := f.token(w.proxyPod("ztunnel-node-1"), "istio-ca", hour)
	node := func(kind, pod string) string {
		return kind + "~10.9.9.9~" + pod + "." + w.ns + "~" + w.ns + ".svc.cluster.local"
	}
	w.undisturbed(func() {
		if got := in[discovered](w, "rogue", "discover", discoverArgs{Token: proxy, NodeID: node("ztunnel", "ztunnel-node-1"), Type: addressType}); got.Code != "OK" || len(got.Names) == 0 {
			t.Errorf("a node proxy with its token: %s %s", got.Code, got.Message)
		}
		for name, a := range map[string]discoverArgs{
			"addresses without token":      {NodeID: node("ztunnel", "rogue"), Type: addressType},
			"policies without token":       {NodeID: node("ztunnel", "rogue"), Type: policyType},
			"listeners without token":      {NodeID: node("waypoint", "rogue"), Type: listenerType},
			"garbage token":                {Token: "x", NodeID: node("ztunnel", "rogue"), Type: addressType},
			"expired token":                {Token: f.token(rogue, "istio-ca", time.Now().Add(-10*time.Minute)), NodeID: node("ztunnel", "rogue"), Type: addressType},
			"unknown key":                  {Token: stranger.token(rogue, "istio-ca", hour), NodeID: node("ztunnel", "rogue"), Type: addressType},
			"a pod that is no waypoint":    {Token: "pod", NodeID: node("waypoint", "rogue"), Type: listenerType},
			"a node of an unknown kind":    {Token: "pod", NodeID: node("sidecar", "rogue"), Type: listenerType},
			"the mesh, by an ordinary pod": {Token: "pod", NodeID: node("ztunnel", "rogue"), Type: addressType},
			"metadata of another account":  {Token: proxy, NodeID: node("ztunnel", "rogue"), Metadata: map[string]any{"SERVICE_ACCOUNT": "server"}, Type: addressType},
			"a node id that is none":       {Token: proxy, NodeID: "me", Type: addressType},
			"listeners as if node proxy":   {Token: proxy, NodeID: node("ztunnel", "rogue"), Type: listenerType},
			"secrets of who is no gateway": {Token: "pod", NodeID: node("waypoint", "rogue"), Type: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"},
		} {
			got := in[discovered](w, "rogue", "discover", a)
			if got.Code == "OK" && len(got.Names) > 0 {
				t.Errorf("%s: got %d resources", name, len(got.Names))
			}
			// A kind that node proxies have no use for is answered, with nothing in it.
			if empty := got.Code == "OK" && name == "listeners as if node proxy"; !empty && (got.Code == "OK" || got.Message == "") {
				t.Errorf("%s: %s %q, want a refusal with its reason", name, got.Code, got.Message)
			}
		}
	})
}
