package proxyproto

import (
	"errors"
	"net/netip"
	"testing"
)

func header2(command, family byte, body ...byte) []byte {
	b := append([]byte(signature2), command, family, byte(len(body)>>8), byte(len(body)))
	return append(b, body...)
}

func TestParse(t *testing.T) {
	four := []byte{203, 0, 113, 7, 10, 0, 0, 1, 0x1f, 0x90, 1, 0xbb}
	six := make([]byte, 36)
	six[0], six[15], six[31], six[33], six[35] = 0x20, 1, 2, 80, 90
	tests := map[string]struct {
		in     []byte
		source string
		dest   string
		local  bool
	}{
		"v1":         {[]byte("PROXY TCP4 203.0.113.7 10.0.0.1 8080 443\r\n"), "203.0.113.7:8080", "10.0.0.1:443", false},
		"v1 six":     {[]byte("PROXY TCP6 2001:db8::1 2001:db8::2 8080 443\r\n"), "[2001:db8::1]:8080", "[2001:db8::2]:443", false},
		"v1 unknown": {[]byte("PROXY UNKNOWN whatever\r\n"), "", "", true},
		"v2":         {header2(0x21, 0x11, four...), "203.0.113.7:8080", "10.0.0.1:443", false},
		"v2 tlv":     {header2(0x21, 0x11, append(append([]byte{}, four...), 4, 0, 1, 9)...), "203.0.113.7:8080", "10.0.0.1:443", false},
		"v2 six":     {header2(0x21, 0x21, six...), "[2000::1]:80", "[::2]:90", false},
		"v2 local":   {header2(0x20, 0x11, four...), "", "", true},
		"v2 unspec":  {header2(0x21, 0), "", "", true},
	}
	for name, tc := range tests {
		h, err := Parse(append(tc.in, "GET /"...))
		if err != nil || h.Size != len(tc.in) || h.Local != tc.local {
			t.Errorf("%s: %+v %v", name, h, err)
			continue
		}
		if !tc.local && (h.Source != netip.MustParseAddrPort(tc.source) || h.Destination != netip.MustParseAddrPort(tc.dest)) {
			t.Errorf("%s: %+v", name, h)
		}
		for i := range tc.in {
			if _, err := Parse(tc.in[:i]); !errors.Is(err, ErrShort) {
				t.Errorf("%s: %d bytes: %v", name, i, err)
			}
		}
	}
}

func TestMalformed(t *testing.T) {
	for _, in := range []string{
		"GET / HTTP/1.1\r\n", "PROXX", "PROXY TCP4 1.2.3.4 10.0.0.1 80\r\n", "PROXY TCP4 ::1 ::2 80 80\r\n", "PROXY TCP4 1.2.3.4 10.0.0.1 080 80\r\n",
		"PROXY TCP4 1.2.3.4 10.0.0.1 80 99999\r\n", "PROXY TCP6 fe80::1%eth0 ::2 80 80\r\n", "PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n",
		string(header2(0x11, 0x11)), string(header2(0x22, 0x11)), string(header2(0x21, 0x11, 1, 2, 3)), string(header2(0x21, 0x12, make([]byte, 12)...)),
		string(append([]byte(signature2), 0x21, 0x11, 0xff, 0xff)), "\r\n\r\nGET",
	} {
		if h, err := Parse([]byte(in)); err == nil || errors.Is(err, ErrShort) {
			t.Errorf("%q: %+v %v", in, h, err)
		}
	}
	long := []byte("PROXY UNKNOWN ")
	for len(long) < longest1 {
		long = append(long, 'x')
	}
	if _, err := Parse(long); err == nil || errors.Is(err, ErrShort) {
		t.Errorf("a line without end: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("PROXY TCP4 203.0.113.7 10.0.0.1 8080 443\r\nGET"))
	f.Add(header2(0x21, 0x11, make([]byte, 12)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for i := range b {
			h, err := Parse(b[:i])
			if errors.Is(err, ErrShort) {
				if i >= Limit {
					t.Fatalf("still short after %d bytes", i)
				}
				continue
			}
			again, then := Parse(b)
			if (err == nil) != (then == nil) || h != again || h.Size > i {
				t.Fatalf("%d bytes say %+v %v, all say %+v %v", i, h, err, again, then)
			}
			return
		}
	})
}
