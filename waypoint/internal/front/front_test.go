package front

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

func TestRecognize(t *testing.T) {
	tests := map[string]struct {
		p      table.Protocol
		enough bool
	}{
		"":                                  {table.Unseen, false},
		"G":                                 {table.Unseen, false},
		"GET":                               {table.Unseen, false},
		"GET /":                             {table.Unseen, false},
		"GET / HTTP/1.1\r\n":                {table.HTTP1, true},
		"GET / HTTP/1.0\n":                  {table.HTTP1, true},
		"M-SEARCH * HTTP/1.1\r\n":           {table.HTTP1, true},
		"GET / FTP\r\n":                     {table.Opaque, true},
		"PRI * HTTP/2.0\r\n":                {table.Unseen, false},
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":  {table.HTTP2, true},
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nx": {table.HTTP2, true},
		"get / HTTP/1.1\r\n":                {table.Opaque, true},
		"\x16\x03\x01":                      {table.Opaque, true},
		"EHLO":                              {table.Unseen, false},
		"EHLO x\r\n":                        {table.Opaque, true},
		"*1\r\n":                            {table.Opaque, true},
		"AVERYLONGMETHODNAMEX":              {table.Opaque, true},
	}
	for in, want := range tests {
		if p, enough := recognize([]byte(in)); p != want.p || enough != want.enough {
			t.Errorf("%q: got %d %v, want %d %v", in, p, enough, want.p, want.enough)
		}
	}
}

type pipeEnd struct{ net.Conn }

func (pipeEnd) CloseWrite() error { return errors.New("not here") }

// TestDetect: whatever was looked at is still there to be read.
func TestDetect(t *testing.T) {
	tests := []struct {
		name  string
		parts []string
		limit time.Duration
		want  table.Protocol
	}{
		{"HTTP/1 in pieces", []string{"GE", "T / HT", "TP/1.1\r\nHost: a\r\n\r\n"}, time.Second, table.HTTP1},
		{"silence", nil, 20 * time.Millisecond, table.Opaque},
		{"half a method", []string{"GET"}, 20 * time.Millisecond, table.Opaque},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			a, b := net.Pipe()
			defer func() { _ = a.Close() }()
			all := ""
			done := make(chan struct{})
			go func() {
				defer close(done)
				for _, p := range tc.parts {
					_, _ = io.WriteString(a, p)
				}
			}()
			for _, p := range tc.parts {
				all += p
			}
			p, c, err := detect(pipeEnd{b}, tc.limit)
			if err != nil || p != tc.want {
				t.Fatalf("got %d, %v", p, err)
			}
			<-done
			_ = a.Close()
			if got, _ := io.ReadAll(c); string(got) != all {
				t.Errorf("read %q, want %q", got, all)
			}
		})
	}
}

func TestAuthority(t *testing.T) {
	good := map[string]struct {
		ap   string
		port uint16
	}{
		"10.0.0.1:80":          {"10.0.0.1:80", 80},
		"[fd00::1]:80":         {"[fd00::1]:80", 80},
		"[::ffff:10.0.0.1]:80": {"10.0.0.1:80", 80},
		"web.shop.svc:8080":    {"", 8080},
	}
	for in, want := range good {
		ap, port, err := ParseAuthority(in)
		var w netip.AddrPort
		if want.ap != "" {
			w = netip.MustParseAddrPort(want.ap)
		}
		if err != nil || ap != w || port != want.port {
			t.Errorf("%s: got %v %d %v", in, ap, port, err)
		}
	}
	for _, bad := range []string{"", "web", ":80", "10.0.0.1:0", "10.0.0.1:99999", "fd00::1:80", "[fe80::1%x]:80", "a b:80", "u@h:80", "h/p:80", "web:+80"} {
		if ap, port, err := ParseAuthority(bad); err == nil {
			t.Errorf("%q became %v %d", bad, ap, port)
		}
	}
}

func TestBaggage(t *testing.T) {
	got := claimed("k8s.cluster.name=c, k8s.namespace.name=n,k8s.cronjob.name=j,service.name=s=x,service.version=,other=1")
	if want := (upstream.Workload{Cluster: "c", Namespace: "n", Name: "j", CanonicalName: "s"}); got != want {
		t.Errorf("got %+v", got)
	}
}

func FuzzAuthority(f *testing.F) {
	f.Add("10.0.0.1:80")
	f.Fuzz(func(t *testing.T, s string) {
		if ap, port, err := ParseAuthority(s); err == nil && (port == 0 || ap.IsValid() && ap.Port() != port) {
			t.Errorf("%q became %v %d", s, ap, port)
		}
	})
}

func FuzzRecognize(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// What is enough stays enough: more bytes never change the answer.
		for i := range b {
			if p, enough := recognize(b[:i]); enough {
				if q, still := recognize(b); !still || p != q {
					t.Fatalf("%q: %d after %d bytes, then %d", b, p, i, q)
				}
				return
			}
		}
	})
}
