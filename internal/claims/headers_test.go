package claims_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/internal/claims"
)

func TestBaggage(t *testing.T) {
	b := claims.Baggage{
		Cluster: "Kubernetes", Namespace: "shop", WorkloadName: "web", Type: "deployment", Service: "web", Version: "v1",
		Region: "r", Zone: "z",
	}
	const text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=v1,cloud.region=r,cloud.availability_zone=z"
	if b.String() != text {
		t.Errorf("String() = %s", b)
	}
	if got := claims.ParseBaggage(text); got != b {
		t.Errorf("ParseBaggage = %+v", got)
	}
	for in, want := range map[string]claims.Baggage{
		"":                              {},
		"x=y,service.name=a=b":          {Service: "a"},
		"service.name=,k8s.pod.name=p":  {WorkloadName: "p", Type: "pod"},
		"k8s.cronjob.name=c":            {WorkloadName: "c", Type: "cronjob"},
		"service.name=\x01":             {},
		" service.name = a ,junk":       {Service: "a"},
		strings.Repeat("a=b,", 100_000): {},
	} {
		if got := claims.ParseBaggage(in); got != want {
			t.Errorf("ParseBaggage(%.40q) = %+v, want %+v", in, got, want)
		}
	}
	if s := (claims.Baggage{Service: "a,b=c\n"}).String(); strings.ContainsAny(s, "\n") || strings.Count(s, ",") != 0 {
		t.Errorf("hostile names get through: %q", s)
	}
}

func TestForwarded(t *testing.T) {
	for _, tc := range []struct{ client, host, want string }{
		{"10.0.0.1:80", "", `for="10.0.0.1:80"`},
		{"[::1]:80", "web.ns", `for="[::1]:80";host=web.ns`},
	} {
		got := claims.Forwarded(netip.MustParseAddrPort(tc.client), tc.host)
		if got != tc.want || claims.ParseForwardedHost(got) != tc.host {
			t.Errorf("Forwarded = %s, read as %q", got, claims.ParseForwardedHost(got))
		}
	}
	for in, want := range map[string]string{
		`host="a.b"`: "a.b", `for=x; host=a ;host=b`: "a", "host=": "", "nothing": "", "host=é": "", `host="`: `"`,
	} {
		if got := claims.ParseForwardedHost(in); got != want {
			t.Errorf("ParseForwardedHost(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTrace(t *testing.T) {
	id := claims.NewTrace(func(b []byte) {
		for i := range b {
			b[i] = byte(i)
		}
	})
	const text = "00-000102030405060708090a0b0c0d0e0f-1011121314151617-00"
	if id.String() != text {
		t.Fatalf("String() = %s", id)
	}
	if got, ok := claims.ParseTrace(text); !ok || got != id {
		t.Fatalf("ParseTrace = %s, %v", got, ok)
	}
	for _, bad := range []string{"", text[1:], text + "0", strings.Replace(text, "a", "x", 1), strings.Replace(text, "-", "_", 1)} {
		if _, ok := claims.ParseTrace(bad); ok {
			t.Errorf("ParseTrace(%q) accepts", bad)
		}
	}
}

func FuzzBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=a,service.name=b=c")
	f.Fuzz(func(t *testing.T, s string) {
		b := claims.ParseBaggage(s)
		text := b.String()
		if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Fatalf("%q becomes the header %q", s, text)
		}
		if again := claims.ParseBaggage(text); again.String() != text {
			t.Fatalf("%q reads as %q", text, again)
		}
	})
}

func FuzzForwarded(f *testing.F) {
	f.Add(`for="10.0.0.1:80";host=web`)
	f.Fuzz(func(t *testing.T, s string) {
		if h := claims.ParseForwardedHost(s); strings.ContainsAny(h, ";\n\x00") {
			t.Fatalf("%q names the host %q", s, h)
		}
	})
}

func FuzzTraceparent(f *testing.F) {
	f.Add("00-000102030405060708090a0b0c0d0e0f-1011121314151617-00")
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := claims.ParseTrace(s); ok && len(id.String()) != len(s) {
			t.Fatalf("%q becomes %q", s, id)
		}
	})
}
