package waypoint

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
)

const testRoots = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"

func backendPolicy(name string, age int, target string, change func(*gatewayv1.BackendTLSPolicy)) *gatewayv1.BackendTLSPolicy {
	p := &gatewayv1.BackendTLSPolicy{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(int64(1000-age), 0)), Generation: 3,
	}}
	service, section, named := strings.Cut(target, "/")
	ref := gatewayv1.LocalPolicyTargetReferenceWithSectionName{LocalPolicyTargetReference: gatewayv1.LocalPolicyTargetReference{
		Kind: "Service", Name: gatewayv1.ObjectName(service),
	}}
	if named {
		s := gatewayv1.SectionName(section)
		ref.SectionName = &s
	}
	p.Spec.TargetRefs = []gatewayv1.LocalPolicyTargetReferenceWithSectionName{ref}
	p.Spec.Validation = gatewayv1.BackendTLSPolicyValidation{
		Hostname: "a.example", CACertificateRefs: []gatewayv1.LocalObjectReference{{Kind: "ConfigMap", Name: "roots"}},
	}
	if change != nil {
		change(p)
	}
	return p
}

// TestBackendTLSStatuses: each target of each policy is told whether the policy holds for it, and why not.
func TestBackendTLSStatuses(t *testing.T) {
	system := gatewayv1.WellKnownCACertificatesSystem
	roots := func(kind gatewayv1.Kind, name gatewayv1.ObjectName) func(*gatewayv1.BackendTLSPolicy) {
		return func(p *gatewayv1.BackendTLSPolicy) {
			p.Spec.Validation.CACertificateRefs = []gatewayv1.LocalObjectReference{{Kind: kind, Name: name}}
		}
	}
	others := gatewayv1.PolicyAncestorStatus{ControllerName: "example.com/other", AncestorRef: gatewayv1.ParentReference{Name: "x"}}
	policies := []*gatewayv1.BackendTLSPolicy{
		backendPolicy("young", 1, "web", nil),
		backendPolicy("old", 2, "web", func(p *gatewayv1.BackendTLSPolicy) {
			p.Status.Ancestors = []gatewayv1.PolicyAncestorStatus{others, {ControllerName: PolicyController, AncestorRef: gatewayv1.ParentReference{Name: "gone"}}}
		}),
		backendPolicy("port", 1, "web/https", nil),
		backendPolicy("noport", 1, "web/weather", nil),
		backendPolicy("nowhere", 1, "lost", nil),
		backendPolicy("kind", 1, "db", roots("Secret", "roots")),
		backendPolicy("missing", 1, "api", roots("ConfigMap", "nobody")),
		backendPolicy("empty", 1, "mail", roots("ConfigMap", "empty")),
		backendPolicy("system", 1, "cache", func(p *gatewayv1.BackendTLSPolicy) {
			p.Spec.Validation.CACertificateRefs, p.Spec.Validation.WellKnownCACertificates = nil, &system
		}),
	}
	var services []*corev1.Service
	for _, name := range []string{"web", "db", "api", "mail", "cache"} {
		services = append(services, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 443}}},
		})
	}
	configs := []*corev1.ConfigMap{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "roots"}, Data: map[string]string{"ca.crt": testRoots}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "empty"}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "nobody"}, Data: map[string]string{"ca.crt": testRoots}},
	}
	all := BackendTLSStatuses(BackendTLSOf(policies, configs), RouteRows{Mesh: Mesh{ClusterDomain: "cluster.local"}, Services: services})
	for name, want := range map[string]string{
		"old": "True Accepted, True ResolvedRefs", "young": "False Conflicted, True ResolvedRefs", "port": "True Accepted, True ResolvedRefs",
		"noport": "False TargetNotFound, True ResolvedRefs", "nowhere": "False TargetNotFound, True ResolvedRefs",
		"kind": "False NoValidCACertificate, False InvalidKind", "missing": "False NoValidCACertificate, False InvalidCACertificateRef",
		"empty": "False NoValidCACertificate, False InvalidCACertificateRef", "system": "True Accepted, True ResolvedRefs",
	} {
		status := all[manifest.Key{Group: manifest.GroupGateway, Kind: "BackendTLSPolicy", Namespace: "shop", Name: name}]
		mine := status.Ancestors[len(status.Ancestors)-1]
		var got []string
		for _, c := range mine.Conditions {
			got = append(got, fmt.Sprintf("%s %s", c.Status, c.Reason))
			if c.ObservedGeneration != 3 {
				t.Errorf("%s: generation %d", name, c.ObservedGeneration)
			}
		}
		if s := strings.Join(got, ", "); s != want || mine.ControllerName != PolicyController {
			t.Errorf("%s: %s of %s, want %s", name, s, mine.ControllerName, want)
		}
		if n := len(status.Ancestors); name == "old" && (n != 2 || status.Ancestors[0].ControllerName != others.ControllerName) || name != "old" && n != 1 {
			t.Errorf("%s: ancestors %v", name, status.Ancestors)
		}
	}
}

// TestNobodyElseUsesRoots: the roots that a policy refers to are not to be had by a DestinationRule that guesses their name.
func TestNobodyElseUsesRoots(t *testing.T) {
	in := parseWorld(t, []byte("service web.shop 10.96.0.1 443/http"), []byte(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, trafficPolicy: {tls: {mode: SIMPLE, credentialName: "backendtls://vault/policy"}}}
`))
	p := backendPolicy("policy", 1, "web", nil)
	p.Namespace = "vault"
	in.BackendTLS = BackendTLSOf([]*gatewayv1.BackendTLSPolicy{p}, []*corev1.ConfigMap{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "vault", Name: "roots"}, Data: map[string]string{"ca.crt": testRoots}},
	})
	if r, _ := Derive(in); len(r.Secrets) != 0 {
		t.Errorf("sent %v", r.Secrets)
	}
}
