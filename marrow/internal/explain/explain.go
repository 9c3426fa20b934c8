package explain

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Request is what a user asks about.
type Request struct {
	From    string // namespace/pod
	To      string // http://host[:port]/path
	Method  string
	Headers []string // "name: value"
	HTTP2   bool
}

// Dump is the part of a node proxy's config dump that is read here.
type Dump struct {
	Workloads []Workload `json:"workloads"`
	Services  []Service  `json:"services"`
}

// Workload is a pod as the node proxy knows it.
type Workload struct {
	Name           string    `json:"name"`
	Namespace      string    `json:"namespace"`
	TrustDomain    string    `json:"trustDomain"`
	ServiceAccount string    `json:"serviceAccount"`
	Node           string    `json:"node"`
	Protocol       string    `json:"protocol"`
	IPs            []string  `json:"workloadIps"`
	Waypoint       *Waypoint `json:"waypoint"`
	Policies       []string  `json:"authorizationPolicies"`
}

// Service is a service as the node proxy knows it.
type Service struct {
	Name      string         `json:"name"`
	Namespace string         `json:"namespace"`
	Hostname  string         `json:"hostname"`
	VIPs      []string       `json:"vips"` // network/address
	Ports     map[string]int `json:"ports"`
	Waypoint  *Waypoint      `json:"waypoint"`
}

// Waypoint is who stands before a destination: "namespace/hostname" or "network/address".
type Waypoint struct {
	Destination string `json:"destination"`
}

// Found is where a request leads, before any request is read.
type Found struct {
	Client    *Workload
	Service   *Service  // nil = the address is no service's
	Dest      *Workload // the pod behind the address; nil = none is known
	Connect   string    // what the client's node proxy dials at the waypoint
	Waypoint  string    // namespace/name of its service; empty = none
	Guard     string    // the policy by which the destination refuses who did not come through a waypoint; empty = none
	Query     url.Values
	Authority string
}

// ParseDump reads a node proxy's config dump.
func ParseDump(raw []byte) (*Dump, error) {
	d := &Dump{}
	if err := json.Unmarshal(raw, d); err != nil {
		return nil, fmt.Errorf("read the node proxy's config dump: %w", err)
	}
	return d, nil
}

// Find resolves a request against what the client's node proxy knows.
func (d *Dump) Find(r Request) (*Found, error) {
	namespace, pod, ok := strings.Cut(r.From, "/")
	if !ok || namespace == "" || pod == "" {
		return nil, fmt.Errorf("--from %q: write it as namespace/pod", r.From)
	}
	u, err := url.Parse(r.To)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" {
		return nil, fmt.Errorf("--to %q: write it as http://host[:port]/path; nothing else is read by a waypoint", r.To)
	}
	f := &Found{Authority: u.Host}
	if f.Client = d.workload(namespace, pod); f.Client == nil {
		return nil, fmt.Errorf("the node proxy knows no pod %s: is it in the mesh, and on this node?", r.From)
	}
	port, err := portOf(u)
	if err != nil {
		return nil, err
	}
	if err := d.destination(f, u.Hostname(), port, namespace); err != nil {
		return nil, err
	}
	f.Query = f.query(r, u)
	return f, nil
}

func portOf(u *url.URL) (uint16, error) {
	if u.Port() == "" {
		return 80, nil
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("--to: port %q is none", u.Port())
	}
	return uint16(n), nil
}

func (d *Dump) workload(namespace, name string) *Workload {
	for i := range d.Workloads {
		if w := &d.Workloads[i]; w.Namespace == namespace && w.Name == name {
			return w
		}
	}
	return nil
}

// destination finds what an address or a name stands for.
func (d *Dump) destination(f *Found, host string, port uint16, namespace string) error {
	var at *Waypoint
	ip, err := netip.ParseAddr(host)
	if err == nil {
		ip = ip.Unmap()
		f.Service, f.Dest = d.serviceAt(ip), d.workloadAt(ip)
	} else {
		f.Service = d.serviceNamed(host, namespace)
		if f.Service == nil {
			return fmt.Errorf("the node proxy knows no service %q: give a service's name, name.namespace, its full name or an address", host)
		}
		if ip, err = address(f.Service); err != nil {
			return err
		}
	}
	switch {
	case f.Service != nil:
		if _, there := f.Service.Ports[strconv.Itoa(int(port))]; !there {
			return fmt.Errorf("service %s/%s has no port %d", f.Service.Namespace, f.Service.Name, port)
		}
		at = f.Service.Waypoint
	case f.Dest != nil:
		at = f.Dest.Waypoint
	}
	f.Connect = netip.AddrPortFrom(ip, port).String()
	f.Guard = d.guard(f)
	if at != nil {
		f.Waypoint, err = d.waypoint(at.Destination)
	}
	return err
}

// guardPrefix begins the names of the policies that the control plane makes where a waypoint has to be met (ADR 16).
const guardPrefix = "marrow_waypoint_required_"

// guard is the one that the destination's pods carry.
func (d *Dump) guard(f *Found) string {
	if f.Service == nil && f.Dest != nil {
		for _, p := range f.Dest.Policies {
			if _, name, _ := strings.Cut(p, "/"); strings.HasPrefix(name, guardPrefix) {
				return p
			}
		}
		return ""
	}
	if f.Service == nil {
		return ""
	}
	for _, name := range []string{f.Service.Name, f.Service.Hostname} {
		want := f.Service.Namespace + "/" + guardPrefix + name
		if slices.ContainsFunc(d.Workloads, func(w Workload) bool { return slices.Contains(w.Policies, want) }) {
			return want
		}
	}
	return ""
}

// address is the first of a service's.
func address(s *Service) (netip.Addr, error) {
	for _, v := range s.VIPs {
		_, text, _ := strings.Cut(v, "/")
		if ip, err := netip.ParseAddr(text); err == nil {
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("service %s/%s has no address of its own: ask about one of its pods by address", s.Namespace, s.Name)
}

func (d *Dump) serviceAt(ip netip.Addr) *Service {
	for i := range d.Services {
		if slices.ContainsFunc(d.Services[i].VIPs, func(v string) bool { _, a, _ := strings.Cut(v, "/"); return a == ip.String() }) {
			return &d.Services[i]
		}
	}
	return nil
}

func (d *Dump) workloadAt(ip netip.Addr) *Workload {
	for i := range d.Workloads {
		if slices.Contains(d.Workloads[i].IPs, ip.String()) {
			return &d.Workloads[i]
		}
	}
	return nil
}

// serviceNamed completes a name as the resolver of a pod in namespace does.
func (d *Dump) serviceNamed(name, namespace string) *Service {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	var found *Service
	best := 0
	for i := range d.Services {
		s := &d.Services[i]
		short, rest, _ := strings.Cut(s.Hostname, ".")
		ns, domain, _ := strings.Cut(rest, ".")
		rank := 0
		switch {
		case s.Hostname == name:
			rank = 3
		case domain == "" || !strings.HasPrefix(domain, "svc."):
		case ns == namespace && short == name:
			rank = 2
		case name == short+"."+ns, name == short+"."+ns+".svc":
			rank = 1
		}
		if rank > best {
			found, best = s, rank
		}
	}
	return found
}

// waypoint is namespace/name of the Service that a waypoint's destination names.
func (d *Dump) waypoint(destination string) (string, error) {
	first, second, _ := strings.Cut(destination, "/")
	if ip, err := netip.ParseAddr(second); err == nil {
		if s := d.serviceAt(ip.Unmap()); s != nil {
			return s.Namespace + "/" + s.Name, nil
		}
		if w := d.workloadAt(ip.Unmap()); w != nil {
			return w.Namespace + "/" + w.Name, nil
		}
		return "", fmt.Errorf("waypoint %s is at an address of nobody that the node proxy knows", destination)
	}
	name, _, _ := strings.Cut(second, ".")
	if name == "" {
		return "", fmt.Errorf("waypoint %q is neither namespace/hostname nor network/address", destination)
	}
	return first + "/" + name, nil
}

// query is the question for the waypoint's /explain.
func (f *Found) query(r Request, u *url.URL) url.Values {
	q := url.Values{"to": {f.Connect}, "authority": {f.Authority}, "path": {u.RequestURI()}}
	if r.Method != "" {
		q.Set("method", r.Method)
	}
	if r.HTTP2 {
		q.Set("protocol", "h2c")
	}
	for _, h := range r.Headers {
		if name, value, ok := strings.Cut(h, ":"); ok && strings.EqualFold(strings.TrimSpace(name), "host") {
			q.Set("authority", strings.TrimSpace(value))
			continue
		}
		q.Add("header", h)
	}
	if c := f.Client; c.Protocol == "HBONE" {
		q.Set("identity", "spiffe://"+c.TrustDomain+"/ns/"+c.Namespace+"/sa/"+c.ServiceAccount)
	}
	if len(f.Client.IPs) > 0 {
		q.Set("source", net.JoinHostPort(f.Client.IPs[0], "1"))
	}
	return q
}

// String tells the way up to the waypoint.
func (f *Found) String() string {
	var b strings.Builder
	name := f.Connect
	switch {
	case f.Service != nil:
		name = fmt.Sprintf("service %s/%s (%s)", f.Service.Namespace, f.Service.Name, f.Connect)
	case f.Dest != nil:
		name = fmt.Sprintf("pod %s/%s (%s)", f.Dest.Namespace, f.Dest.Name, f.Connect)
	}
	fmt.Fprintf(&b, "%s/%s asks %s\n", f.Client.Namespace, f.Client.Name, name)
	if f.Client.Protocol != "HBONE" {
		fmt.Fprintf(&b, "the client is not in the mesh: nobody takes its traffic to a waypoint, and no identity is known of it\n")
		b.WriteString(f.guarded())
		return b.String()
	}
	if f.Waypoint == "" {
		b.WriteString("it has no waypoint: no request is read on the way, L4 policies alone hold\n")
		b.WriteString(f.guarded())
		return b.String()
	}
	fmt.Fprintf(&b, "its waypoint is %s\n", f.Waypoint)
	return b.String()
}

func (f *Found) guarded() string {
	if f.Guard == "" {
		return ""
	}
	return "refused at the pod, on the ports of the service, by " + f.Guard + ": a policy protects it that only its waypoint can enforce\n"
}

// Read says whether some waypoint reads the request.
func (f *Found) Read() bool { return f.Waypoint != "" && f.Client.Protocol == "HBONE" }

// Answer is the part of a waypoint's answer that is printed.
type Answer struct {
	Outcome   string   `json:"outcome"`
	Status    int      `json:"status"`
	Flags     string   `json:"flags"`
	Detail    string   `json:"detail"`
	Chance    bool     `json:"chance"`
	Open      []string `json:"open"`
	Why       []string `json:"why"`
	Endpoints []struct {
		Address  string `json:"address"`
		Workload string `json:"workload"`
		Identity string `json:"identity"`
		Usable   bool   `json:"usable"`
		Why      string `json:"why"`
	} `json:"endpoints"`
	Clusters []struct {
		Cluster string `json:"cluster"`
		Weight  uint32 `json:"weight"`
	} `json:"clusters"`
}

// ParseAnswer reads a waypoint's answer.
func ParseAnswer(raw []byte) (*Answer, error) {
	a := &Answer{}
	if err := json.Unmarshal(raw, a); err != nil || a.Outcome == "" {
		return nil, fmt.Errorf("the waypoint answered %.200q: it is no waypoint of ours, or of another version", raw)
	}
	return a, nil
}

// String is the answer for people.
func (a *Answer) String() string {
	var b strings.Builder
	for _, w := range a.Why {
		b.WriteString(w + "\n")
	}
	for _, e := range a.Endpoints {
		note := "may be picked"
		if !e.Usable {
			note = e.Why
		}
		fmt.Fprintf(&b, "  %s  %s  %s: %s\n", e.Address, e.Workload, e.Identity, note)
	}
	if len(a.Clusters) > 1 {
		b.WriteString("shares:")
		for _, c := range a.Clusters {
			fmt.Fprintf(&b, " %s %d", c.Cluster, c.Weight)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "=> %s", a.Outcome)
	if a.Status != 0 {
		fmt.Fprintf(&b, " %d", a.Status)
	}
	if a.Detail != "" {
		fmt.Fprintf(&b, " %s", a.Detail)
	}
	if a.Flags != "" && a.Flags != "-" {
		fmt.Fprintf(&b, " (%s)", a.Flags)
	}
	if a.Chance {
		b.WriteString("; chance had a part in it, another request may fare otherwise")
	}
	if len(a.Open) > 0 {
		fmt.Fprintf(&b, "; not asked: %s", strings.Join(a.Open, ", "))
	}
	b.WriteByte('\n')
	return b.String()
}
