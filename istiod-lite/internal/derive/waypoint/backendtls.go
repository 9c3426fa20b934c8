package waypoint

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networkingapi "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// PolicyController is who writes the statuses of policies.
const PolicyController gatewayv1.GatewayController = "istio.io/mesh-controller"

// BackendTLS are the policies on TLS to backends, with what they refer to.
type BackendTLS struct {
	Policies []*gatewayv1.BackendTLSPolicy
	// Roots are the ConfigMaps of all namespaces that policies there refer to.
	Roots []*corev1.ConfigMap
}

// BackendTLSOf leaves of all ConfigMaps those that policies of their namespace name.
func BackendTLSOf(policies []*gatewayv1.BackendTLSPolicy, all []*corev1.ConfigMap) BackendTLS {
	named := map[string]bool{}
	for _, p := range policies {
		for _, ref := range p.Spec.Validation.CACertificateRefs {
			named[p.Namespace+"/"+string(ref.Name)] = true
		}
	}
	out := BackendTLS{Policies: policies}
	for _, c := range all {
		if named[c.Namespace+"/"+c.Name] {
			out.Roots = append(out.Roots, c)
		}
	}
	return out
}

// backendTLSPrefix marks names of roots that a BackendTLSPolicy refers to; only such a policy can use them.
const backendTLSPrefix = "backendtls://"

// withBackendTLS completes a port's policy with TLS as a BackendTLSPolicy wants it. What a DestinationRule says of TLS comes first.
func (d *derivation) withBackendTLS(s *Service, p Port, policy *networkingapi.TrafficPolicy) *networkingapi.TrafficPolicy {
	b := d.in.BackendTLS.find(s, p)
	stolen := strings.HasPrefix(policy.GetTls().GetCredentialName(), backendTLSPrefix)
	if !stolen && (b == nil || policy.GetTls() != nil) {
		return policy
	}
	out := &networkingapi.TrafficPolicy{}
	if policy != nil {
		out = proto.CloneOf(policy)
	}
	if stolen { // whoever writes a DestinationRule has Secrets only
		out.Tls.CredentialName = secretPrefix + out.GetTls().GetCredentialName()
		return out
	}
	v := b.Spec.Validation
	out.Tls = &networkingapi.ClientTLSSettings{Mode: networkingapi.ClientTLSSettings_SIMPLE, Sni: string(v.Hostname)}
	for _, n := range v.SubjectAltNames {
		name := string(n.Hostname)
		if n.Type == gatewayv1.URISubjectAltNameType {
			name = string(n.URI)
		}
		out.Tls.SubjectAltNames = append(out.Tls.SubjectAltNames, name)
	}
	if v.WellKnownCACertificates == nil || *v.WellKnownCACertificates != gatewayv1.WellKnownCACertificatesSystem {
		out.Tls.CredentialName = backendTLSPrefix + b.Namespace + "/" + b.Name // nothing passes without roots
	}
	return out
}

// find is the policy for a port: one that names the port before one for the whole service, and the oldest of those.
func (b BackendTLS) find(s *Service, p Port) *gatewayv1.BackendTLSPolicy {
	var whole *gatewayv1.BackendTLSPolicy
	for _, o := range b.Policies {
		for _, ref := range o.Spec.TargetRefs {
			if !backendTarget(o, ref, s) {
				continue
			}
			switch {
			case ref.SectionName == nil && whole == nil:
				whole = o
			case ref.SectionName != nil && string(*ref.SectionName) == p.Name:
				return o
			}
		}
	}
	return whole
}

func backendTarget(o *gatewayv1.BackendTLSPolicy, ref gatewayv1.LocalPolicyTargetReferenceWithSectionName, s *Service) bool {
	return o.Namespace == s.Namespace && string(ref.Kind) == s.Kind && string(ref.Group) == serviceGroup(s.Kind) && string(ref.Name) == s.Name
}

// roots are the certificates that a policy trusts, from the first of its references.
func (b BackendTLS) roots(namespace, name string) ([]byte, error) {
	i := slices.IndexFunc(b.Policies, func(o *gatewayv1.BackendTLSPolicy) bool { return o.Namespace == namespace && o.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("BackendTLSPolicy %s/%s does not exist", namespace, name)
	}
	refs := b.Policies[i].Spec.Validation.CACertificateRefs
	if len(refs) == 0 {
		return nil, fmt.Errorf("BackendTLSPolicy %s/%s: validation names neither caCertificateRefs nor wellKnownCACertificates System", namespace, name)
	}
	ref := refs[0]
	if ref.Kind != "ConfigMap" || ref.Group != "" && ref.Group != "core" {
		return nil, errCertificateKind{fmt.Sprintf("BackendTLSPolicy %s/%s: caCertificateRefs[0] is a %s; want a ConfigMap", namespace, name, ref.Kind)}
	}
	for _, c := range b.Roots {
		if c.Namespace == namespace && c.Name == string(ref.Name) {
			if ca := c.Data["ca.crt"]; strings.Contains(ca, "-----BEGIN CERTIFICATE-----") {
				return []byte(ca), nil
			}
			return nil, fmt.Errorf("BackendTLSPolicy %s/%s: ConfigMap %s has no certificate under ca.crt", namespace, name, ref.Name)
		}
	}
	return nil, fmt.Errorf("BackendTLSPolicy %s/%s: there is no ConfigMap %s in its namespace", namespace, name, ref.Name)
}

// errCertificateKind is a reference to something that holds no certificates.
type errCertificateKind struct{ text string }

func (e errCertificateKind) Error() string { return e.text }

// BackendTLSStatuses says of each policy, for each of its targets, whether it is in force and finds its roots. What other controllers
// say stays.
func BackendTLSStatuses(b BackendTLS, rows RouteRows) map[manifest.Key]gatewayv1.PolicyStatus {
	b.Policies = byAge(b.Policies)
	services := routeServices(rows)
	out := map[manifest.Key]gatewayv1.PolicyStatus{}
	for _, o := range b.Policies {
		status := gatewayv1.PolicyStatus{Ancestors: slices.DeleteFunc(slices.Clone(o.Status.Ancestors), func(a gatewayv1.PolicyAncestorStatus) bool {
			return a.ControllerName == PolicyController
		})}
		for _, ref := range o.Spec.TargetRefs {
			const most = 16 // ancestors that the API lets stand
			if len(status.Ancestors) == most {
				break
			}
			status.Ancestors = append(status.Ancestors, b.ancestor(o, ref, services))
		}
		out[manifest.KeyOf(o)] = status
	}
	return out
}

func (b BackendTLS) ancestor(o *gatewayv1.BackendTLSPolicy, ref gatewayv1.LocalPolicyTargetReferenceWithSectionName, services []Service) gatewayv1.PolicyAncestorStatus {
	parent := gatewayv1.ParentReference{Group: &ref.Group, Kind: &ref.Kind, Name: ref.Name, SectionName: ref.SectionName}
	a := gatewayv1.PolicyAncestorStatus{AncestorRef: parent, ControllerName: PolicyController}
	for _, old := range o.Status.Ancestors {
		if old.ControllerName == PolicyController && sameParent(old.AncestorRef, parent) {
			a.Conditions = slices.Clone(old.Conditions)
		}
	}
	accepted := metav1.Condition{Status: metav1.ConditionTrue, Reason: string(gatewayv1.PolicyReasonAccepted), Message: "Policy was valid"}
	resolved := metav1.Condition{Status: metav1.ConditionTrue, Reason: string(gatewayv1.BackendTLSPolicyReasonResolvedRefs), Message: "All references resolved"}
	refuse := func(c *metav1.Condition, reason gatewayv1.PolicyConditionReason, text string) {
		*c = metav1.Condition{Status: metav1.ConditionFalse, Reason: string(reason), Message: text}
	}
	if w := o.Spec.Validation.WellKnownCACertificates; w == nil || *w != gatewayv1.WellKnownCACertificatesSystem {
		if _, err := b.roots(o.Namespace, o.Name); err != nil {
			reason := gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef
			if _, kind := err.(errCertificateKind); kind { //nolint:errorlint // roots gives it as it is
				reason = gatewayv1.BackendTLSPolicyReasonInvalidKind
			}
			refuse(&resolved, reason, err.Error())
			refuse(&accepted, gatewayv1.BackendTLSPolicyReasonNoValidCACertificate, err.Error()+"; requests to the target get 503")
		}
	}
	switch other, found := b.rival(o, ref, services); {
	case !found:
		refuse(&accepted, gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("%s %s/%s does not exist, or has no such port", ref.Kind, o.Namespace, ref.Name))
	case other != nil:
		refuse(&accepted, gatewayv1.PolicyReasonConflicted, "BackendTLSPolicy "+kube.NameOf(other).String()+" for the same target is older")
	}
	accepted.Type, resolved.Type = string(gatewayv1.PolicyConditionAccepted), string(gatewayv1.BackendTLSPolicyConditionResolvedRefs)
	for _, c := range []metav1.Condition{accepted, resolved} {
		c.ObservedGeneration = o.Generation
		a.Conditions = putCondition(a.Conditions, c)
	}
	return a
}

// rival is an older policy for the very same target; found is whether the target is there at all.
func (b BackendTLS) rival(o *gatewayv1.BackendTLSPolicy, ref gatewayv1.LocalPolicyTargetReferenceWithSectionName, services []Service) (older *gatewayv1.BackendTLSPolicy, found bool) {
	for i := range services {
		s := &services[i]
		if backendTarget(o, ref, s) && (ref.SectionName == nil || slices.ContainsFunc(s.Ports, func(p Port) bool { return p.Name == string(*ref.SectionName) })) {
			found = true
		}
	}
	for _, other := range b.Policies { // by age
		if other == o {
			break
		}
		if other.Namespace != o.Namespace {
			continue
		}
		for _, r := range other.Spec.TargetRefs {
			if r.Group == ref.Group && r.Kind == ref.Kind && r.Name == ref.Name && same(r.SectionName, ref.SectionName) {
				return other, found
			}
		}
	}
	return nil, found
}
