package clienthello

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"reflect"
	"testing"
	"time"
)

// sent is what a standard client says first.
func sent(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	go func() {
		_ = tls.Client(a, cfg).HandshakeContext(ctx)
		_ = a.Close()
	}()
	defer func() { _ = b.Close() }()
	head := make([]byte, 5)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// split puts one message into records of n bytes.
func split(record []byte, n int) []byte {
	var out []byte
	for body := record[5:]; len(body) > 0; {
		part := body[:min(n, len(body))]
		body = body[len(part):]
		out = append(out, 22, 3, 1, byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestStandardClient(t *testing.T) {
	want := Hello{ServerName: "shop.example.com", Protocols: []string{"h2", "http/1.1"}}
	record := sent(t, &tls.Config{ServerName: "Shop.Example.com", NextProtos: want.Protocols})
	for _, n := range []int{1 << 14, 100, 7, 1} {
		b := split(record, n)
		if len(b) > Limit {
			continue
		}
		got, err := Parse(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("records of %d: %+v %v", n, got, err)
		}
		for i := range b {
			if _, err := Parse(b[:i]); !errors.Is(err, ErrShort) {
				t.Fatalf("records of %d: %d of %d bytes: %v", n, i, len(b), err)
			}
		}
	}
	if got, err := Parse(sent(t, &tls.Config{InsecureSkipVerify: true})); err != nil || got.ServerName != "" {
		t.Errorf("without a name: %+v %v", got, err)
	}
}

func TestNotTLS(t *testing.T) {
	for _, text := range []string{"GET / HTTP/1.1\r\n", "PRI * HTTP/2.0", "\x16\x02\x00", "\x80\x2e\x01"} {
		if _, err := Parse([]byte(text)); !errors.Is(err, ErrNotTLS) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMalformed(t *testing.T) {
	record := sent(t, &tls.Config{ServerName: "a.example.com"})
	bad := map[string]func([]byte) []byte{
		"another message": func(b []byte) []byte { b[5] = 2; return b },
		"empty record":    func(b []byte) []byte { b[3], b[4] = 0, 0; return b },
		"alert after a part": func(b []byte) []byte {
			return append(split(b, len(b)-20)[:len(b)-15], 21, 3, 3, 0, 2, 2, 40)
		},
	}
	for name, change := range bad {
		if got, err := Parse(change(append([]byte{}, record...))); !errors.Is(err, ErrBad) {
			t.Errorf("%s: %+v %v", name, got, err)
		}
	}
}

// TestLimit: the size that a client announces is not waited for when it is too much.
func TestLimit(t *testing.T) {
	if _, err := Parse([]byte{22, 3, 1, 0, 10, 1, 1, 0, 0}); !errors.Is(err, ErrBad) {
		t.Errorf("a message of 64 KiB: %v", err)
	}
	if _, err := Parse([]byte{22, 3, 1, 0x40, 1}); !errors.Is(err, ErrBad) {
		t.Errorf("a record of more than 16 KiB: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sent(f, &tls.Config{ServerName: "a.example.com", NextProtos: []string{"h2"}}))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for i := range b {
			got, err := Parse(b[:i])
			if errors.Is(err, ErrShort) {
				if i >= Limit {
					t.Fatalf("still short after %d bytes", i)
				}
				continue
			}
			again, then := Parse(b)
			if (err == nil) != (then == nil) || err == nil && !reflect.DeepEqual(got, again) {
				t.Fatalf("%d bytes say %+v %v, all say %+v %v", i, got, err, again, then)
			}
			return
		}
	})
}
