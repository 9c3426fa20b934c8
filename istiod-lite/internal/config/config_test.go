package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/internal/conf"
)

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := Load(conf.FromMap(map[string]string{
		"MARROW_SOURCE": "kube", "CA_TRUSTED_NODE_ACCOUNTS": "ztunnel", "MARROW_SECURE_ADDR": "nowhere", "DEFAULT_WORKLOAD_CERT_TTL": "soon", "MARROW_SORCE": "x",
	}))
	if _, ok := errors.AsType[*conf.Error](err); !ok {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"MARROW_SOURCE", "CA_TRUSTED_NODE_ACCOUNTS", "MARROW_SECURE_ADDR", "DEFAULT_WORKLOAD_CERT_TTL", "MARROW_SORCE"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not reported in: %v", want, err)
		}
	}
}

func TestDefaults(t *testing.T) {
	c, err := Load(conf.FromMap(map[string]string{"MARROW_SOURCE": "file:/objects", "MARROW_TOKEN_JWKS": "/jwks.json"}))
	if err != nil {
		t.Fatal(err)
	}
	if c.SourceDir != "/objects" || c.SecureAddr != ":15012" || c.TrustDomain != "cluster.local" || len(c.Names()) < 4 {
		t.Fatalf("%+v", c)
	}
	if _, err := Load(conf.FromMap(map[string]string{"MARROW_SOURCE": "file:/objects"})); err == nil {
		t.Fatal("a file source without token keys must be refused")
	}
}
