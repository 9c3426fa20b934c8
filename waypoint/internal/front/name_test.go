package front

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
)

// greeting is what a TLS client sends first.
func greeting(t *testing.T, server string) string {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() {
		//nolint:gosec // nobody answers
		done <- tls.Client(a, &tls.Config{ServerName: server, InsecureSkipVerify: true}).HandshakeContext(t.Context())
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(b, rest); err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
	<-done
	return string(head) + string(rest)
}

// TestServerName: the name that a policy asks for is seen before anybody is connected, and a client that keeps it to itself for the
// time being is refused rather than taken for one that has none.
func TestServerName(t *testing.T) {
	hello := greeting(t, "A.example")
	tests := []struct {
		name  string
		parts []string
		ends  bool // the client says that it ends
		want  string
		bad   bool
	}{
		{name: "TLS", parts: []string{hello}, want: "a.example"},
		{name: "TLS in pieces", parts: []string{hello[:1], hello[1:40], hello[40:]}, want: "a.example"},
		{name: "TLS without a name", parts: []string{greeting(t, "")}},
		{name: "another protocol", parts: []string{"EHLO a.example\r\n"}},
		{name: "nothing at all", ends: true},
		{name: "silence", bad: true},
		{name: "half of it", parts: []string{hello[:40]}, bad: true},
		{name: "half of it, then the end", parts: []string{hello[:40]}, ends: true, bad: true},
		{name: "TLS that makes no sense", parts: []string{"\x16\x03\x01\x00\x04\x02\x00\x00\x00"}, bad: true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			a, b := tcppair.New(t)
			all, done := "", make(chan struct{})
			for _, p := range tc.parts {
				all += p
			}
			go func() {
				defer close(done)
				for _, p := range tc.parts {
					_, _ = io.WriteString(a, p)
				}
				if tc.ends {
					_ = a.CloseWrite()
				}
			}()
			name, c, err := serverName(b, 200*time.Millisecond)
			if name != tc.want || (err != nil) != tc.bad {
				t.Fatalf("got %q, %v", name, err)
			}
			<-done
			_ = a.CloseWrite()
			if err != nil {
				return
			}
			if got, _ := io.ReadAll(c); !bytes.Equal(got, []byte(all)) {
				t.Errorf("%d bytes are left to be read, want %d", len(got), len(all))
			}
		})
	}
}
