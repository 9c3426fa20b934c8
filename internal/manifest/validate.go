package manifest

import (
	"errors"
	"slices"
	"strings"

	clientnetworking "istio.io/client-go/pkg/apis/networking/v1"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/api/policy"
)

// Validate says what the owner of o's kind would refuse beyond its schema. Decode has done it for its objects; callers
// that build or change objects use it before they store them.
func Validate(o Object) error {
	p := &problems{}
	validate(o, p)
	var errs []error
	for _, e := range p.list {
		e.Key = KeyOf(o)
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// validate adds the problems of o in the order of their fields.
func validate(o Object, p *problems) {
	defer func() {
		slices.SortStableFunc(p.list, func(a, b *Error) int { return strings.Compare(a.Field, b.Field) })
	}()
	validateMeta(o, p)
	switch o := o.(type) {
	case *corev1.Service:
		validateService(o, p)
	case *corev1.Pod:
		validatePod(&o.Spec, "spec", p)
	case *appsv1.Deployment:
		validateLabels("spec.template.metadata.labels", o.Spec.Template.Labels, p)
		validatePod(&o.Spec.Template.Spec, "spec.template.spec", p)
	case *gatewayv1.Gateway:
		validateGateway(o, p)
	case *gatewayv1.HTTPRoute:
		validateHTTPRoute(o, p)
	case *gatewayv1.GRPCRoute:
		validateGRPCRoute(o, p)
	case *clientnetworking.VirtualService:
		validateVirtualService(&o.Spec, p)
	case *clientnetworking.DestinationRule:
		validateDestinationRule(&o.Spec, p)
	case *clientsecurity.AuthorizationPolicy:
		validateAuthorization(&o.Spec, p)
	case *clientsecurity.PeerAuthentication:
		validatePeerAuthentication(&o.Spec, p)
	case *clientsecurity.RequestAuthentication:
		validateRequestAuthentication(&o.Spec, p)
	case *policy.RateLimitPolicy:
		validateRateLimit(o, p)
	case *clientnetworking.ServiceEntry:
		validateServiceEntry(&o.Spec, p)
	case *clientnetworking.WorkloadEntry:
		validateWorkloadEntry("spec", &o.Spec, p)
	}
}
