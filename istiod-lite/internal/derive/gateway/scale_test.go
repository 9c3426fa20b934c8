package gateway

import (
	"bytes"
	"os"
	"strings"
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// TestAutoscaler: the sample scales what is made for a waypoint of that name, and its budget finds those pods.
func TestAutoscaler(t *testing.T) {
	raw, err := os.ReadFile("../../../../manifests/samples/scale/waypoint.yaml")
	if err != nil {
		t.Fatal(err)
	}
	docs := bytes.Split(raw, []byte("\n---\n"))
	if len(docs) != 2 {
		t.Fatalf("%d objects", len(docs))
	}
	var scaler autoscalingv2.HorizontalPodAutoscaler
	var budget policyv1.PodDisruptionBudget
	for i, into := range []any{&scaler, &budget} {
		if err := yaml.UnmarshalStrict(docs[i], into); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t, strings.ReplaceAll(shopWaypoint, "name: waypoint,", "name: waypoint-catalog,"))
	w.settle(t)
	d := w.in.Deployments[0]
	if target := scaler.Spec.ScaleTargetRef; target.Kind != "Deployment" || target.APIVersion != "apps/v1" || target.Name != d.Name || scaler.Namespace != d.Namespace {
		t.Errorf("scales %+v, the waypoint's deployment is %s/%s", target, d.Namespace, d.Name)
	}
	selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
	if err != nil || !selector.Matches(labels.Set(d.Spec.Template.Labels)) || budget.Namespace != d.Namespace {
		t.Errorf("the budget is for %v, the pods have %v, %v", selector, d.Spec.Template.Labels, err)
	}
	for _, m := range scaler.Spec.Metrics {
		asks := !d.Spec.Template.Spec.Containers[0].Resources.Requests.Cpu().IsZero()
		if m.Resource == nil || m.Resource.Target.Type == autoscalingv2.UtilizationMetricType && !asks {
			t.Errorf("%+v is a share of a request, and the pods ask for nothing", m)
		}
	}
}
