package manifest

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is any typed Kubernetes, Gateway API or Istio object.
type Object interface {
	metav1.Object
	runtime.Object
}

// Key names an object independently of its version.
type Key struct {
	Group     string // empty for the core group
	Kind      string
	Namespace string // empty for cluster-scoped kinds
	Name      string
}

// String returns "Kind.group/namespace/name"; the core group and an absent namespace leave nothing behind.
func (k Key) String() string {
	s := k.Kind
	if k.Group != "" {
		s += "." + k.Group
	}
	if k.Namespace != "" {
		s += "/" + k.Namespace
	}
	return s + "/" + k.Name
}

// IsZero says that k names nothing.
func (k Key) IsZero() bool { return k == Key{} }

// KeyOf names o. The Go type decides group and kind, so objects built in code need no TypeMeta.
func KeyOf(o Object) Key {
	t := typeOf(o)
	return Key{Group: t.group, Kind: t.kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// New returns an empty object of the kind, with its TypeMeta set.
func New(group, kind string) (Object, bool) {
	o := blank(group, kind)
	if o == nil {
		return nil, false
	}
	setType(o)
	return o, true
}

// Namespaced says whether objects of the kind live in a namespace.
func Namespaced(group, kind string) bool {
	switch {
	case group == "" && (kind == "Namespace" || kind == "Node"), kind == "GatewayClass":
		return false
	}
	return true
}

func setType(o Object) {
	o.GetObjectKind().SetGroupVersionKind(typeOf(o).gvk())
}
