package ingress

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/waypoint"
)

// secretName is what a proxy asks for; the form is Istio's.
func secretName(kind, namespace, name string) string {
	if kind == "ConfigMap" {
		return "configmap://" + namespace + "/" + name
	}
	return "kubernetes://" + namespace + "/" + name
}

// permitted says whether a ReferenceGrant in the target's namespace lets objects of the Gateway API refer to it, which is of the core group.
func (d *derivation) permitted(fromKind, fromNamespace, toKind, toNamespace, toName string) bool {
	for _, g := range d.in.Grants {
		if g.Namespace != toNamespace || g.DeletionTimestamp != nil {
			continue
		}
		from, to := false, false
		for _, f := range g.Spec.From {
			from = from || string(f.Group) == manifest.GroupGateway && string(f.Kind) == fromKind && string(f.Namespace) == fromNamespace
		}
		for _, t := range g.Spec.To {
			group := string(t.Group)
			if group == "core" {
				group = ""
			}
			to = to || group == "" && string(t.Kind) == toKind && (t.Name == nil || *t.Name == "" || string(*t.Name) == toName)
		}
		if from && to {
			return true
		}
	}
	return false
}

// certificate finds the Secret that a listener names. Whether it may is asked first: a refusal tells nothing of what there is.
func (d *derivation) certificate(g *gateway, ref gatewayv1.SecretObjectReference) (string, Verdict) {
	bad := func(reason gatewayv1.ListenerConditionReason, format string, args ...any) (string, Verdict) {
		return "", Verdict{Reason: string(reason), Message: "tls.certificateRefs: " + fmt.Sprintf(format, args...)}
	}
	if ref.Group != nil && *ref.Group != "" && *ref.Group != "core" || ref.Kind != nil && *ref.Kind != "Secret" {
		return bad(gatewayv1.ListenerReasonInvalidCertificateRef, "only Secrets are supported")
	}
	namespace := g.key.Namespace
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	if namespace != g.key.Namespace && !d.permitted("Gateway", g.key.Namespace, "Secret", namespace, string(ref.Name)) {
		return bad(gatewayv1.ListenerReasonRefNotPermitted, "no ReferenceGrant of namespace %s permits Secret %s to Gateways of namespace %s", namespace, ref.Name, g.key.Namespace)
	}
	name, problem := d.keyPair(g, namespace, string(ref.Name))
	if problem != "" {
		return bad(gatewayv1.ListenerReasonInvalidCertificateRef, "%s", problem)
	}
	return name, good(string(gatewayv1.ListenerReasonResolvedRefs))
}

// data reads a key of a Secret under its Kubernetes or its Istio name.
func data(s *corev1.Secret, keys ...string) []byte {
	for _, k := range keys {
		if v, ok := s.StringData[k]; ok {
			return []byte(v)
		}
		if v, ok := s.Data[k]; ok {
			return v
		}
	}
	return nil
}

// keyPair takes a certificate with its key into the gateway's plan.
func (d *derivation) keyPair(g *gateway, namespace, name string) (secret, problem string) {
	s := d.secrets[types.NamespacedName{Namespace: namespace, Name: name}]
	if s == nil {
		return "", fmt.Sprintf("Secret %s/%s does not exist", namespace, name)
	}
	chain, key := data(s, "tls.crt", "cert"), data(s, "tls.key", "key")
	if _, err := tls.X509KeyPair(chain, key); err != nil {
		return "", fmt.Sprintf("Secret %s/%s: tls.crt and tls.key (or cert and key) are no certificate with its key: %v", namespace, name, err)
	}
	out := secretName("Secret", namespace, name)
	g.secrets[out] = waypoint.EdgeSecret{Name: out, Chain: chain, Key: key}
	return out, ""
}

// clientRoots takes the roots of clients' certificates: of a Secret of their own, of the one beside the certificate's, or of
// the certificate's itself.
func (d *derivation) clientRoots(g *gateway, namespace, name, own string) (secret, problem string) {
	if own != "" {
		return d.roots(g, "Secret", namespace, own)
	}
	beside := name + "-cacert"
	if d.secrets[types.NamespacedName{Namespace: namespace, Name: beside}] != nil {
		return d.roots(g, "Secret", namespace, beside)
	}
	return d.roots(g, "Secret", namespace, name)
}

// roots takes certificates of authorities into the gateway's plan.
func (d *derivation) roots(g *gateway, kind, namespace, name string) (secret, problem string) {
	at := types.NamespacedName{Namespace: namespace, Name: name}
	var pemText, crl []byte
	switch kind {
	case "ConfigMap":
		m := d.configMaps[at]
		if m == nil {
			return "", fmt.Sprintf("ConfigMap %s does not exist", at)
		}
		pemText, crl = []byte(m.Data["ca.crt"]), []byte(m.Data["ca.crl"])
	default:
		s := d.secrets[at]
		if s == nil {
			return "", fmt.Sprintf("Secret %s does not exist", at)
		}
		pemText, crl = data(s, "ca.crt", "cacert"), data(s, "ca.crl", "crl")
	}
	if err := checkRoots(pemText); err != nil {
		return "", fmt.Sprintf("%s %s: ca.crt (or cacert): %v", kind, at, err)
	}
	out := secretName(kind, namespace, name) + "-roots"
	g.secrets[out] = waypoint.EdgeSecret{Name: out, Roots: pemText, CRL: crl}
	return out, ""
}

// checkRoots wants certificates and nothing else: a reader that skips what it does not understand would trust less than the
// author thinks.
func checkRoots(text []byte) error {
	n := 0
	for rest := text; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("has a block %s; want certificates", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
	}
	if n == 0 {
		return fmt.Errorf("has no certificate")
	}
	return nil
}
