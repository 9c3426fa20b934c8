package waypoint

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/marrowmesh/marrow/internal/testkit/tokencorpus"
)

// TestEnvoyTokens puts the corpus of tokens to a stock Envoy; phases puts it to our own waypoint, with the same derived resources.
func TestEnvoyTokens(t *testing.T) {
	a, err := txtar.ParseFile("testdata/corpus.txtar")
	if err != nil {
		t.Fatal(err)
	}
	b := startBench(t, string(section(a, "services")), string(section(a, "objects.yaml")))
	cases, err := tokencorpus.Cases(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return b.tunnel(account("shop", "client"), "10.96.0.1:80")
		},
		DisableKeepAlives: true,
	}}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			req, err := http.NewRequest(c.Method, "http://web.shop"+c.Path, nil)
			if err != nil {
				t.Fatal(err)
			}
			maps.Copy(req.Header, c.Header)
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			challenge := resp.Header.Get("Www-Authenticate")
			t.Logf("%d %q %q", resp.StatusCode, body, challenge)
			if resp.StatusCode != c.Status {
				t.Errorf("status %d, want %d", resp.StatusCode, c.Status)
			}
			if c.Body != "" && string(body) != c.Body {
				t.Errorf("body %q, want %q", body, c.Body)
			}
			if c.Detail != "" && challenge != `Bearer realm="http://web.shop`+c.Path[:min(len(c.Path), 256)]+`"`+c.Detail || c.Detail == "" && challenge != "" {
				t.Errorf("challenge %q", challenge)
			}
			for name, want := range c.Seen {
				if got := strings.Join(resp.Header["Saw-"+name], ","); got != want {
					t.Errorf("the application saw %s: %q, want %q", name, got, want)
				}
			}
			if got := resp.Header.Get("x-path"); c.URI != "" && got != c.URI {
				t.Errorf("the application saw %q, want %q", got, c.URI)
			}
		})
	}
}
