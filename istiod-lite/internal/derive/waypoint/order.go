package waypoint

import (
	"cmp"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// byAge sorts objects by age, then namespace and name: the precedence between objects everywhere in the mesh.
func byAge[T metav1.Object](objects []T) []T {
	out := slices.Clone(objects)
	slices.SortStableFunc(out, func(a, b T) int { return compareAge(a, b) })
	return out
}

func compareAge(a, b metav1.Object) int {
	if c := a.GetCreationTimestamp().Compare(b.GetCreationTimestamp().Time); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}
