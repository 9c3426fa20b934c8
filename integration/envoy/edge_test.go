//go:build lab

package envoy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// border is a lab's front doors as this host reaches them, and what is needed to knock.
type border struct {
	t       *testing.T
	lab     *lab
	dir     string
	doors   map[string]string // "<gateway>:<port>" -> address on this host
	roots   string            // file that verifies the servers
	clients map[string][2]string
	self    string // this host as the gateways see it
	envoy   bool
}

// check is one question that both proxies are asked. It is true of ours what want says, and of Envoy too, unless envoys says else.
type check struct {
	name   string
	args   []string // of curl; the URL names the gateway's port, not this host's
	show   func(*border, answer) string
	want   string
	envoys string // where Envoy differs; docs/compatibility.md says why
}

// answer is what curl got.
type answer struct {
	exit   int
	status string // "200 HTTP/2"
	header http.Header
	body   string
}

func (a answer) app() string {
	name, _, _ := strings.Cut(a.header.Get("X-Marrow-App"), "/")
	return name
}

// plain is status, protocol and who answered, or that nobody did.
func plain(_ *border, a answer) string {
	if a.exit != 0 {
		return "no answer"
	}
	return strings.TrimSpace(a.status + " " + a.app())
}

// version is who answered, with its version.
func version(_ *border, a answer) string { return a.header.Get("X-Marrow-App") }

// location is where a redirect leads.
func location(_ *border, a answer) string { return a.status + " " + a.header.Get("Location") }

// seen shows headers as the application saw them.
func seen(names ...string) func(*border, answer) string {
	return func(b *border, a answer) string {
		var body struct{ Headers map[string]string }
		if err := json.Unmarshal([]byte(a.body), &body); err != nil {
			return a.status + " " + err.Error()
		}
		var out []string
		for _, n := range names {
			out = append(out, n+"="+body.Headers[n])
		}
		text := strings.Join(out, " ")
		if b.self != "" {
			text = strings.ReplaceAll(text, b.self, "SELF")
		}
		return text
	}
}

// curl asks by gateway.
func (b *border) curl(gateway string, args ...string) answer {
	b.t.Helper()
	out, head := filepath.Join(b.dir, "body"), filepath.Join(b.dir, "head")
	_ = os.Remove(head)
	all := []string{"-sS", "-o", out, "-D", head, "-w", "%{http_code} HTTP/%{http_version}", "--max-time", "10", "--cacert", b.roots}
	for door, at := range b.doors {
		if port, ok := strings.CutPrefix(door, gateway+":"); ok {
			all = append(all, "--connect-to", ":"+port+":"+at)
		}
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "curl", append(all, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	a := answer{status: strings.TrimSpace(stdout.String()), header: http.Header{}}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		a.exit = exit.ExitCode()
	} else if err != nil {
		b.t.Fatalf("curl: %v", err)
	}
	raw, _ := os.ReadFile(out)
	_ = os.Remove(out)
	a.body = string(raw)
	heads, _ := os.ReadFile(head)
	for line := range strings.Lines(string(heads)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			a.header.Add(name, strings.TrimSpace(value))
		}
	}
	return a
}

// forward gives the ports of a gateway an address on this host.
func (b *border) forward(gateway string, ports ...string) {
	b.t.Helper()
	args := []string{"--lab", b.lab.name, "lab", "forward", "svc/" + gateway + "-istio", "-n", "shop"}
	for _, p := range ports {
		args = append(args, "0:"+p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, marrow(b.t), args...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	s := bufio.NewScanner(out)
	for range ports {
		if !s.Scan() {
			b.t.Fatalf("lab forward of %s ended early", gateway)
		}
		f := strings.Fields(s.Text())
		b.doors[gateway+":"+f[len(f)-1]] = f[0]
	}
}

// until asks till the answer is as wanted: the configuration has arrived then.
func (b *border) until(want, gateway string, args ...string) {
	b.t.Helper()
	got := ""
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if got = plain(b, b.curl(gateway, args...)); got == want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatalf("%s %v: after 30 s still %q, want %q", gateway, args, got, want)
}

// apply writes a file with these replacements and applies it.
func (b *border) apply(text string, replace ...string) {
	b.t.Helper()
	file := filepath.Join(b.dir, "objects.yaml")
	if err := os.WriteFile(file, []byte(strings.NewReplacer(replace...).Replace(text)), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.lab.must("lab", "apply", "-f", file)
}

// run asks every question.
func (b *border) run(gateway string, checks []check) {
	b.t.Helper()
	for _, c := range checks {
		show, want := c.show, c.want
		if show == nil {
			show = plain
		}
		if b.envoy && c.envoys != "" {
			want = c.envoys
		}
		if got := show(b, b.curl(gateway, c.args...)); got != want {
			b.t.Errorf("%s: got %q, want %q", c.name, got, want)
		}
	}
}

// newBorder starts a lab of the shop, in the mesh, with this program as its proxies; empty = ours.
func newBorder(t *testing.T, name, command string) *border {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("MARROW_REQUIRE_LAB") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
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
	b := &border{t: t, lab: &lab{t: t, name: name}, dir: t.TempDir(), doors: map[string]string{}, clients: map[string][2]string{}, envoy: command != ""}
	b.lab.must("lab", "label", "ns", "shop", "istio.io/dataplane-mode=ambient")
	return b
}

// nothingNacked asks the control plane whether some proxy refused what it was told.
func (b *border) nothingNacked() {
	b.t.Helper()
	pages := b.lab.must("lab", "exec", "istiod-lite", "-n", "istio-system", "--", "curl", "-sS", "http://127.0.0.1:15014/metrics")
	if !strings.Contains(pages, "\npilot_xds ") {
		b.t.Errorf("the control plane tells nothing:\n%s", pages)
	}
	for line := range strings.Lines(pages) {
		if strings.HasPrefix(line, "pilot_total_xds_rejects") && !strings.HasSuffix(strings.TrimSpace(line), " 0.0") {
			b.t.Errorf("refused: %s", line)
		}
	}
}

// atBothBorders runs a test with our gateway and with Envoy in its place.
func atBothBorders(t *testing.T, test func(*border)) {
	t.Helper()
	command := waypointCommand(t)
	for name, with := range map[string]string{"marrow": "", "envoy": command} {
		t.Run(name, func(t *testing.T) {
			b := newBorder(t, fmt.Sprintf("edge-%s-%d", name, os.Getpid()), with)
			test(b)
			b.nothingNacked()
		})
	}
}
