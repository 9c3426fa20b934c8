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
