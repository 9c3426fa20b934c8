package mtls

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls/record"
)

// openssl is a running s_client or s_server.
type openssl struct {
	in  io.WriteCloser
	out *transcript
	cmd *exec.Cmd
}

// transcript collects what a process says.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return s.text.Write(p)
}

// until waits for what ok wants to see.
func (s *transcript) until(t *testing.T, what string, ok func([]byte) bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		done := ok(s.text.Bytes())
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-s.more:
		case <-limit:
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("openssl: no %s in %d bytes: %.600q", what, s.text.Len(), s.text.Bytes())
		}
	}
}

func runOpenSSL(t *testing.T, args ...string) *openssl {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	o := &openssl{in: in, out: &transcript{more: make(chan struct{}, 1)}, cmd: cmd}
	cmd.Stdout = o.out
	if !strings.Contains(strings.Join(args, " "), "-quiet") {
		cmd.Stderr = o.out
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return o
}

func needOpenSSL(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err == nil {
		return
	}
	if os.Getenv("MARROW_REQUIRE_OPENSSL") == "1" {
		t.Fatal("no openssl in PATH, and MARROW_REQUIRE_OPENSSL=1 asks for it")
	}
	t.Skip("no openssl in PATH: install it to have the record layer judged by it")
}

// files writes a certificate for openssl.
func files(t *testing.T, c *Certificate) []string {
	t.Helper()
	dir := t.TempDir()
	key, err := x509.MarshalECPrivateKey(c.TLS.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for name, text := range map[string][]byte{
		"cert": c.ChainPEM, "CAfile": c.RootPEM, "key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		out = append(out, "-"+name, path)
	}
	return out
}

// against has openssl and us shake hands; ours may seal so many records under
// one key.
func against(t *testing.T, client bool, limit uint64, flags ...string) (*record.Conn, *openssl) {
	t.Helper()
	ca := newAuthority(t, "root")
	mine, theirs := ca.issue(t, idA, nil), ca.issue(t, idB, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	args := append([]string{"s_client", "-connect", l.Addr().String(), "-tls1_3", "-alpn", "h2", "-verify_return_error"}, flags...)
	var c Conn
	var o *openssl
	if client {
		_ = l.Close()
		args[0], args[1] = "s_server", "-accept"
		args = append(args, "-Verify", "2", "-naccept", "1")
		o = runOpenSSL(t, append(args, files(t, theirs)...)...)
		var raw net.Conn
		for try := 0; raw == nil; try++ {
			if raw, err = net.Dial("tcp", l.Addr().String()); err != nil && try > 500 {
				t.Fatal(err)
			}
			if err != nil {
				time.Sleep(10 * time.Millisecond)
			}
		}
		c, _, err = Client(t.Context(), raw, mine, []identity.ID{theirs.ID})
	} else {
		o = runOpenSSL(t, append(args, files(t, theirs)...)...)
		var raw net.Conn
		if raw, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		c, _, err = Server(t.Context(), raw, mine)
	}
	if err != nil {
		t.Fatal(err)
	}
	own, ok := c.(*record.Conn)
	if !ok {
		t.Fatalf("%T", c)
	}
	st, err := own.Export()
	if err != nil {
		t.Fatal(err)
	}
	st.Limit = limit
	if own, err = record.New(own.NetConn(), st); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = own.Close() })
	return own, o
}

// TestOpenSSLBulk: bulk in both directions at once, in both roles, with both
// suites, with padded, small and split records, and with keys of ours that
// last for a few records only.
func TestOpenSSLBulk(t *testing.T) {
	needOpenSSL(t)
	const size = 2 << 20
	for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"} {
		for _, client := range []bool{true, false} {
			for _, flags := range [][]string{nil, {"-record_padding", "1000"}, {"-max_send_frag", "512"}, {"-max_send_frag", "16384", "-split_send_frag", "700"}, {"-record_padding", "16384"}} {
				t.Run(fmt.Sprintf("%s client=%t %s", suite, client, strings.Join(flags, " ")), func(t *testing.T) {
					c, o := against(t, client, 37, append([]string{"-quiet", "-ciphersuites", suite}, flags...)...)
					if got := tls.CipherSuiteName(c.Suite()); got != suite {
						t.Fatalf("suite %s", got)
					}
					up, down := random(size), random(size+1)
					ends := make(chan error, 2)
					go func() {
						_, err := o.in.Write(down)
						ends <- err
					}()
					go func() {
						var err error
						for p := range slicesOf(up) {
							if err = c.WriteOwned([][]byte{p[:len(p)/2], p[len(p)/2 : len(p)-1 : len(p)], p[len(p)-1:]}); err != nil {
								break
							}
						}
						ends <- err
					}()
					var got []byte
					err := c.Feed(func(p []byte) (int, error) {
						if got = append(got, p...); len(got) == len(down) {
							return len(p), errAll
						}
						return len(p), nil
					})
					if !errors.Is(err, errAll) || !bytes.Equal(got, down) {
						t.Fatalf("%d bytes from openssl, %v", len(got), err)
					}
					for range 2 {
						if err := <-ends; err != nil {
							t.Fatal(err)
						}
					}
					o.out.until(t, "all bytes", func(b []byte) bool { return len(b) >= size })
					o.out.mu.Lock()
					defer o.out.mu.Unlock()
					if !bytes.Equal(o.out.text.Bytes(), up) {
						t.Error("other bytes arrived at openssl")
					}
				})
			}
		}
	}
}

var errAll = errors.New("all there")

// slicesOf cuts p into pieces of growing size.
func slicesOf(p []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for n := 100; len(p) > 0; n = n*3/2 + 1 {
			n = min(n, len(p))
			if !yield(p[:n:n]) {
				return
			}
			p = p[n:]
		}
	}
}

// TestOpenSSLKeyUpdate: openssl updates its key, and asks for one of ours,
// between messages; we update on our own after every second record.
func TestOpenSSLKeyUpdate(t *testing.T) {
	needOpenSSL(t)
	for _, client := range []bool{true, false} {
		t.Run(fmt.Sprintf("client=%t", client), func(t *testing.T) {
			c, o := against(t, client, 2)
			first, err := c.Export()
			if err != nil {
				t.Fatal(err)
			}
			if c, err = record.New(c.NetConn(), first); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			lines := make(chan string, 100)
			ended := make(chan error, 1)
			go func() {
				ended <- c.Feed(func(p []byte) (int, error) {
					n := bytes.LastIndexByte(p, '\n') + 1
					for line := range bytes.Lines(p[:n]) {
						lines <- string(line)
						if _, err := c.Write(bytes.ToUpper(line)); err != nil {
							return n, err
						}
					}
					return n, nil
				})
			}()
			say := func(s string) { _, _ = o.in.Write([]byte(s + "\n")) }
			for i := range 12 {
				word := fmt.Sprintf("message-%c", 'a'+i)
				say(word)
				select {
				case got := <-lines:
					if got != word+"\n" {
						t.Fatalf("%q, want %q", got, word)
					}
				case err := <-ended:
					t.Fatal(err)
				case <-time.After(20 * time.Second):
					t.Fatal("nothing arrives")
				}
				o.out.until(t, "answer", func(b []byte) bool { return bytes.Contains(b, []byte(strings.ToUpper(word))) })
				// A line of one letter is a command.
				say([]string{"K", "k"}[i%2])
				o.out.until(t, "update", func(b []byte) bool {
					return bytes.Count(b, []byte("KEYUPDATE"))+bytes.Count(b, []byte("SSL_do_handshake -> 1")) > i
				})
			}
			var want error
			if client { // s_server ends without close_notify
				want = os.ErrDeadlineExceeded
				_ = c.SetReadDeadline(time.Now())
			} else {
				say("Q")
			}
			select {
			case err := <-ended:
				if !errors.Is(err, want) {
					t.Errorf("the end: %v, want %v", err, want)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("no end")
			}
			last, err := c.Export()
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(first.In.Secret, last.In.Secret) || bytes.Equal(first.Out.Secret, last.Out.Secret) {
				t.Error("no key was updated")
			}
		})
	}
}

// TestOpenSSLEnds: our close_notify ends openssl, and its alerts reach us.
func TestOpenSSLEnds(t *testing.T) {
	needOpenSSL(t)
	c, o := against(t, false, 0)
	if _, err := c.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	o.out.until(t, "closed", func(b []byte) bool {
		return bytes.Contains(b, []byte("last words")) && bytes.Contains(b, []byte("closed"))
	})
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	// A record that does not open: openssl answers bad_record_mac.
	c, _ = against(t, false, 0)
	if _, err := c.NetConn().Write([]byte{23, 3, 3, 0, 20, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1))
	if ae, ok := errors.AsType[*record.AlertError](err); !ok || !ae.Remote || ae.Alert != 20 {
		t.Errorf("%v, want bad_record_mac from the peer", err)
	}
	// One that we refuse: openssl names our alert.
	c, o = against(t, true, 0)
	_, _ = o.in.Write([]byte("hello\n"))
	_ = c.Close()
	o.out.until(t, "end", func(b []byte) bool {
		return bytes.Contains(b, []byte("DONE")) || bytes.Contains(b, []byte("CONNECTION CLOSED"))
	})
}

// TestOpenSSLRetries: a HelloRetryRequest makes the handshake longer, not
// other.
func TestOpenSSLRetries(t *testing.T) {
	needOpenSSL(t)
	for client, groups := range map[bool]string{true: "P-384", false: "P-521:P-256"} {
		c, o := against(t, client, 0, "-groups", groups)
		if _, err := o.in.Write([]byte("message\n")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 20)
		if n, err := c.Read(got); err != nil || string(got[:n]) != "message\n" {
			t.Errorf("client=%t: %q, %v", client, got[:n], err)
		}
		if _, err := c.Write([]byte("answer")); err != nil {
			t.Error(err)
		}
		o.out.until(t, "answer", func(b []byte) bool { return bytes.Contains(b, []byte("answer")) })
	}
}

// TestOpenSSLChaCha: a suite that is not ours leaves crypto/tls in charge,
// with what has arrived behind the handshake.
func TestOpenSSLChaCha(t *testing.T) {
	needOpenSSL(t)
	ca := newAuthority(t, "root")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	args := []string{"s_client", "-connect", l.Addr().String(), "-tls1_3", "-alpn", "h2", "-quiet", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"}
	o := runOpenSSL(t, append(args, files(t, ca.issue(t, idB, nil))...)...)
	up := random(300000)
	go func() { _, _ = o.in.Write(up) }()
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := Server(t.Context(), raw, ca.issue(t, idA, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if Suite(c) != tls.TLS_CHACHA20_POLY1305_SHA256 || isOwn(c) {
		t.Fatalf("suite %#x, %T", Suite(c), c)
	}
	got := make([]byte, len(up))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, up) {
		t.Fatalf("other bytes, or %v", err)
	}
	if _, err := c.Write(up); err != nil {
		t.Fatal(err)
	}
	o.out.until(t, "all bytes", func(b []byte) bool { return bytes.Equal(b, up) })
}

// TestOpenSSLIsRefused without a certificate, by an alert that it can read:
// the server's record layer is still crypto/tls' then.
func TestOpenSSLIsRefused(t *testing.T) {
	needOpenSSL(t)
	ca := newAuthority(t, "root")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	o := runOpenSSL(t, "s_client", "-connect", l.Addr().String(), "-tls1_3", "-alpn", "h2")
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Server(context.Background(), raw, ca.issue(t, idA, nil)); err == nil {
		t.Fatal("accepted")
	}
	o.out.until(t, "alert", func(b []byte) bool { return bytes.Contains(b, []byte("alert certificate required")) })
}
