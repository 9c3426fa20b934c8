package config

import (
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/internal/conf"
)

func TestDefaults(t *testing.T) {
	c, err := Load(conf.FromMap(map[string]string{"NODE_NAME": "n", "MARROW_CNI_SOURCE": "file:/objects", "MARROW_KUBELET_UID": "0,1000"}))
	if err != nil {
		t.Fatal(err)
	}
	if c.Source != "/objects" || c.ProxySocket != "/var/run/ztunnel/ztunnel.sock" || c.Probe4.String() != "169.254.7.127" ||
		len(c.Probers) != 2 || c.DNS || !c.IPv6 || c.SystemNamespace != "istio-system" {
		t.Errorf("%+v", c)
	}
}

func TestRefusals(t *testing.T) {
	_, err := Load(conf.FromMap(map[string]string{
		"MARROW_CNI_SOURCE": "kubernetes", "HOST_PROBE_SNAT_IP": "fd00::1", "HOST_PROBE_SNAT_IPV6": "1.2.3.4",
		"MARROW_KUBELET_UID": "root", "AMBIENT_IPV6": "perhaps", "MARROW_CNI_SOURC": "x",
	}))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, name := range []string{"NODE_NAME", "MARROW_CNI_SOURCE", "HOST_PROBE_SNAT_IP=", "HOST_PROBE_SNAT_IPV6", "MARROW_KUBELET_UID", "AMBIENT_IPV6", "MARROW_CNI_SOURC "} {
		if !strings.Contains(err.Error()+" ", strings.TrimSuffix(name, " ")) {
			t.Errorf("%s is not in: %v", name, err)
		}
	}
}
