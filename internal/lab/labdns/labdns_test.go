package labdns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func sample() Records {
	return Records{
		Services: []Service{
			{Name: "web", Namespace: "shop", Addrs: addrs("10.96.0.20", "fd00:10:96::20"), Ports: []Port{{Name: "http", Protocol: "TCP", Port: 80}}},
			{Name: "v4", Namespace: "shop", Addrs: addrs("10.96.0.21")},
			{
				Name: "db", Namespace: "shop", Addrs: addrs("10.244.1.5", "10.244.2.5"),
				Hosts: []Host{{Name: "db-0", Addrs: addrs("10.244.1.5")}, {Name: "db-1", Addrs: addrs("10.244.2.5")}},
				Ports: []Port{{Name: "sql", Protocol: "tcp", Port: 5432}},
			},
			{Name: "idle", Namespace: "shop"},
			{Name: "alias", Namespace: "shop", ExternalName: "web.shop.svc.cluster.local"},
			{Name: "far", Namespace: "shop", ExternalName: "example.org"},
		},
		Pods: []Pod{{Namespace: "shop", Addrs: addrs("10.244.1.5", "fd00:10:244:1::5")}},
	}
}

// show renders an answer: code, then the records' data in order.
func show(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		out = append(out, dns.TypeToString[rr.Header().Rrtype]+" "+strings.TrimSpace(strings.TrimPrefix(rr.String(), rr.Header().String())))
	}
	slices.Sort(out)
	return strings.Join(append([]string{dns.RcodeToString[m.Rcode]}, out...), "; ")
}

func TestAnswer(t *testing.T) {
	s := NewServer()
	s.SetRecords(sample())
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"web.shop.svc.cluster.local.", dns.TypeA, "NOERROR; A 10.96.0.20"},
		{"WEB.Shop.svc.cluster.LOCAL.", dns.TypeA, "NOERROR; A 10.96.0.20"},
		{"web.shop.svc.cluster.local.", dns.TypeAAAA, "NOERROR; AAAA fd00:10:96::20"},
		{"web.shop.svc.cluster.local.", dns.TypeMX, "NOERROR"},
		{"v4.shop.svc.cluster.local.", dns.TypeAAAA, "NOERROR"},
		{"idle.shop.svc.cluster.local.", dns.TypeA, "NOERROR"},
		{"db.shop.svc.cluster.local.", dns.TypeA, "NOERROR; A 10.244.1.5; A 10.244.2.5"},
		{"db-1.db.shop.svc.cluster.local.", dns.TypeA, "NOERROR; A 10.244.2.5"},
		{"db-2.db.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"_http._tcp.web.shop.svc.cluster.local.", dns.TypeSRV, "NOERROR; SRV 0 100 80 web.shop.svc.cluster.local."},
		{"_sql._tcp.db.shop.svc.cluster.local.", dns.TypeSRV, "NOERROR; SRV 0 100 5432 db-0.db.shop.svc.cluster.local.; SRV 0 100 5432 db-1.db.shop.svc.cluster.local."},
		{"alias.shop.svc.cluster.local.", dns.TypeA, "NOERROR; A 10.96.0.20; CNAME web.shop.svc.cluster.local."},
		{"far.shop.svc.cluster.local.", dns.TypeA, "NOERROR; CNAME example.org."},
		{"10-244-1-5.shop.pod.cluster.local.", dns.TypeA, "NOERROR; A 10.244.1.5"},
		{"fd00-10-244-1--5.shop.pod.cluster.local.", dns.TypeAAAA, "NOERROR; AAAA fd00:10:244:1::5"},
		{"10-244-1-6.shop.pod.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"shop.svc.cluster.local.", dns.TypeA, "NOERROR"},
		{"svc.cluster.local.", dns.TypeA, "NOERROR"},
		{"web.other.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"web.shop.svc.cluster.local.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"example.org.", dns.TypeA, "NXDOMAIN"},
		{".", dns.TypeA, "NXDOMAIN"},
	} {
		q := new(dns.Msg)
		q.SetQuestion(c.name, c.kind)
		if got := show(s.Answer(q)); got != c.want {
			t.Errorf("%s %s: got %s, want %s", c.name, dns.TypeToString[c.kind], got, c.want)
		}
	}
}

func TestAnswerRefusesWhatIsNoQuery(t *testing.T) {
	s := NewServer()
	notify := new(dns.Msg)
	notify.SetNotify("cluster.local.")
	if m := s.Answer(notify); m.Rcode != dns.RcodeNotImplemented {
		t.Errorf("notify: %v", m)
	}
	if m := s.Answer(new(dns.Msg)); m.Rcode != dns.RcodeNotImplemented {
		t.Errorf("no question: %v", m)
	}
	chaos := new(dns.Msg)
	chaos.SetQuestion("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	if m := s.Answer(chaos); m.Rcode != dns.RcodeRefused {
		t.Errorf("chaos: %v", m)
	}
}

// loopback is a Listener on free ports of 127.0.0.1.
func loopback(t *testing.T) *Listener {
	t.Helper()
	var lc net.ListenConfig
	p, err := lc.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return &Listener{packets: []net.PacketConn{p}, streams: []net.Listener{s}}
}

func TestServe(t *testing.T) {
	s := NewServer()
	l := loopback(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()

	var many []netip.Addr
	for i := range 200 {
		many = append(many, netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}))
	}
	s.SetRecords(Records{Services: []Service{{Name: "many", Namespace: "shop", Addrs: many}}})
	q := new(dns.Msg)
	q.SetQuestion("many.shop.svc.cluster.local.", dns.TypeA)
	udp := &dns.Client{Net: "udp", Timeout: 5 * time.Second}
	m, _, err := udp.ExchangeContext(t.Context(), q, l.packets[0].LocalAddr().String())
	if err != nil || !m.Truncated || len(m.Answer) > 40 {
		t.Errorf("UDP: %v, truncated %v", err, m)
	}
	tcp := &dns.Client{Net: "tcp", Timeout: 5 * time.Second}
	m, _, err = tcp.ExchangeContext(t.Context(), q, l.streams[0].Addr().String())
	if err != nil || len(m.Answer) != 200 {
		t.Errorf("TCP: %v, %d answers", err, len(m.Answer))
	}
	q.SetEdns0(4096, false)
	m, _, err = udp.ExchangeContext(t.Context(), q, l.packets[0].LocalAddr().String())
	if err != nil || m.Truncated || len(m.Answer) != 200 {
		t.Errorf("UDP with EDNS0: %v, %v", err, m)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// FuzzServe sends foreign bytes and then asks an honest question.
func FuzzServe(f *testing.F) {
	q := new(dns.Msg)
	q.SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)
	raw, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:12])
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	s := NewServer()
	s.SetRecords(sample())
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m dns.Msg
		if err := m.Unpack(raw); err != nil {
			return
		}
		answer := s.Answer(&m)
		answer.Truncate(dns.MinMsgSize)
		if _, err := answer.Pack(); err != nil && len(m.Question) == 1 {
			t.Errorf("the answer to %v cannot be packed: %v", m.Question, err)
		}
	})
}

func ExampleServer() {
	s := NewServer()
	s.SetRecords(Records{Services: []Service{{Name: "web", Namespace: "shop", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}}}})
	q := new(dns.Msg)
	q.SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)
	fmt.Println(s.Answer(q).Answer[0].(*dns.A).A)
	// Output: 10.96.0.20
}
