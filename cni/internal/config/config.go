package config

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/marrowmesh/marrow/internal/conf"
)

// Config is everything that can be set.
type Config struct {
	Node              string     `json:"node"`
	Source            string     `json:"source"` // directory of objects
	ProxySocket       string     `json:"ztunnelUds"`
	PluginSocket      string     `json:"pluginSocket"`
	SystemNamespace   string     `json:"systemNamespace"`
	ExcludeNamespaces []string   `json:"excludeNamespaces"`
	Probe4            netip.Addr `json:"hostProbeSnatIp"`
	Probe6            netip.Addr `json:"hostProbeSnatIpv6"`
	Probers           []uint32   `json:"kubeletUids"` // users whose connections to pods are probes
	IPv6              bool       `json:"ipv6"`
	DNS               bool       `json:"dnsCapture"`
	ReadyAddr         string     `json:"readyAddress"` // readiness and metrics
	AdminAddr         string     `json:"adminAddress"` // on loopback
	LogFormat         string     `json:"logFormat"`
	LogFilter         string     `json:"logFilter"`
}

// Load reads the configuration; the error is a *conf.Error with all problems.
func Load(r *conf.Reader) (*Config, error) {
	c := &Config{
		Node:              r.Required("NODE_NAME", "Kubernetes name of this node: only its pods are looked after"),
		ProxySocket:       r.Path("ZTUNNEL_UDS_ADDRESS", "/var/run/ztunnel/ztunnel.sock", "socket of the pod protocol, which the node proxy connects to"),
		PluginSocket:      r.Path("MARROW_CNI_PLUGIN_SOCKET", "/var/run/istio-cni/pluginevent.sock", "socket on which the CNI plugin asks for new pods"),
		SystemNamespace:   r.String("SYSTEM_NAMESPACE", r.String("POD_NAMESPACE", "istio-system", "namespace of this agent's pod"), "namespace of the node proxy's pods, which are never captured"),
		ExcludeNamespaces: r.List("EXCLUDE_NAMESPACES", "kube-system", "namespaces whose pods are never captured"),
		Probe4:            r.IP("HOST_PROBE_SNAT_IP", netip.MustParseAddr("169.254.7.127"), "source address that probes of this node get, IPv4"),
		Probe6:            r.IP("HOST_PROBE_SNAT_IPV6", netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"), "source address that probes of this node get, IPv6"),
		IPv6:              r.Bool("AMBIENT_IPV6", true, "redirect IPv6 as well"),
		DNS:               r.Bool("AMBIENT_DNS_CAPTURE", false, "redirect DNS to the node proxy, unless a pod's annotation says otherwise"),
		ReadyAddr:         r.Addr("MARROW_CNI_READY_ADDR", ":8000", "address of /readyz, /healthz and /metrics"),
		AdminAddr:         r.Addr("MARROW_CNI_ADMIN_ADDR", "127.0.0.1:15000", "address of the admin pages"),
		LogFormat:         r.Enum("LOG_FORMAT", "plain", []string{"plain", "json"}, "how log lines are written"),
		LogFilter:         r.String("LOG_LEVEL", "info", "level, or scope=level, comma-separated"),
	}
	c.source(r)
	c.probers(r)
	if !c.Probe4.Is4() {
		r.Fail("HOST_PROBE_SNAT_IP", c.Probe4.String(), "give an IPv4 address")
	}
	if !c.Probe6.Is6() {
		r.Fail("HOST_PROBE_SNAT_IPV6", c.Probe6.String(), "give an IPv6 address")
	}
	r.Known("AMBIENT_ENABLED")
	return c, r.Err()
}

func (c *Config) source(r *conf.Reader) {
	given := r.Required("MARROW_CNI_SOURCE", "where pods come from: file:<directory of objects>")
	dir, ok := strings.CutPrefix(given, "file:")
	if given != "" && (!ok || dir == "") {
		r.Fail("MARROW_CNI_SOURCE", given, "give file:<directory>")
	}
	c.Source = dir
}

func (c *Config) probers(r *conf.Reader) {
	for _, v := range r.List("MARROW_KUBELET_UID", "0", "users on this node whose TCP connections to pods are probes and pass without the mesh") {
		uid, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			r.Fail("MARROW_KUBELET_UID", v, "give numeric user ids, comma-separated")
			continue
		}
		c.Probers = append(c.Probers, uint32(uid))
	}
}
