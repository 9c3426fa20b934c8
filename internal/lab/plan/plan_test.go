package plan_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/internal/lab/plan"
)

func deployment(replicas int32, version string) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web", "version": version}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Command: []string{"x"}}}},
			},
		},
	}
}

func setReady(p *corev1.Pod, ready bool) {
	s := corev1.ConditionFalse
	if ready {
		s = corev1.ConditionTrue
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: s}}
}

func counter() func() string {
	n := uint64(0)
	return func() string { n++; return plan.Suffix(n * 7919) }
}

func TestDeployNames(t *testing.T) {
	d := deployment(2, "v1")
	r := plan.Deploy(d, nil, counter())
	if len(r.Create) != 2 || len(r.Delete) != 0 {
		t.Fatalf("creates %d, deletes %d", len(r.Create), len(r.Delete))
	}
	for _, p := range r.Create {
		hash := p.Labels[plan.HashLabel]
		if !strings.HasPrefix(p.Name, "web-"+hash+"-") || p.OwnerReferences[0].Kind != "ReplicaSet" || p.OwnerReferences[0].Name != "web-"+hash {
			t.Errorf("pod %s, owner %+v", p.Name, p.OwnerReferences)
		}
		if !plan.Owns(d, p) || p.Spec.ServiceAccountName != "default" || p.Spec.RestartPolicy != corev1.RestartPolicyAlways {
			t.Errorf("pod %+v", p.Spec)
		}
	}
	if r.Create[0].Name == r.Create[1].Name {
		t.Error("two pods of one name")
	}
	if plan.Hash(&d.Spec.Template) == plan.Hash(&deployment(2, "v2").Spec.Template) {
		t.Error("two templates of one hash")
	}
	if o := plan.Orphans(nil, r.Create); len(o) != 2 {
		t.Errorf("%d orphans of a vanished Deployment, want 2", len(o))
	}
	if o := plan.Orphans([]*appsv1.Deployment{d}, r.Create); len(o) != 0 {
		t.Errorf("%d orphans of a living Deployment", len(o))
	}
}

// TestRolloutKeepsAvailable plays rollouts against a cluster in which pods
// become ready at any time, and checks the strategy's bounds at every step.
func TestRolloutKeepsAvailable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		replicas := rapid.IntRange(0, 6).Draw(t, "replicas")
		surge := rapid.IntRange(0, 2).Draw(t, "surge")
		unavailable := rapid.IntRange(0, 2).Draw(t, "unavailable")
		if surge+unavailable == 0 {
			surge = 1
		}
		d := deployment(int32(replicas), "v1")
		s, u := intstr.FromInt(surge), intstr.FromInt(unavailable)
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u}
		suffix := counter()
		var pods []*corev1.Pod
		for range replicas {
			pods = append(pods, plan.Deploy(d, nil, suffix).Create[0])
			setReady(pods[len(pods)-1], true)
		}
		d.Spec.Template.Labels["version"] = "v2"
		hash := plan.Hash(&d.Spec.Template)
		for range 100 {
			r := plan.Deploy(d, pods, suffix)
			pods = append(pods, r.Create...)
			pods = slices.DeleteFunc(pods, func(p *corev1.Pod) bool { return slices.Contains(r.Delete, p) })
			ready := 0
			for _, p := range pods {
				if plan.IsReady(p) {
					ready++
				}
			}
			if ready < replicas-unavailable || len(pods) > replicas+surge {
				t.Fatalf("%d pods, %d ready, of %d replicas with surge %d and unavailable %d", len(pods), ready, replicas, surge, unavailable)
			}
			if len(r.Create)+len(r.Delete) == 0 && ready == len(pods) {
				break
			}
			if waiting := slices.IndexFunc(pods, func(p *corev1.Pod) bool { return !plan.IsReady(p) }); waiting >= 0 && rapid.Bool().Draw(t, "ready") {
				setReady(pods[waiting], true)
			}
		}
		for _, p := range pods {
			setReady(p, true)
		}
		for range 20 {
			r := plan.Deploy(d, pods, suffix)
			pods = slices.DeleteFunc(append(pods, r.Create...), func(p *corev1.Pod) bool { return slices.Contains(r.Delete, p) })
			for _, p := range pods {
				setReady(p, true)
			}
		}
		for _, p := range pods {
			if p.Labels[plan.HashLabel] != hash {
				t.Fatalf("pod %s of the old template is left", p.Name)
			}
		}
		if len(pods) != replicas {
			t.Fatalf("%d pods at the end, want %d", len(pods), replicas)
		}
	})
}

func TestRecreateDeletesFirst(t *testing.T) {
	d := deployment(1, "v1")
	old := plan.Deploy(d, nil, counter()).Create
	d.Spec.Template.Labels["version"] = "v2"
	d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType
	if r := plan.Deploy(d, old, counter()); len(r.Create) != 0 || len(r.Delete) != 1 {
		t.Errorf("creates %d, deletes %d", len(r.Create), len(r.Delete))
	}
	if r := plan.Deploy(d, nil, counter()); len(r.Create) != 1 {
		t.Errorf("creates %d after the old are gone", len(r.Create))
	}
}

func TestSchedule(t *testing.T) {
	nodes := []plan.Node{
		{Name: "node-1", Labels: map[string]string{plan.HostnameLabel: "node-1"}},
		{Name: "node-2", Labels: map[string]string{plan.HostnameLabel: "node-2", "disk": "fast"}},
		{Name: "node-3", Labels: map[string]string{plan.HostnameLabel: "node-3"}, Unschedulable: true},
	}
	pod := func(ns, node string, selector map[string]string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "p"}, Spec: corev1.PodSpec{NodeName: node, NodeSelector: selector}}
	}
	for name, c := range map[string]struct {
		pod   *corev1.Pod
		there []*corev1.Pod
		want  string
	}{
		"named":          {pod("a", "node-3", nil), nil, "node-3"},
		"selected":       {pod("a", "", map[string]string{plan.HostnameLabel: "node-2"}), nil, "node-2"},
		"by label":       {pod("a", "", map[string]string{"disk": "fast"}), nil, "node-2"},
		"first of equal": {pod("a", "", nil), nil, "node-1"},
		"fewest peers":   {pod("a", "", nil), []*corev1.Pod{pod("a", "node-1", nil), pod("b", "node-2", nil), pod("b", "node-2", nil)}, "node-2"},
		"fewest pods":    {pod("a", "", nil), []*corev1.Pod{pod("b", "node-1", nil)}, "node-2"},
		"nowhere":        {pod("a", "", map[string]string{"disk": "slow"}), nil, ""},
	} {
		got, err := plan.Schedule(c.pod, nodes, c.there)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s: %q %v, want %q", name, got, err, c.want)
		}
	}
}

func ranges() plan.Ranges {
	return plan.Ranges{
		V4: netip.MustParsePrefix("10.96.0.0/16"), V6: netip.MustParsePrefix("fd00:10:96::/112"),
		Reserved: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
	}
}

func service(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}},
	}}
}

func TestClusterIPsAreUnique(t *testing.T) {
	var all []*corev1.Service
	for i := range 500 {
		s := service(fmt.Sprintf("s%d", i))
		if i%2 == 0 {
			dual := corev1.IPFamilyPolicyPreferDualStack
			s.Spec.IPFamilyPolicy = &dual
		}
		if err := plan.ClusterIPs(s, ranges(), plan.Used(all, s)); err != nil {
			t.Fatal(err)
		}
		if !plan.Allocated(s) || len(plan.Addresses(s)) != 2-i%2 {
			t.Fatalf("service %d: %+v", i, s.Spec)
		}
		all = append(all, s)
	}
	seen := map[netip.Addr]string{}
	for _, s := range all {
		for _, a := range plan.Addresses(s) {
			if other, ok := seen[a]; ok {
				t.Fatalf("%s has the address of %s: %s", s.Name, other, a)
			}
			seen[a] = s.Name
		}
	}
}

func TestClusterIPs(t *testing.T) {
	v6, require := corev1.IPv6Protocol, corev1.IPFamilyPolicyRequireDualStack
	only4 := ranges()
	only4.V6 = netip.Prefix{}
	for name, c := range map[string]struct {
		edit   func(*corev1.Service)
		ranges plan.Ranges
		want   string // part of the error; "" = allocated
	}{
		"plain":            {func(*corev1.Service) {}, ranges(), ""},
		"headless":         {func(s *corev1.Service) { s.Spec.ClusterIP = "None" }, ranges(), ""},
		"external":         {func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = "ExternalName", "a.b" }, ranges(), ""},
		"given":            {func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.7.7" }, ranges(), ""},
		"given elsewhere":  {func(s *corev1.Service) { s.Spec.ClusterIP = "192.0.2.1" }, ranges(), "outside the lab's range"},
		"given twice":      {func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.1.1" }, ranges(), "belongs to service x/y"},
		"no address":       {func(s *corev1.Service) { s.Spec.ClusterIP = "ten" }, ranges(), "is no address"},
		"v6":               {func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{v6} }, ranges(), ""},
		"v6 without":       {func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{v6} }, only4, "asks for IPv6"},
		"required without": {func(s *corev1.Service) { s.Spec.IPFamilyPolicy = &require }, only4, "RequireDualStack"},
	} {
		s := service("web")
		c.edit(s)
		err := plan.ClusterIPs(s, c.ranges, map[netip.Addr]string{netip.MustParseAddr("10.96.1.1"): "x/y"})
		switch {
		case c.want == "" && (err != nil || !plan.Allocated(s)):
			t.Errorf("%s: %v, %+v", name, err, s.Spec)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestEndpointsOnlyReady(t *testing.T) {
	pod := func(name, ip string, ready bool) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", Labels: map[string]string{"app": "web"}}}
		p.Spec.Containers = []corev1.Container{{Name: "a", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}
		if ip != "" {
			p.Status.PodIPs = []corev1.PodIP{{IP: ip}, {IP: "fd00::" + ip[len(ip)-1:]}}
		}
		setReady(p, ready)
		return p
	}
	ending := pod("ending", "10.0.0.4", true)
	now := metav1.Now()
	ending.DeletionTimestamp = &now
	failed := pod("failed", "10.0.0.5", true)
	failed.Status.Phase = corev1.PodFailed
	other := pod("other", "10.0.0.6", true)
	other.Namespace = "else"
	pods := []*corev1.Pod{pod("b", "10.0.0.2", true), pod("a", "10.0.0.1", true), pod("unready", "10.0.0.3", false), ending, failed, other, pod("new", "", false)}
	names := func(s *corev1.Service) string {
		var out []string
		for _, b := range plan.Behind(s, pods) {
			out = append(out, b.Pod.Name)
		}
		return strings.Join(out, " ")
	}
	s := service("web")
	if got := names(s); got != "a b" {
		t.Errorf("behind: %s", got)
	}
	s.Spec.PublishNotReadyAddresses = true
	if got := names(s); got != "a b unready ending" {
		t.Errorf("behind, published: %s", got)
	}
	s.Spec.PublishNotReadyAddresses = false
	port := corev1.ServicePort{Port: 80, TargetPort: intstr.FromString("http")}
	if got := fmt.Sprint(plan.Backends(port, plan.Behind(s, pods), false)); got != "[10.0.0.1:8080 10.0.0.2:8080]" {
		t.Error(got)
	}
	if got := fmt.Sprint(plan.Backends(port, plan.Behind(s, pods), true)); got != "[[fd00::1]:8080 [fd00::2]:8080]" {
		t.Error(got)
	}
	port.TargetPort = intstr.FromString("nope")
	if got := plan.Backends(port, plan.Behind(s, pods), false); len(got) != 0 {
		t.Error(got)
	}
	s.Spec.Selector = nil
	if got := names(s); got != "" {
		t.Errorf("a Service without selector has %s", got)
	}
}

func TestEnv(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "shop", UID: "u", Labels: map[string]string{"gateway.networking.k8s.io/gateway-name": "w"}}}
	p.Spec.NodeName, p.Status.PodIP = "node-1", "10.0.0.1"
	ref := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	yes := true
	c := &corev1.Container{Name: "a", Env: []corev1.EnvVar{
		{Name: "NAME", ValueFrom: ref("metadata.name")},
		{Name: "GATEWAY", ValueFrom: ref("metadata.labels['gateway.networking.k8s.io/gateway-name']")},
		{Name: "IP", ValueFrom: ref("status.podIP")},
		{Name: "URL", Value: "http://$(IP):$(PORT)/$$(IP)"},
		{Name: "FROM", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Key: "k"}}},
		{Name: "MAYBE", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "no"}, Key: "k", Optional: &yes}}},
	}, EnvFrom: []corev1.EnvFromSource{{Prefix: "P_", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}}}
	src := plan.Sources{
		ConfigMaps: map[string]*corev1.ConfigMap{"cm": {Data: map[string]string{"k": "v"}}},
		Secrets:    map[string]*corev1.Secret{"s": {Data: map[string][]byte{"a": []byte("1")}, StringData: map[string]string{"b": "2"}}},
	}
	got, err := plan.Env(c, p, src)
	want := []string{"P_a=1", "P_b=2", "NAME=web-1", "GATEWAY=w", "IP=10.0.0.1", "URL=http://10.0.0.1:$(PORT)/$(IP)", "FROM=v"}
	if err != nil || !slices.Equal(got, want) {
		t.Error(err, cmp.Diff(want, got))
	}
	argv := plan.Argv(&corev1.Container{Args: []string{"--ip=$(IP)"}}, got, []string{"way", "$(IP)"})
	if !slices.Equal(argv, []string{"way", "$(IP)", "--ip=10.0.0.1"}) {
		t.Error(argv)
	}
	for _, bad := range []*corev1.EnvVarSource{ref("spec.nope"), {ConfigMapKeyRef: &corev1.ConfigMapKeySelector{Key: "x"}}, {}} {
		if _, err := plan.Env(&corev1.Container{Env: []corev1.EnvVar{{Name: "X", ValueFrom: bad}}}, p, src); err == nil || !strings.Contains(err.Error(), "env X") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"$(A)", "$$(A)", "$(", "$", "a$(B)c$(A", "$()"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out := plan.Expand(s, map[string]string{"A": "x"})
		if !strings.Contains(s, "$") && out != s {
			t.Errorf("%q became %q", s, out)
		}
	})
}

func TestCheckPod(t *testing.T) {
	ok := corev1.Container{Name: "a", Command: []string{"x"}}
	for want, s := range map[string]corev1.PodSpec{
		"":                              {Containers: []corev1.Container{ok, {Name: "w", Image: "marrowmesh/waypoint:1.2"}}},
		"spec.containers is empty":      {},
		"containers[0].name is missing": {Containers: []corev1.Container{{}}},
		"is used twice":                 {Containers: []corev1.Container{ok, ok}},
		"containers[0].command":         {Containers: []corev1.Container{{Name: "a", Image: "docker.io/other/waypoint"}}},
		"initContainers[0].command":     {Containers: []corev1.Container{ok}, InitContainers: []corev1.Container{{Name: "i"}}},
	} {
		if err := plan.CheckPod("pod", &s); (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	d := deployment(1, "v1")
	if err := plan.CheckDeployment(d); err != nil {
		t.Error(err)
	}
	d.Spec.Selector.MatchLabels["app"] = "other"
	if err := plan.CheckDeployment(d); err == nil {
		t.Error("a selector that does not match its template is taken")
	}
}

func TestEnrolled(t *testing.T) {
	ambient := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{plan.DataplaneLabel: "ambient"}}}
	pod := func(mode string, host bool) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{HostNetwork: host}}
		if mode != "" {
			p.Labels = map[string]string{plan.DataplaneLabel: mode}
		}
		return p
	}
	for i, c := range []struct {
		p    *corev1.Pod
		ns   *corev1.Namespace
		want bool
	}{
		{pod("", false), ambient, true},
		{pod("none", false), ambient, false},
		{pod("ambient", false), nil, true},
		{pod("", false), nil, false},
		{pod("", true), ambient, false},
	} {
		if got := plan.Enrolled(c.p, c.ns); got != c.want {
			t.Errorf("case %d: %t", i, got)
		}
	}
}
