package kube_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

type labels = map[string]string

func TestSelects(t *testing.T) {
	for _, c := range []struct {
		selector, labels labels
		want             bool
	}{
		{nil, labels{"a": "b"}, false},
		{labels{}, nil, false},
		{labels{"a": "b"}, nil, false},
		{labels{"a": ""}, labels{"b": "c"}, false}, // an absent label is not an empty one
		{labels{"a": "b"}, labels{"a": "b", "c": "d"}, true},
		{labels{"a": "b", "c": "d"}, labels{"a": "b"}, false},
	} {
		if got := kube.Selects(c.selector, c.labels); got != c.want {
			t.Errorf("%v selects %v: %v", c.selector, c.labels, got)
		}
		anchor, ok := kube.SelectorAnchor("ns", c.selector)
		if ok != (len(c.selector) > 0) {
			t.Errorf("%v has anchor %v, %v", c.selector, anchor, ok)
		}
		if c.want {
			found := false
			for _, a := range kube.LabelAnchors("ns", c.labels) {
				found = found || a == anchor
			}
			if !found {
				t.Errorf("%v selects %v but is not found by anchor", c.selector, c.labels)
			}
		}
	}
}

func TestServicePortProtocol(t *testing.T) {
	app := func(s string) *string { return &s }
	for _, c := range []struct {
		port corev1.ServicePort
		want kube.Protocol
	}{
		{corev1.ServicePort{Name: "http", Port: 80}, kube.HTTP},
		{corev1.ServicePort{Name: "HTTP2-x", Port: 80}, kube.HTTP2},
		{corev1.ServicePort{Name: "grpc-web", Port: 80}, kube.GRPCWeb},
		{corev1.ServicePort{Name: "grpc-webby", Port: 80}, kube.GRPCWeb},
		{corev1.ServicePort{Name: "grpc-x", Port: 80}, kube.GRPC},
		{corev1.ServicePort{Name: "httpx", Port: 80}, kube.Unsupported},
		{corev1.ServicePort{Name: "db", Port: 3306}, kube.TCP},
		{corev1.ServicePort{Name: "http", Port: 53, Protocol: corev1.ProtocolUDP}, kube.UDP},
		{corev1.ServicePort{Name: "tcp", Port: 80, AppProtocol: app("kubernetes.io/h2c")}, kube.HTTP2},
		{corev1.ServicePort{Name: "tcp", Port: 80, AppProtocol: app("kubernetes.io/ws")}, kube.HTTP},
		{corev1.ServicePort{Name: "tcp", Port: 80, AppProtocol: app("kubernetes.io/wss")}, kube.HTTPS},
		{corev1.ServicePort{Name: "http", Port: 80, AppProtocol: app("example.com/own")}, kube.Unsupported},
		{corev1.ServicePort{Name: "http", Port: 80, AppProtocol: app("tls")}, kube.TLS},
	} {
		if got := kube.ServicePortProtocol(c.port); got != c.want {
			t.Errorf("%+v: %v, want %v", c.port, got, c.want)
		}
	}
}

func TestBindingOf(t *testing.T) {
	nn := func(ns, n string) types.NamespacedName { return types.NamespacedName{Namespace: ns, Name: n} }
	const (
		use, useNS       = kube.LabelUseWaypoint, kube.LabelUseWaypointNamespace
		canary, canaryNS = kube.LabelUseWaypointCanary, kube.LabelUseWaypointCanaryNamespace
	)
	for name, c := range map[string]struct {
		own, ns labels
		want    kube.Binding
	}{
		"nothing":                      {nil, nil, kube.Binding{}},
		"own":                          {labels{use: "w"}, labels{use: "x"}, kube.Binding{Wanted: true, Waypoint: nn("shop", "w")}},
		"own none stops":               {labels{use: "none"}, labels{use: "x"}, kube.Binding{}},
		"own empty is a name":          {labels{use: ""}, labels{use: "x"}, kube.Binding{Wanted: true, Waypoint: nn("shop", "")}},
		"namespace":                    {nil, labels{use: "x"}, kube.Binding{Wanted: true, Inherited: true, Waypoint: nn("shop", "x")}},
		"namespace none":               {nil, labels{use: "none"}, kube.Binding{Inherited: false}},
		"namespace's namespace":        {nil, labels{use: "x", useNS: "infra"}, kube.Binding{Wanted: true, Inherited: true, Waypoint: nn("infra", "x")}},
		"levels do not mix":            {labels{use: "w"}, labels{useNS: "infra"}, kube.Binding{Wanted: true, Waypoint: nn("shop", "w")}},
		"own namespace without a name": {labels{useNS: "infra"}, labels{use: "x"}, kube.Binding{Wanted: true, Inherited: true, Waypoint: nn("shop", "x")}},
		"canary":                       {labels{use: "w", canary: "c", canaryNS: "infra"}, nil, kube.Binding{Wanted: true, Waypoint: nn("shop", "w"), CanaryWanted: true, Canary: nn("infra", "c")}},
		"canary alone":                 {labels{canary: "c"}, nil, kube.Binding{}},
		"own primary, namespace's canary": {
			labels{use: "w"}, labels{use: "x", canary: "c"}, kube.Binding{Wanted: true, Waypoint: nn("shop", "w")},
		},
		"namespace's primary, own canary": {
			labels{canary: "c"},
			labels{use: "x", canary: "d"},
			kube.Binding{Wanted: true, Inherited: true, Waypoint: nn("shop", "x"), CanaryWanted: true, Canary: nn("shop", "c")},
		},
		"no canary by none": {labels{canary: "none"}, labels{use: "x", canary: "d"}, kube.Binding{Wanted: true, Inherited: true, Waypoint: nn("shop", "x")}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, kube.BindingOf(c.own, c.ns, "shop")); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestCanaryWeight(t *testing.T) {
	for text, want := range map[string]int{"0": 0, "100": 100, "37": 37, "101": -1, "-1": -1, "1.5": -1, "": -1, "10%": -1} {
		got, _, ok := kube.CanaryWeight(labels{kube.AnnotationCanaryWeight: text}, labels{kube.AnnotationCanaryWeight: "50"})
		if ok != (want >= 0) || ok && int(got) != want {
			t.Errorf("%q: %d, %v", text, got, ok)
		}
	}
	if got, _, ok := kube.CanaryWeight(nil, labels{kube.AnnotationCanaryWeight: "50"}); !ok || got != 50 {
		t.Errorf("inherited: %d, %v", got, ok)
	}
	if got, _, ok := kube.CanaryWeight(nil, nil); !ok || got != 0 {
		t.Errorf("absent: %d, %v", got, ok)
	}
}

func TestIngressUsesWaypoint(t *testing.T) {
	l := kube.LabelIngressUseWaypoint
	for _, c := range []struct {
		own, ns      labels
		use, present bool
	}{
		{nil, nil, false, false},
		{nil, labels{l: "true"}, true, true},
		{labels{l: "false"}, labels{l: "true"}, false, true},
		{labels{l: "yes"}, labels{l: "true"}, false, true},
		{labels{l: "T"}, nil, true, true},
	} {
		if use, present := kube.IngressUsesWaypoint(c.own, c.ns); use != c.use || present != c.present {
			t.Errorf("%v in %v: %v, %v", c.own, c.ns, use, present)
		}
	}
}

func TestInboundBindingOf(t *testing.T) {
	for text, want := range map[string]*kube.InboundBinding{
		"PROXY": {Proxy: true}, "PROXY/15088": {Proxy: true, Port: 15088}, "NONE": {}, "NONE/80": {Port: 80},
		"proxy": nil, "": nil, "PROXY/": nil, "PROXY/99999": nil, "PROXY/80/81": nil,
	} {
		got, ok := kube.InboundBindingOf(text)
		if ok != (want != nil) || ok && got != *want {
			t.Errorf("%q: %v, %v", text, got, ok)
		}
	}
}

func TestWorkloadName(t *testing.T) {
	pod := func(kind, owner string, l labels) *corev1.Pod {
		yes := true
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Name: "pod-1", GenerateName: "pod-", Labels: l,
			OwnerReferences: []metav1.OwnerReference{{Kind: kind, Name: owner, Controller: &yes}},
		}}
	}
	bare := pod("ReplicaSet", "web-6f7", labels{"pod-template-hash": "6f7"})
	bare.GenerateName = ""
	for _, c := range []struct {
		pod  *corev1.Pod
		want string
	}{
		{pod("ReplicaSet", "web-6f7", labels{"pod-template-hash": "6f7"}), "web"},
		{pod("ReplicaSet", "web-6f7", labels{"rollouts-pod-template-hash": "6f7"}), "web"},
		{pod("ReplicaSet", "web-6f7", labels{"pod-template-hash": "abc"}), "web-6f7"},
		{pod("ReplicaSet", "web-6f7", nil), "web-6f7"},
		{pod("ReplicationController", "web-1", labels{"deploymentconfig": "web"}), "web"},
		{pod("Job", "job-28913045", nil), "job"},
		{pod("Job", "job-2891304", nil), "job-2891304"},
		{pod("Job", "job-28913045123", nil), "job-28913045123"},
		{pod("Job", "job-2891304x", nil), "job-2891304x"},
		{pod("StatefulSet", "db", nil), "db"},
		{pod("StatefulSet", "db", labels{kube.LabelWorkloadName: "given"}), "given"},
		{bare, "pod-1"},
	} {
		if got := kube.WorkloadName(c.pod); got != c.want {
			t.Errorf("owner %v: %s, want %s", c.pod.OwnerReferences, got, c.want)
		}
	}
}

func TestTargetPort(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: 8080}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
		}}},
		InitContainers: []corev1.Container{
			{Ports: []corev1.ContainerPort{{Name: "once", ContainerPort: 1}}},
			{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 2}, {Name: "http", ContainerPort: 3}}},
		},
	}}
	for _, c := range []struct {
		target intstr.IntOrString
		want   uint32
		ok     bool
	}{
		{intstr.FromInt32(9000), 9000, true},
		{intstr.FromInt32(0), 80, true},
		{intstr.FromString("http"), 8080, true},
		{intstr.FromString("side"), 2, true},
		{intstr.FromString("once"), 0, false},
		{intstr.FromString("dns"), 0, false},
		{intstr.FromString("none"), 0, false},
	} {
		got, ok := kube.TargetPort(pod, corev1.ServicePort{Port: 80, TargetPort: c.target})
		if got != c.want || ok != c.ok {
			t.Errorf("%v: %d, %v", c.target, got, ok)
		}
	}
}

func TestLocality(t *testing.T) {
	for text, want := range map[string]kube.Locality{
		"": {}, "eu": {Region: "eu"}, "eu/1": {Region: "eu", Zone: "1"}, "eu/1/r/2": {Region: "eu", Zone: "1", Subzone: "r/2"},
	} {
		if got := kube.ParseLocality(text); got != want {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestCompareAge(t *testing.T) {
	at := func(ns, n string, sec int64) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: n, CreationTimestamp: metav1.NewTime(time.Unix(sec, 0))}}
	}
	for _, c := range []struct {
		a, b *corev1.Pod
		want int
	}{
		{at("z", "z", 1), at("a", "a", 2), -1},
		{at("a", "b", 1), at("b", "a", 1), -1},
		{at("a", "b", 1), at("a", "a", 1), 1},
		{at("a", "a", 1), at("a", "a", 1), 0},
	} {
		if got := kube.CompareAge(c.a, c.b); got != c.want {
			t.Errorf("%v against %v: %d", c.a.ObjectMeta, c.b.ObjectMeta, got)
		}
	}
}
