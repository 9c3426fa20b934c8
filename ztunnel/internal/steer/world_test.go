package steer_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/ztunnel/internal/steer"
)

var update = flag.Bool("update", false, "rewrite the want sections of testdata/*.txtar")

// TestScripts runs testdata/*.txtar. Lines before the first file describe a world and ask
// questions of it; the file "want" holds the answers. See testdata/README.md.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := newWorld(t).run(string(ar.Comment))
			if *update {
				ar.Files = []txtar.File{{Name: "want", Data: []byte(got)}}
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(ar.Files) != 1 || ar.Files[0].Name != "want" {
				t.Fatalf("want exactly one file named want; run with -update")
			}
			if want := ar.Files[0].Data; !bytes.Equal([]byte(got), want) {
				t.Errorf("answers differ (-update rewrites)\n--- want\n%s--- got\n%s", want, got)
			}
		})
	}
}

// world collects resources by name and answers questions about them.
type world struct {
	t         *testing.T
	workloads map[string]*mesh.Workload
	services  map[string]*mesh.Service
}

func newWorld(t *testing.T) *world {
	return &world{t: t, workloads: map[string]*mesh.Workload{}, services: map[string]*mesh.Service{}}
}

func (w *world) run(script string) string {
	var out strings.Builder
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		name, rest, _ := strings.Cut(rest, " ")
		args := parseArgs(rest)
		switch verb {
		case "workload":
			w.workloads[name] = w.workload(name, args)
		case "service":
			w.services[name] = w.service(name, args)
		case "connect":
			fmt.Fprintf(&out, "> %s\n%s", line, w.connect(name, args))
		case "receive":
			fmt.Fprintf(&out, "> %s\n%s", line, w.receive(name, args))
		default:
			w.t.Fatalf("line %q: verb must be workload, service, connect or receive", line)
		}
	}
	return out.String()
}

// args are key=value words; a word alone is a key with the value "true".
type args map[string]string

func parseArgs(s string) args {
	out := args{}
	for word := range strings.FieldsSeq(s) {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			value = "true"
		}
		out[key] = value
	}
	return out
}

func (a args) or(key, def string) string {
	if v, ok := a[key]; ok {
		return v
	}
	return def
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func (w *world) num(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		w.t.Fatalf("port %q: %v", s, err)
	}
	return uint16(n)
}

// ports reads 80:8080,81 (81 stands for 81:0, a named port).
func (w *world) ports(s string) []mesh.PortMapping {
	var out []mesh.PortMapping
	for _, p := range list(s) {
		svc, target, ok := strings.Cut(p, ":")
		if !ok {
			target = "0"
		}
		out = append(out, mesh.PortMapping{Service: w.num(svc), Target: w.num(target)})
	}
	return out
}

// gateway reads host:port, ns/host:port or [network/]ip:port.
func (w *world) gateway(s string) *mesh.GatewayAddress {
	if s == "" {
		return nil
	}
	i := strings.LastIndex(s, ":")
	g := &mesh.GatewayAddress{Port: w.num(s[i+1:])}
	ns, host, ok := strings.Cut(s[:i], "/")
	if !ok {
		ns, host = "", ns
	}
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		g.Addr = mesh.NetworkAddress{Network: ns, Addr: ip}
		return g
	}
	if ns == "" {
		ns = "ns"
	}
	g.Host = mesh.NamespacedHostname{Namespace: ns, Hostname: host}
	return g
}

func host(name, ns string) string { return name + "." + ns }

func (w *world) workload(name string, a args) *mesh.Workload {
	ns := a.or("ns", "ns")
	out := &mesh.Workload{
		UID: "c//Pod/" + ns + "/" + name, Name: name, Namespace: ns, Network: a["network"], Node: a.or("node", "n1"),
		Hostname: a["host"], Capacity: 1, HostNetwork: a["host-network"] != "", Unhealthy: a["sick"] != "",
		ID:       identity.MustParse("spiffe://td/ns/" + ns + "/sa/" + a.or("sa", name)),
		Waypoint: w.gateway(a["waypoint"]), NetworkGateway: w.gateway(a["gateway"]),
	}
	for _, ip := range list(a["ip"]) {
		out.Addresses = append(out.Addresses, netip.MustParseAddr(ip))
	}
	if a["plain"] == "" {
		out.Protocol = mesh.HBONE
	}
	switch a["tunnel"] {
	case "":
	case "none":
		out.Tunnel = &mesh.ApplicationTunnel{Port: w.num(a.or("tunnel-port", "0"))}
	case "proxy":
		out.Tunnel = &mesh.ApplicationTunnel{Protocol: mesh.TunnelProxy, Port: w.num(a.or("tunnel-port", "0"))}
	}
	for _, s := range list(a["of"]) {
		// of=web or of=web/80:9090;81:9091
		svc, ports, _ := strings.Cut(s, "/")
		out.Services = append(out.Services, mesh.Membership{
			Service: mesh.NamespacedHostname{Namespace: ns, Hostname: host(svc, ns)},
			Ports:   w.ports(strings.ReplaceAll(ports, ";", ",")),
		})
	}
	return out
}

func (w *world) service(name string, a args) *mesh.Service {
	ns := a.or("ns", "ns")
	out := &mesh.Service{
		Name: name, Namespace: ns, Hostname: host(name, ns), Ports: w.ports(a["ports"]),
		Waypoint: w.gateway(a["waypoint"]), Private: a["private"] != "",
	}
	for _, v := range list(a["vip"]) {
		network, addr, ok := strings.Cut(v, "@")
		if !ok {
			network, addr = "", network
		}
		ip := netip.MustParseAddr(addr)
		out.VIPs = append(out.VIPs, mesh.VIP{Network: network, Prefix: netip.PrefixFrom(ip, ip.BitLen())})
	}
	for _, s := range list(a["sans"]) {
		out.SANs = append(out.SANs, identity.MustParse("spiffe://td/ns/"+ns+"/sa/"+s))
	}
	switch a["mode"] {
	case "passthrough":
		out.LoadBalancing.Mode = mesh.ModePassthrough
	case "failover":
		out.LoadBalancing = mesh.LoadBalancing{Mode: mesh.ModeFailover, Preferences: []mesh.Scope{mesh.ScopeNetwork}}
	}
	switch a["families"] {
	case "v4":
		out.Families = mesh.IPv4Only
	case "v6":
		out.Families = mesh.IPv6Only
	case "dual":
		out.Families = mesh.DualStack
	}
	return out
}

func (w *world) view() *mesh.View {
	var b mesh.Batch
	for _, name := range slices.Sorted(maps.Keys(w.workloads)) {
		b.Workloads = append(b.Workloads, w.workloads[name])
	}
	for _, name := range slices.Sorted(maps.Keys(w.services)) {
		b.Services = append(b.Services, w.services[name])
	}
	v, rejects := mesh.NewView().With(b)
	if len(rejects) > 0 {
		w.t.Fatalf("rejects: %v", rejects)
	}
	return v
}

func indent(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString("  " + strings.TrimSuffix(line, "\n") + "\n")
	}
	return b.String()
}

// connect NAME to=ip:port [from=ip] [rnd=N]
func (w *world) connect(name string, a args) string {
	src := w.workloads[name]
	var client netip.Addr
	if src != nil && len(src.Addresses) > 0 {
		client = src.Addresses[0]
	}
	if from, ok := a["from"]; ok {
		client = netip.MustParseAddr(from)
	}
	at, err := strconv.ParseUint(a.or("rnd", "0"), 10, 64)
	if err != nil {
		w.t.Fatal(err)
	}
	plan, err := steer.Outbound(w.view(), src, client, netip.MustParseAddrPort(a["to"]), func(n uint64) uint64 { return at % n })
	if err != nil {
		return indent("refused: " + err.Error() + "\n")
	}
	return indent(plan.String())
}

// receive NAME authority=host:port peer=ip[:port] [id=sa] [forwarded=host] [peer-network=n], or plain=ip:port for plaintext
func (w *world) receive(name string, a args) string {
	dst := w.workloads[name]
	f := steer.InboundFacts{Workload: dst, Authority: a["authority"], ForwardedHost: a["forwarded"], PeerNetwork: a["peer-network"]}
	if f.Peer, _ = netip.ParseAddrPort(a["peer"]); !f.Peer.IsValid() {
		f.Peer = netip.AddrPortFrom(netip.MustParseAddr(a["peer"]), 40000)
	}
	if dst != nil {
		f.Local = netip.AddrPortFrom(dst.Addresses[0], steer.HBONEPort)
	}
	if sa, ok := a["id"]; ok {
		f.PeerID = identity.MustParse("spiffe://td/ns/ns/sa/" + sa)
	}
	if plain, ok := a["plain"]; ok {
		f.OrigDst = netip.MustParseAddrPort(plain)
	}
	adm, err := steer.Inbound(w.view(), a["network"], f)
	if err != nil {
		status := 0
		if r, ok := errors.AsType[*steer.Refusal](err); ok {
			status = r.Status
		}
		return indent(fmt.Sprintf("refused %d: %v\n", status, err))
	}
	return indent(adm.String())
}
