package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

func ExampleParse() {
	id, err := Parse("spiffe://cluster.local/ns/shop/sa/web")
	fmt.Println(id.TrustDomain(), id.Namespace(), id.ServiceAccount(), err)
	fmt.Println(id.Principal())
	// Output:
	// cluster.local shop web <nil>
	// cluster.local/ns/shop/sa/web
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		in, wantErr string
	}{
		{in: "spiffe://td/ns/a/sa/b"},
		{in: "spiffe://cluster.local/ns/a.b/sa/c-d_e"},
		{in: "", wantErr: "cannot be empty"},
		{in: "https://td/ns/a/sa/b", wantErr: "scheme"},
		{in: "spiffe://td", wantErr: "is not /ns/"},
		{in: "spiffe://td/ns/a", wantErr: "is not /ns/"},
		{in: "spiffe://td/ns/a/sa/b/c", wantErr: "is not /ns/"},
		{in: "spiffe://td/ns/a/b/sa/c", wantErr: "is not /ns/"},
		{in: "spiffe://td/sa/b/ns/a", wantErr: "is not /ns/"},
		{in: "spiffe:///ns/a/sa/b", wantErr: "trust domain"},
		{in: "spiffe://td/ns//sa/b", wantErr: "empty"},
		{in: "spiffe://td/ns/a/sa/b?x", wantErr: "characters"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			id, err := Parse(tc.in)
			if tc.wantErr == "" {
				if err != nil || id.String() != tc.in {
					t.Fatalf("Parse(%q) = %q, %v", tc.in, id, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
				t.Fatalf("Parse(%q) error = %v, want one containing %q", tc.in, err, tc.wantErr)
			}
			if !id.IsZero() {
				t.Fatalf("failed Parse returned %v", id)
			}
		})
	}
}

func TestNew(t *testing.T) {
	id, err := New("cluster.local", "shop", "web")
	if err != nil || id != MustParse("spiffe://cluster.local/ns/shop/sa/web") {
		t.Fatalf("New = %v, %v", id, err)
	}
	for _, bad := range [][3]string{
		{"", "a", "b"},
		{"td", "", "b"},
		{"td", "a", ""},
		{"td", "a/b", "c"},
		{"td", "a", "b/c"},
		{"UPPER", "a", "b"},
		{"spiffe://td", "a", "b"},
		{"td", "..", "b"},
	} {
		if id, err := New(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("New(%q) = %v, want an error", bad, id)
		}
	}
}

func TestZeroIsNobody(t *testing.T) {
	var id ID
	if !id.IsZero() || id.String() != "" || id.Principal() != "" {
		t.Fatalf("zero ID prints %q %q", id.String(), id.Principal())
	}
	if id == MustParse("spiffe://td/ns/a/sa/b") {
		t.Fatal("zero equals a real identity")
	}
}

func TestFromCertificate(t *testing.T) {
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	c := &x509.Certificate{URIs: []*url.URL{uri("https://x/y"), uri("spiffe://td/other"), uri("spiffe://td/ns/a/sa/b"), uri("spiffe://td/ns/c/sa/d")}}
	if id, err := FromCertificate(c); err != nil || id.String() != "spiffe://td/ns/a/sa/b" {
		t.Fatalf("FromCertificate = %v, %v", id, err)
	}
	for _, none := range []*x509.Certificate{nil, {}, {URIs: []*url.URL{uri("spiffe://td/x")}}} {
		if id, err := FromCertificate(none); !errors.Is(err, ErrNoIdentity) || !id.IsZero() {
			t.Fatalf("FromCertificate(no id) = %v, %v", id, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"spiffe://td/ns/a/sa/b", "spiffe://", "spiffe://td/ns/a/sa/", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := Parse(s)
		if err != nil {
			return
		}
		if id.IsZero() {
			t.Fatalf("Parse(%q) gave nobody without an error", s)
		}
		again, err := Parse(id.String())
		if err != nil || again != id {
			t.Fatalf("Parse(%q).String() = %q does not parse back: %v %v", s, id.String(), again, err)
		}
		if again, err := New(id.TrustDomain(), id.Namespace(), id.ServiceAccount()); err != nil || again != id {
			t.Fatalf("New of the parts of %q = %v, %v", s, again, err)
		}
	})
}
