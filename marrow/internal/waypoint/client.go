package waypoint

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/lab"
)

const gatewayGroup = "gateway.networking.k8s.io"

// Ref is a waypoint's Gateway in the store.
func Ref(namespace, name string) lab.Ref {
	return lab.Ref{Group: gatewayGroup, Kind: "Gateway", Namespace: namespace, Name: name}
}

// List is every waypoint of a namespace; "" = all.
func List(ctx context.Context, c *lab.Client, namespace string) ([]*gatewayv1.Gateway, error) {
	all, err := lab.Get[*gatewayv1.Gateway](ctx, c, namespace, "")
	if err != nil {
		return nil, err
	}
	var out []*gatewayv1.Gateway
	for _, g := range all {
		if Is(g) {
			out = append(out, g)
		}
	}
	return out, nil
}

// MembersOf reads what runs in a namespace.
func MembersOf(ctx context.Context, c *lab.Client, namespace string) (m Members, err error) {
	if m.Services, err = lab.Get[*corev1.Service](ctx, c, namespace, ""); err != nil {
		return m, err
	}
	if m.Pods, err = lab.Get[*corev1.Pod](ctx, c, namespace, ""); err != nil {
		return m, err
	}
	m.Deployments, err = lab.Get[*appsv1.Deployment](ctx, c, namespace, "")
	return m, err
}

// EnrolServiceAccount labels what runs as the service account; an empty name
// takes the labels away. It answers with what was labelled.
func EnrolServiceAccount(ctx context.Context, c *lab.Client, namespace, serviceAccount, name, trafficFor string) ([]lab.Ref, error) {
	m, err := MembersOf(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	var out []lab.Ref
	for _, r := range Enrol(m, serviceAccount, name, trafficFor) {
		if _, err := c.Label(ctx, r); err != nil {
			return out, err
		}
		out = append(out, r.Ref)
	}
	return out, nil
}

// Wait waits until the waypoint is programmed.
func Wait(ctx context.Context, c *lab.Client, namespace, name string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last := "it does not exist"
	for {
		gs, err := lab.Get[*gatewayv1.Gateway](ctx, c, namespace, name)
		if err == nil && len(gs) == 1 {
			cond := Programmed(gs[0])
			if cond.Status == metav1.ConditionTrue {
				return nil
			}
			last = fmt.Sprintf("%s: %s", cond.Reason, cond.Message)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waypoint %s/%s is not ready after %v: %s", namespace, name, limit, last)
		case <-tick.C:
		}
	}
}
