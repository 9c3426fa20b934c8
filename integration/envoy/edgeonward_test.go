//go:build lab

package envoy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openOnward is testdata/onward.yaml with its certificate.
func openOnward(b *border) {
	b.t.Helper()
	servers := newAuthority(b.t, "servers")
	b.roots = filepath.Join(b.dir, "roots.pem")
	if err := os.WriteFile(b.roots, servers.pem(), 0o600); err != nil {
		b.t.Fatal(err)
	}
	wide := servers.issue("*.example.com")
	cert, key := wide.write(b.t, b.dir, "wide")
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	b.apply(secretYAML("wide", "tls.crt", wide.cert, "tls.key", wide.key))
	text, err := os.ReadFile("testdata/onward.yaml")
	if err != nil {
		b.t.Fatal(err)
	}
	b.apply(string(text), "SELF", self, "PODVERB", podVerb, "CERTFILE", cert, "KEYFILE", key)
	b.lab.must("lab", "wait", "--timeout", "60s")
	b.forward("edge", "443", "80")
	// Nobody can enforce catalog's policies yet, so nobody reaches it (ADR 16).
	b.until("503 HTTP/2", "edge", "https://shop.example.com/")
	b.until("418 HTTP/2", "edge", "-H", "x-say: deny", "https://shop.example.com/edge-grpc")
	b.until("418 HTTP/2", "edge", "-H", "x-say: deny", "https://shop.example.com/edge-http")
}

// judged are the questions about a server that decides, at the place whose paths begin so.
func judged(place string) []check {
	var out []check
	for _, by := range []string{"grpc", "http"} {
		url := "https://shop.example.com/" + place + "-" + by
		say := func(what string) []string { return []string{"-H", "x-say: " + what, url} }
		path, host := "/"+place+"-"+by, "shop.example.com"
		if by == "http" {
			path, host = "/check"+path, "shop.example.com"
		}
		why := func(_ *border, a answer) string { return a.status + " " + a.header.Get("X-Why") + " " + a.body }
		out = append(out,
			check{name: place + ", allowed by " + by, args: []string{url}, want: "200 HTTP/2 catalog"},
			check{name: place + ", what is added by " + by, args: []string{"-H", "x-add: forged", url + "?headers"}, show: seen("X-Add"), want: "X-Add=judged"},
			check{name: place + ", denied by " + by, args: say("deny"), show: why, want: "418 HTTP/2 GET " + path + " " + host + " no"},
			check{name: place + ", denied without words by " + by, args: say("plain"), want: "403 HTTP/2"},
			check{name: place + ", out of order, " + by, args: say("fail"), want: "403 HTTP/2"},
			check{name: place + ", late, " + by, args: say("wait"), want: "403 HTTP/2"},
			check{name: place + ", another spelling, " + by, args: append([]string{"--path-as-is"}, "-H", "x-say: deny", "https://shop.example.com/x/../"+place+"-"+by), want: "418 HTTP/2"},
		)
	}
	return append(out, check{name: place + ", not asked", args: []string{"-H", "x-say: deny", "https://shop.example.com/other"}, want: "200 HTTP/2 catalog"})
}

// TestEdgeOnward: servers that decide, at the gateway and at the waypoint behind it; a service's waypoint is gone through where it is asked
// for, as the gateway's identity; connections are upgraded.
func TestEdgeOnward(t *testing.T) {
	atBothBorders(t, func(b *border) {
		openOnward(b)
		b.lab.must("waypoint", "apply", "-n", "shop", "--service-account", "catalog", "--wait")
		b.run("edge", []check{
			{name: "around the waypoint", args: []string{"https://shop.example.com/never"}, want: "503 HTTP/2"},
			{name: "around the waypoint, what its policies allow", args: []string{"https://shop.example.com/"}, want: "503 HTTP/2"},
		})
		b.lab.must("lab", "label", "svc", "catalog", "istio.io/ingress-use-waypoint=true", "-n", "shop")
		b.until("403 HTTP/2", "edge", "https://shop.example.com/never")
		b.run("edge", judged("edge"))
		b.upgrades()
		b.run("edge", judged("inside"))
		b.run("edge", []check{{name: "as the gateway's identity", args: []string{"https://shop.example.com/by-the-gateway"}, want: "200 HTTP/2 catalog"}})
		if status, body := b.lab.first("--url", "http://catalog/by-the-gateway"); status != "403" {
			t.Errorf("another identity: %s %s", status, body)
		}
	})
}

// frame is one of WebSocket (RFC 6455, 5.2), masked as a client has to.
func frame(opcode byte, size int) []byte {
	var b bytes.Buffer
	b.WriteByte(0x80 | opcode)
	switch {
	case size < 126:
		b.WriteByte(0x80 | byte(size))
	case size < 1<<16:
		b.WriteByte(0x80 | 126)
		_ = binary.Write(&b, binary.BigEndian, uint16(size))
	default:
		b.WriteByte(0x80 | 127)
		_ = binary.Write(&b, binary.BigEndian, uint64(size))
	}
	for range 4 + size {
		b.WriteByte(byte(rand.Uint32()))
	}
	return b.Bytes()
}

// upgrade asks for a WebSocket.
func (b *border) upgrade(path, to string) (*tls.Conn, *bufio.Reader, *http.Response) {
	b.t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", b.doors["edge:443"], &tls.Config{ServerName: "shop.example.com", InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}) //nolint:gosec // others ask for the certificate
	if err != nil {
		b.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: shop.example.com\r\nConnection: Upgrade\r\nUpgrade: "+to+
		"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n\r\n")
	if err != nil {
		b.t.Fatal(err)
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		b.t.Fatalf("upgrade to %s: %v", to, err)
	}
	return c, r, resp
}

// upgrades: frames of all kinds and sizes come back byte for byte, either side may end it, and other protocols are not upgraded to.
func (b *border) upgrades() {
	t := b.t
	c, r, resp := b.upgrade("/ws", "websocket")
	if resp.StatusCode != 101 || resp.Header.Get("X-Saw") != "dGhlIHNhbXBsZQ==" || !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") {
		t.Fatalf("upgrade: %s %v", resp.Status, resp.Header)
	}
	for _, opcode := range []byte{1, 2, 9, 10, 8} {
		for _, size := range []int{0, 1, 125, 126, 1<<16 - 1, 1 << 16, 1 << 20} {
			f := frame(opcode, size)
			wrote := make(chan error, 1)
			go func() { _, err := c.Write(f); wrote <- err }()
			got := make([]byte, len(f))
			_, err := io.ReadFull(r, got)
			if err := errors.Join(err, <-wrote); err != nil || !bytes.Equal(got, f) {
				t.Fatalf("frame %d of %d bytes: %v, equal %v", opcode, size, err, bytes.Equal(got, f))
			}
		}
	}
	_ = c.Close() // the client first
	c, r, resp = b.upgrade("/ws?bye", "websocket")
	if rest, err := io.ReadAll(r); resp.StatusCode != 101 || string(rest) != "bye" || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the server first: %s %q %v", resp.Status, rest, err)
	}
	_ = c.Close()
	c, _, resp = b.upgrade("/ws", "other")
	_ = c.Close()
	if resp.StatusCode != 403 {
		t.Errorf("another protocol: %s", resp.Status)
	}
}
