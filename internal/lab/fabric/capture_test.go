package fabric

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/internal/lab/pcap"
)

func TestCapture(t *testing.T) {
	f := lab(t)
	a, c := addPod(t, f, "node-1", "a"), addPod(t, f, "node-2", "c")
	n1, _ := f.Node("node-1")
	const marker = "PLAINTEXT-MARKER"
	// Large enough for offload to hand on segments above the MTU.
	body := strings.Repeat(strings.Repeat("x", 1000)+marker, 200)
	serve(t, c.Netns(), ":8080", body)
	targets := map[string]struct {
		ns    *Netns
		iface string
		want  int
	}{
		"pod": {a.Netns(), "", 200}, "node": {n1.Netns(), "", 200}, "uplink": {n1.Netns(), "eth0", 200},
		"pod link": {n1.Netns(), a.Iface, 200}, "fabric": {f.Netns(), "", 200}, "other link": {f.Netns(), "lo", 0},
	}
	captures, files := map[string]*Capture{}, map[string]*bytes.Buffer{}
	for name, target := range targets {
		files[name] = &bytes.Buffer{}
		var err error
		if captures[name], err = StartCapture(target.ns, target.iface, files[name]); err != nil {
			t.Fatal(err)
		}
	}
	for _, ip := range c.Addrs() {
		if got, err := ask(t, a.Netns(), netip.AddrPortFrom(ip, 8080).String()); err != nil || !strings.HasPrefix(got, "xxx") {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	for name, target := range targets {
		stats, err := captures[name].Stop()
		if err != nil || stats.Dropped > 0 {
			t.Errorf("%s: %+v, %v", name, stats, err)
		}
		report, err := pcap.Scan(files[name], []byte(marker))
		if err != nil {
			t.Fatal(err)
		}
		if report.Packets != stats.Packets {
			t.Errorf("%s: %d packets in the file, %d counted", name, report.Packets, stats.Packets)
		}
		if want := target.want * len(c.Addrs()); report.Occurrences != want {
			t.Errorf("%s: the marker was found %d times, want %d; %+v", name, report.Occurrences, want, report.With())
		}
	}
}

func TestCaptureErrors(t *testing.T) {
	f := lab(t)
	if _, err := StartCapture(f.Netns(), "nope", io.Discard); err == nil || !strings.Contains(err.Error(), "fabric nope") {
		t.Errorf("no such interface: %v", err)
	}
	a := addPod(t, f, "node-1", "a")
	c, err := StartCapture(f.Netns(), "", &failing{after: 1})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, a.Netns(), ":8080", "a")
	if _, err := ask(t, f.Netns(), netip.AddrPortFrom(a.IP4, 8080).String()); err != nil {
		t.Fatal(err)
	}
	<-c.Ended()
	if _, err := c.Stop(); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a failing writer: %v", err)
	}
}

// failing is a writer that fails after some writes.
type failing struct{ after int }

func (f *failing) Write(p []byte) (int, error) {
	if f.after == 0 {
		return 0, fmt.Errorf("disk full")
	}
	f.after--
	return len(p), nil
}
