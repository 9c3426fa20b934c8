package gateway

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// template is the waypoint's pod: not captured by the mesh, because it ends and opens tunnels itself.
func (p plan) template() corev1.PodTemplateSpec {
	labels := map[string]string{
		kube.LabelDataplaneMode:     "none",
		"sidecar.istio.io/inject":   "false",
		kube.LabelCanonicalName:     p.name,
		kube.LabelCanonicalRevision: "latest",
	}
	for k, v := range p.labels() {
		if k != kube.LabelDataplaneMode { // a Gateway's own label does not enrol its pods
			labels[k] = v
		}
	}
	if i := p.g.Spec.Infrastructure; i != nil {
		if v, asked := i.Labels[kube.LabelDataplaneMode]; asked {
			labels[kube.LabelDataplaneMode] = string(v)
		}
	}
	annotations := over(map[string]string{
		"prometheus.io/scrape": "true",
		"prometheus.io/port":   "15020",
		"prometheus.io/path":   "/stats/prometheus",
	}, p.annotations())
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations},
		Spec: corev1.PodSpec{
			ServiceAccountName: p.account,
			Containers:         []corev1.Container{p.container()},
		},
	}
}

func (p plan) container() corev1.Container {
	ready := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
		Path: "/healthz/ready", Port: intstr.FromInt32(statusPort), Scheme: corev1.URISchemeHTTP,
	}}
	return corev1.Container{
		Name:  containerName,
		Image: p.Image,
		Args: []string{
			"proxy", p.role(), "--domain", "$(POD_NAMESPACE).svc." + p.ClusterDomain,
			"--serviceCluster", p.account + ".$(POD_NAMESPACE)",
		},
		Env: p.env(),
		Ports: []corev1.ContainerPort{
			{Name: "metrics", ContainerPort: metricsPort, Protocol: corev1.ProtocolTCP},
			{Name: "status-port", ContainerPort: statusPort, Protocol: corev1.ProtocolTCP},
			{Name: "http-envoy-prom", ContainerPort: proxyPromPort, Protocol: corev1.ProtocolTCP},
		},
		StartupProbe:   &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: 30, SuccessThreshold: 1},
		ReadinessProbe: &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 15, TimeoutSeconds: 1, FailureThreshold: 4, SuccessThreshold: 1},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(bool),
			Privileged:               new(bool),
			RunAsNonRoot:             new(true),
			ReadOnlyRootFilesystem:   new(true),
			RunAsUser:                new(int64(serverSideUser)),
			RunAsGroup:               new(int64(serverSideUser)),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
}

func (p plan) env() []corev1.EnvVar {
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{
			FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path},
		}}
	}
	owner := "kubernetes://apis/apps/v1/namespaces/" + p.g.Namespace + "/deployments/" + p.name
	return []corev1.EnvVar{
		{Name: "XDS_ADDRESS", Value: p.XDSAddress},
		{Name: "CA_ADDRESS", Value: p.CAAddress},
		field("POD_NAME", "metadata.name"),
		field("POD_NAMESPACE", "metadata.namespace"),
		field("INSTANCE_IP", "status.podIP"),
		field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		field("NODE_NAME", "spec.nodeName"),
		field("GATEWAY_NAME", "metadata.labels['"+kube.LabelGatewayName+"']"),
		{Name: "TRUST_DOMAIN", Value: p.TrustDomain},
		{Name: "ISTIO_META_CLUSTER_ID", Value: p.ClusterID},
		{Name: "ISTIO_META_WORKLOAD_NAME", Value: p.name},
		{Name: "ISTIO_META_OWNER", Value: owner},
	}
}
