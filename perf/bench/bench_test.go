package bench

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/marrowmesh/marrow/perf/account"
	"github.com/marrowmesh/marrow/perf/latency"
	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/result"
	"github.com/marrowmesh/marrow/perf/scenario"
)

func find(t *testing.T, name string) scenario.Scenario {
	t.Helper()
	all, err := scenario.Match(scenario.All(), name)
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

// someUse is 1 s of CPU at the source, 2 s at the destination, 4 s of the machine.
func someUse() used {
	return used{
		usage: map[string]account.Usage{nodeA: {CPU: time.Second}, nodeB: {CPU: 2 * time.Second}},
		busy:  4 * time.Second,
	}
}

func TestFill(t *testing.T) {
	h := &latency.Histogram{}
	h.Record(100 * time.Nanosecond)
	r := load.Report{Seconds: 2, Bytes: 4e9, Ops: 1000, Opens: 1010, Latency: h, Late: h}
	for _, c := range []struct {
		scenario string
		mesh     bool
		want     map[string]float64
		absent   []string
	}{
		{"bulk-1-up", true, map[string]float64{"gb_per_s": 2, "cpu_s_per_gb_proxies": 0.75, "cpu_s_per_gb_source": 0.25, "cpu_s_per_gb_destination": 0.5, "cpu_s_per_gb_machine": 1}, []string{"rt_per_s", "rtt_p50_us"}},
		{"bulk-1-up", false, map[string]float64{"gb_per_s": 2, "cpu_s_per_gb_machine": 1}, []string{"cpu_s_per_gb_proxies", "cpu_s_per_gb_source"}},
		{"rt-100-1", true, map[string]float64{"rt_per_s": 500, "cpu_us_per_rt_proxies": 3000, "cpu_us_per_rt_machine": 4000, "rtt_p50_us": 0.1, "rtt_p99_us": 0.1}, []string{"gb_per_s"}},
		{"open-100-1000", false, map[string]float64{"rtt_p50_us": 0.1, "offered_per_s": 1000, "generator_late_p99_us": 0.1}, []string{"cpu_us_per_rt_proxies"}},
		{"conn-warm-16", true, map[string]float64{"conns_per_cpu_s": 1000.0 / 3, "tunnels_per_conn": 0.01, "conn_p99_us": 0.1}, []string{"rtt_p50_us"}},
		{"handshake", true, map[string]float64{"cpu_us_per_handshake_destination": 2000}, []string{"conn_p50_us"}},
	} {
		got := map[string]float64{}
		fill(got, find(t, c.scenario), r, someUse(), c.mesh)
		for name, want := range c.want {
			if v, ok := got[name]; !ok || v < want*0.999 || v > want*1.001 {
				t.Errorf("%s: %s = %v, want %v", c.scenario, name, v, want)
			}
		}
		for _, name := range c.absent {
			if v, ok := got[name]; ok {
				t.Errorf("%s: %s = %v was not measured", c.scenario, name, v)
			}
		}
	}
	// A phase in which nothing arrived has no figures per byte.
	got := map[string]float64{}
	fill(got, find(t, "bulk-1-up"), load.Report{Seconds: 1}, someUse(), true)
	if _, ok := got["cpu_s_per_gb_proxies"]; ok {
		t.Errorf("a price per byte without bytes: %v", got)
	}
}

func TestCounts(t *testing.T) {
	r := load.Report{Bytes: 100e6, Ops: 1000}
	c := counts{
		calls: map[string]float64{nodeA: 4000, nodeB: 3000}, switches: 500, allocs: map[string]float64{nodeA: 10, nodeB: 40},
		frames: map[string]float64{nodeA: 20, nodeB: 5}, copied: map[string]float64{nodeA: 7},
	}
	got := map[string]float64{}
	c.fill(got, find(t, "bulk-1-up"), r)
	want := map[string]float64{"syscalls_per_mb_source": 40, "syscalls_per_mb_destination": 30, "switches_per_mb": 5, "allocs_per_mb": 0.5, "frames_per_mb": 0.25}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s = %v, want %v", name, got[name], v)
		}
	}
	if n, ok := got["copied_bytes_per_mb"]; ok {
		t.Errorf("%v bytes copied, but one proxy does not tell", n)
	}
	// A peer publishes no allocations; without the right to count there are no calls.
	c.allocs, c.frames, c.partial = map[string]float64{nodeA: 1}, nil, true
	got = map[string]float64{}
	c.fill(got, find(t, "rt-100-1"), r)
	if len(got) != 1 || got["switches_per_rt"] != 0.5 {
		t.Errorf("%v", got)
	}
}

func TestSubtractRest(t *testing.T) {
	u := someUse()
	u.subtract(used{usage: map[string]account.Usage{nodeA: {CPU: 100 * time.Millisecond}, nodeB: {CPU: time.Hour}}}, 2)
	if u.usage[nodeA].CPU != 800*time.Millisecond || u.usage[nodeB].CPU != 0 {
		t.Errorf("%+v", u.usage)
	}
}

func TestSampleValue(t *testing.T) {
	text := "# TYPE marrow_tunnel_frames_total counter\nmarrow_tunnel_frames_total 1.5e+03\nother{a=\"marrow_tunnel_frames_total\"} 7\n"
	if n, ok := sampleValue(text, "marrow_tunnel_frames_total"); !ok || n != 1500 {
		t.Errorf("%v, %v", n, ok)
	}
	if n, ok := sampleValue(text, "marrow_tunnel_copied_bytes_total"); ok {
		t.Errorf("%v of a series that is not there", n)
	}
	now := map[string]float64{"a": 5, "b": 7}
	subtract(now, map[string]float64{"a": 2})
	if len(now) != 1 || now["a"] != 3 {
		t.Error(now)
	}
}

func TestProfileValue(t *testing.T) {
	text := "heap profile: 1: 2 [3: 4] @ heap/1\n# runtime.MemStats\n# Mallocs = 1500\n# Frees = 7\n"
	if n, ok := profileValue(text, "Mallocs"); !ok || n != 1500 {
		t.Errorf("%v %v", n, ok)
	}
	if _, ok := profileValue(text, "Lookups"); ok {
		t.Error("a value that is not there")
	}
}

// TestFailedBlockHasNoMetrics: a bench whose lab cannot boot.
func TestFailedBlockHasNoMetrics(t *testing.T) {
	s := find(t, "bulk-1-up")
	block := result.Block{Round: 1, Scenario: s.Name, Impl: result.Marrow}
	cfg := Config{Scenarios: []scenario.Scenario{s}, Impls: []Impl{{Name: result.Marrow}}, Blocks: []result.Block{block}}
	cfg.Lab.Root, cfg.Lab.Env = t.TempDir(), []string{"not a variable"}
	b, err := newBench(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sample := b.block(t.Context(), block, s)
	if sample.Failed == "" || sample.Metrics != nil {
		t.Errorf("%+v", sample)
	}
}

func TestConfigIsChecked(t *testing.T) {
	s := find(t, "bulk-1-up")
	for name, cfg := range map[string]Config{
		"twice":    {Impls: []Impl{{Name: "a"}, {Name: "a"}}},
		"no name":  {Impls: []Impl{{}}},
		"too long": {Impls: []Impl{{Name: strings.Repeat("x", 20)}}},
		"unknown":  {Scenarios: []scenario.Scenario{s}, Impls: []Impl{{Name: "a"}}, Blocks: []result.Block{{Scenario: s.Name, Impl: "b"}}},
	} {
		if _, err := newBench(cfg); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

func TestTimeLeft(t *testing.T) {
	began := time.Unix(0, 0)
	e := estimate{began: began, rest: 100}
	if got := e.left(began); got != 100*time.Second {
		t.Errorf("%v", got)
	}
	for range 5 {
		e.done(scenario.Scenario{Scenario: result.Scenario{Seconds: 10}})
	}
	// Everything takes twice as long as the table has it.
	if got := e.left(began.Add(100 * time.Second)); got != 100*time.Second {
		t.Errorf("%v", got)
	}
}

// recorder keeps what a connection reads.
type recorder struct {
	net.Conn
	read bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.read.Write(p[:n])
	return n, err
}

// TestParseHello reads what crypto/tls really sends.
func TestParseHello(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, group := range []tls.CurveID{tls.X25519, tls.CurveP256, tls.X25519MLKEM768} {
		a, b := net.Pipe()
		done := make(chan error, 1)
		go func() {
			s := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{cert}})
			err := s.Handshake()
			_, _ = io.Copy(io.Discard, s)
			done <- err
		}()
		rec := &recorder{Conn: a}
		c := tls.Client(rec, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{group}})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		_ = a.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		// In a frame it stands behind other headers, which may look like its beginning.
		frame := append([]byte{22, 3, 3, 0, 9, 22, 3}, rec.read.Bytes()...)
		h := parseHello(frame)
		if h == nil || h.suite != c.ConnectionState().CipherSuite || h.group != group {
			t.Errorf("%v: %+v", group, h)
		}
		for n := range 80 {
			_ = parseHello(frame[:n]) // whatever it is, it does not panic
		}
	}
	if parseHello([]byte("no handshake")) != nil {
		t.Error("found one")
	}
}

func TestPlaces(t *testing.T) {
	w := &world{ips: map[string]string{}}
	for i, p := range everybody() {
		w.ips[p.Name] = "10.0.0." + string(rune('1'+i))
	}
	loads, err := w.loads(find(t, "bulk-pairs-up"))
	if err != nil || len(loads) != 4 || loads[3].pod != client(3) || loads[3].spec.Targets[0] != w.addr(server(3)) {
		t.Errorf("%+v, %v", loads, err)
	}
	loads, err = w.loads(find(t, "near-1-up"))
	if err != nil || len(loads) != 1 || loads[0].spec.Targets[0] != w.addr(near) {
		t.Errorf("%+v, %v", loads, err)
	}
	loads, err = w.loads(find(t, "conn-cold"))
	if err != nil || len(loads) != 4 || len(loads[1].spec.Targets) != 4 {
		t.Errorf("%+v, %v", loads, err)
	}
}

func TestPlain(t *testing.T) {
	i := Impl{Name: "envoy", Plain: envoy}
	if i.able(find(t, "handshake")) || i.able(find(t, "conn-cold")) || !i.able(find(t, "bulk-1-up")) || i.mesh() || !i.proxied() {
		t.Error("a plain proxy has neither tunnels nor handshakes, and proxies")
	}
	hops := []hop{{7100, "10.0.0.1:7000"}, {7101, "10.0.0.2:7000"}}
	if text := haproxyConfig(hops); strings.Count(text, "listen port") != 2 || !strings.Contains(text, "server one 10.0.0.2:7000") {
		t.Error(text)
	}
	var parsed struct {
		Resources struct{ Listeners, Clusters []map[string]any } `json:"static_resources"`
	}
	if err := yaml.UnmarshalStrict([]byte(envoyConfig(hops)), &parsed); err != nil || len(parsed.Resources.Listeners) != 2 || len(parsed.Resources.Clusters) != 2 {
		t.Errorf("%+v, %v", parsed, err)
	}
}
