package flow_test

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/ztunnel/internal/flow"
)

func TestBaggage(t *testing.T) {
	b := flow.Baggage{
		Cluster: "Kubernetes", Namespace: "shop", WorkloadName: "web", Type: "deployment", Service: "web", Version: "v1",
		Region: "r", Zone: "z",
	}
	const text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=v1,cloud.region=r,cloud.availability_zone=z"
	if b.String() != text {
		t.Errorf("String() = %s", b)
	}
	if got := flow.ParseBaggage(text); got != b {
		t.Errorf("ParseBaggage = %+v", got)
	}
	for in, want := range map[string]flow.Baggage{
		"":                              {},
		"x=y,service.name=a=b":          {Service: "a"},
		"service.name=,k8s.pod.name=p":  {WorkloadName: "p", Type: "pod"},
		"k8s.cronjob.name=c":            {WorkloadName: "c", Type: "cronjob"},
		"service.name=\x01":             {},
		" service.name = a ,junk":       {Service: "a"},
		strings.Repeat("a=b,", 100_000): {},
	} {
		if got := flow.ParseBaggage(in); got != want {
			t.Errorf("ParseBaggage(%.40q) = %+v, want %+v", in, got, want)
		}
	}
	if s := (flow.Baggage{Service: "a,b=c\n"}).String(); strings.ContainsAny(s, "\n") || strings.Count(s, ",") != 0 {
		t.Errorf("hostile names get through: %q", s)
	}
}

func TestForwarded(t *testing.T) {
	for _, tc := range []struct{ client, host, want string }{
		{"10.0.0.1:80", "", `for="10.0.0.1:80"`},
		{"[::1]:80", "web.ns", `for="[::1]:80";host=web.ns`},
	} {
		got := flow.Forwarded(netip.MustParseAddrPort(tc.client), tc.host)
		if got != tc.want || flow.ParseForwardedHost(got) != tc.host {
			t.Errorf("Forwarded = %s, read as %q", got, flow.ParseForwardedHost(got))
		}
	}
	for in, want := range map[string]string{
		`host="a.b"`: "a.b", `for=x; host=a ;host=b`: "a", "host=": "", "nothing": "", "host=é": "", `host="`: `"`,
	} {
		if got := flow.ParseForwardedHost(in); got != want {
			t.Errorf("ParseForwardedHost(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTrace(t *testing.T) {
	id := flow.NewTrace(func(b []byte) {
		for i := range b {
			b[i] = byte(i)
		}
	})
	const text = "00-000102030405060708090a0b0c0d0e0f-1011121314151617-00"
	if id.String() != text {
		t.Fatalf("String() = %s", id)
	}
	if got, ok := flow.ParseTrace(text); !ok || got != id {
		t.Fatalf("ParseTrace = %s, %v", got, ok)
	}
	for _, bad := range []string{"", text[1:], text + "0", strings.Replace(text, "a", "x", 1), strings.Replace(text, "-", "_", 1)} {
		if _, ok := flow.ParseTrace(bad); ok {
			t.Errorf("ParseTrace(%q) accepts", bad)
		}
	}
}

func FuzzBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=a,service.name=b=c")
	f.Fuzz(func(t *testing.T, s string) {
		b := flow.ParseBaggage(s)
		text := b.String()
		if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Fatalf("%q becomes the header %q", s, text)
		}
		if again := flow.ParseBaggage(text); again.String() != text {
			t.Fatalf("%q reads as %q", text, again)
		}
	})
}

func FuzzForwarded(f *testing.F) {
	f.Add(`for="10.0.0.1:80";host=web`)
	f.Fuzz(func(t *testing.T, s string) {
		if h := flow.ParseForwardedHost(s); strings.ContainsAny(h, ";\n\x00") {
			t.Fatalf("%q names the host %q", s, h)
		}
	})
}

func FuzzTraceparent(f *testing.F) {
	f.Add("00-000102030405060708090a0b0c0d0e0f-1011121314151617-00")
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := flow.ParseTrace(s); ok && len(id.String()) != len(s) {
			t.Fatalf("%q becomes %q", s, id)
		}
	})
}

type bench struct {
	rec *flow.Recorder
	reg *prometheus.Registry
	log bytes.Buffer
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{reg: prometheus.NewRegistry()}
	log, _, err := obs.NewLogger(&b.log, "plain", "info")
	if err != nil {
		t.Fatal(err)
	}
	m, err := flow.NewMetrics(b.reg)
	if err != nil {
		t.Fatal(err)
	}
	b.rec = flow.NewRecorder(m, log)
	return b
}

// samples lists the TCP samples without their labels, except the named one.
func (b *bench) samples(t *testing.T, label string) map[string]float64 {
	t.Helper()
	families, err := b.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetCounter() == nil {
				continue
			}
			value := ""
			for _, l := range m.GetLabel() {
				if l.GetName() == label {
					value = l.GetValue()
				}
			}
			out[f.GetName()+" "+value] += m.GetCounter().GetValue()
		}
	}
	return out
}

func known(name string) *mesh.Workload {
	return &mesh.Workload{
		Name: name, Namespace: "ns", ID: identity.MustParse("spiffe://td/ns/ns/sa/" + name),
		Runtime: mesh.Runtime{WorkloadName: name, CanonicalName: name, ClusterID: "c", Locality: mesh.Locality{Region: "r"}},
	}
}

func facts() flow.Facts {
	a, b := known("a"), known("b")
	return flow.Facts{
		Reporter: flow.Source, Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:15008"),
		HBONETarget: "10.0.0.2:80", SourceWorkload: a, DestWorkload: b, SourceID: a.ID, DestID: b.ID, Mutual: true,
	}
}

func TestCounters(t *testing.T) {
	b := newBench(t)
	ok, bad := b.rec.Open(facts()), b.rec.Open(facts())
	ok.Bytes(10, 0)
	ok.Bytes(0, 20)
	ok.Close(nil)
	bad.Close(flow.Fail(flow.Deny, errors.New("no")))
	want := map[string]float64{
		"istio_tcp_connections_opened_total -": 2, "istio_tcp_connections_closed_total -": 1, "istio_tcp_connections_closed_total DENY": 1,
		"istio_tcp_connections_failed_total DENY": 1, "istio_tcp_received_bytes_total -": 10, "istio_tcp_sent_bytes_total -": 20,
	}
	got := b.samples(t, "response_flags")
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s = %v, want %v", k, got[k], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("samples %v", got)
	}
}

func TestLabels(t *testing.T) {
	b := newBench(t)
	b.rec.Open(facts())
	stranger := flow.Facts{Reporter: flow.Destination, Src: facts().Src, Dst: facts().Dst}
	b.rec.Open(stranger)
	families, err := b.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, f := range families {
		if f.GetName() != "istio_tcp_connections_opened_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			text := ""
			for _, l := range m.GetLabel() {
				text += l.GetName() + "=" + l.GetValue() + " "
			}
			reporter := "source"
			if strings.Contains(text, "reporter=destination") {
				reporter = "destination"
			}
			seen[reporter] = text
		}
	}
	for _, want := range []string{"source_region=r ", "source_zone=unknown ", "destination_principal=spiffe://td/ns/ns/sa/b ", "connection_security_policy=mutual_tls ", "destination_service=unknown ", "source_app=a ", "request_protocol=tcp "} {
		if !strings.Contains(seen["source"], want) {
			t.Errorf("no %q in %s", want, seen["source"])
		}
	}
	if strings.Contains(seen["destination"], "region") {
		t.Errorf("locality of nobody: %s", seen["destination"])
	}
	if !strings.Contains(seen["destination"], "source_workload=unknown ") {
		t.Errorf("labels %s", seen["destination"])
	}
}

func TestRefused(t *testing.T) {
	b := newBench(t)
	b.rec.Refused(flow.Destination, facts().Src, facts().Dst, errors.New("why"))
	if got := b.samples(t, "reporter"); len(got) != 0 {
		t.Errorf("samples %v", got)
	}
	line := b.log.String()
	for _, want := range []string{"\twarn\taccess\tconnection failed\tsrc.addr=10.0.0.1:1 dst.addr=10.0.0.2:15008 direction=\"inbound\" error=\"why\"\n"} {
		if !strings.HasSuffix(line, want) {
			t.Errorf("line %q, want %q", line, want)
		}
	}
}

func TestAccessLog(t *testing.T) {
	b := newBench(t)
	f := b.rec.Open(facts())
	f.Bytes(3, 4)
	f.Close(nil)
	const want = "\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:1 src.workload=\"a\" src.namespace=\"ns\" src.identity=\"spiffe://td/ns/ns/sa/a\" src.cluster=\"c\" " +
		"dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:80 dst.workload=\"b\" dst.namespace=\"ns\" dst.identity=\"spiffe://td/ns/ns/sa/b\" dst.cluster=\"c\" " +
		"direction=\"outbound\" bytes_sent=3 bytes_recv=4 duration=\"0ms\"\n"
	if !strings.HasSuffix(b.log.String(), want) {
		t.Errorf("line %q, want %q", b.log.String(), want)
	}
}
