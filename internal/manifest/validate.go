package manifest

import (
	"errors"

	clientnetworking "istio.io/client-go/pkg/apis/networking/v1"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"
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

func validate(o Object, p *problems) {
	validateMeta(o, p)
	switch o := o.(type) {
	case *clientsecurity.AuthorizationPolicy:
		validateAuthorization(&o.Spec, p)
	case *clientsecurity.PeerAuthentication:
		validatePeerAuthentication(&o.Spec, p)
	case *clientsecurity.RequestAuthentication:
		validateRequestAuthentication(&o.Spec, p)
	case *clientnetworking.ServiceEntry:
		validateServiceEntry(&o.Spec, p)
	case *clientnetworking.WorkloadEntry:
		validateWorkloadEntry("spec", &o.Spec, p)
	}
}
