//go:build lab

package envoy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// shopCertificate is a Secret's YAML and the roots that verify it.
func shopCertificate(t *testing.T) (yaml string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"*.example.com"},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(chain)
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: shop-cert, namespace: shop}\ntype: kubernetes.io/tls\ndata: {tls.crt: %s, tls.key: %s}\n",
		base64.StdEncoding.EncodeToString(chain), base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))), roots
}

// door is a gateway in a lab as the host reaches it.
type door struct {
	t      *testing.T
	ports  map[string]string // by port of the gateway
	client *http.Client
}

func openDoor(t *testing.T, name, command string) *door {
	t.Helper()
	up := []string{"lab", "up", "--name", name, "--detach", "-f", "../../manifests/samples/shop"}
	if command != "" {
		up = append(up, "--waypoint-command", command)
	}
	if _, err := run(t, 3*time.Minute, up...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, marrow(t), "lab", "down", name).CombinedOutput(); err != nil {
			t.Errorf("lab down: %v\n%s", err, out)
		}
	})
	l := &lab{t: t, name: name}
	l.must("lab", "label", "ns", "shop", "istio.io/dataplane-mode=ambient")
	text, roots := shopCertificate(t)
	file := filepath.Join(t.TempDir(), "secret.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l.must("lab", "apply", "-f", file)
	l.must("lab", "apply", "-f", "../../manifests/samples/gateway")
	l.must("lab", "wait", "--timeout", "60s")
	d := &door{t: t, ports: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, marrow(t), "--lab", name, "lab", "forward", "svc/front-istio", "0:443", "0:80", "-n", "shop")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	for s := bufio.NewScanner(out); len(d.ports) < 2 && s.Scan(); {
		f := strings.Fields(s.Text())
		d.ports[f[len(f)-1]] = f[0]
	}
	d.client = &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots},
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				_, port, _ := net.SplitHostPort(addr)
				var d2 net.Dialer
				return d2.DialContext(ctx, "tcp", d.ports[port])
			},
		},
	}
	t.Cleanup(d.client.CloseIdleConnections)
	return d
}

// ask is one answer in few words.
func (d *door) ask(url string, header ...string) string {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return "no answer"
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return fmt.Sprintf("%d %s HTTP/%d app=%s location=%s", resp.StatusCode, resp.Header.Get("Server"), resp.ProtoMajor, resp.Header.Get("X-Marrow-App"), resp.Header.Get("Location"))
}

func (d *door) observe() map[string]string {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.HasPrefix(d.ask("https://shop.example.com/"), "200") && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
	}
	const n = 300
	second := 0
	for range n {
		switch got := d.ask("https://shop.example.com/catalog/x"); {
		case strings.Contains(got, "app=catalog/v2"):
			second++
		case !strings.Contains(got, "app=catalog/v1"):
			d.t.Errorf("canary: %s", got)
		}
	}
	// A tenth of 300 is 30; outside of these bounds is less likely than one in a million.
	if second < 7 || second > 60 {
		d.t.Errorf("%d of %d went to v2, want about 30", second, n)
	}
	return map[string]string{
		"root":        d.ask("https://shop.example.com/"),
		"header":      d.ask("https://shop.example.com/catalog", "X-Version", "v2"),
		"other host":  d.ask("https://other.example.com/"),
		"not ours":    d.ask("https://elsewhere.org/"),
		"redirect":    d.ask("http://shop.example.com/a?b=c"),
		"not catalog": d.ask("https://shop.example.com/catalogue"),
	}
}

// TestGatewayLikeEnvoy: the same objects give the same answers to a host outside with our gateway and with Envoy in its place.
func TestGatewayLikeEnvoy(t *testing.T) {
	envoy := waypointCommand(t)
	theirs := openDoor(t, fmt.Sprintf("door-envoy-%d", os.Getpid()), envoy).observe()
	ours := openDoor(t, fmt.Sprintf("door-own-%d", os.Getpid()), "").observe()
	if !reflect.DeepEqual(ours, theirs) {
		t.Errorf("ours   %v\nEnvoy's %v", ours, theirs)
	}
	for what, want := range map[string]string{
		"root": "200 istio-envoy HTTP/2 app=web/v1 location=", "header": "200 istio-envoy HTTP/2 app=catalog/v2 location=",
		"other host": "404 istio-envoy HTTP/2 app= location=", "not ours": "no answer", "redirect": "301 istio-envoy HTTP/1 app= location=https://shop.example.com/a?b=c",
		"not catalog": "200 istio-envoy HTTP/2 app=web/v1 location=",
	} {
		if ours[what] != want {
			t.Errorf("%s: %s, want %s", what, ours[what], want)
		}
	}
}
