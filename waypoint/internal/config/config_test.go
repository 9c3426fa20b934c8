package config

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/conf"
)

func istio() map[string]string {
	return map[string]string{
		"POD_NAME": "wp-1", "POD_NAMESPACE": "shop", "INSTANCE_IP": "10.0.0.9", "SERVICE_ACCOUNT": "wp", "XDS_ADDRESS": "istiod:15012",
		"ISTIO_META_CLUSTER_ID": "c1", "GATEWAY_NAME": "wp", "TERMINATION_GRACE_PERIOD_SECONDS": "60",
	}
}

func TestIstioEnvironment(t *testing.T) {
	c, err := Load(conf.FromMap(istio()))
	if err != nil {
		t.Fatal(err)
	}
	if c.Identity != "spiffe://cluster.local/ns/shop/sa/wp" || c.ClusterID != "c1" || c.CA.Address != "istiod:15012" {
		t.Errorf("got %+v", c)
	}
	if c.Drain != 5*time.Second || c.Deadline != 58*time.Second || c.Ports.HBONE != 15008 {
		t.Errorf("drain %v, deadline %v, ports %+v", c.Drain, c.Deadline, c.Ports)
	}
}

func TestProblemsAreJoined(t *testing.T) {
	m := istio()
	delete(m, "POD_NAME")
	m["INSTANCE_IP"], m["MARROW_NOPE"], m["LOG_FORMAT"] = "x", "1", "xml"
	_, err := Load(conf.FromMap(m))
	var all *conf.Error
	if !errors.As(err, &all) || len(all.Problems) != 4 {
		t.Fatalf("got %v, want four problems", err)
	}
	for _, name := range []string{"POD_NAME", "INSTANCE_IP", "MARROW_NOPE", "LOG_FORMAT"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named in %v", name, err)
		}
	}
}
