//go:build lab

package websocket_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/marrowmesh/marrow/integration/command"
)

const (
	serverVerb   = "websocket-server"
	clientVerb   = "websocket-client"
	settingsVerb = "websocket-settings"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{serverVerb, clientVerb, settingsVerb}, os.Args[1]) {
		os.Exit(mainOf(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// place is a way from a client to the server.
type place struct {
	name, pod, addr, host, security string
}

var places = []place{
	{"the waypoint, inside of HBONE", "client", "server:8080", "server", "clear"},
	{"the gateway, in the clear", "stranger", "front-istio:80", "any.example.com", "clear"},
	{"the gateway, by TLS", "stranger", "front-istio:443", "any.example.com", "tls"},
}

// up is a lab with our programs and one with Envoy in their place.
func up(t *testing.T, each func(t *testing.T, ends string, ask func(p place, args ...string) (string, error))) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	serve := []string{self, serverVerb}
	world := command.World{
		Pods: []command.Pod{
			{Name: "server", Node: "node-2", Mesh: true, Command: serve},
			{Name: "client", Node: "node-1", Mesh: true, Command: serve},
			{Name: "stranger", Node: "node-1", Command: serve},
		},
		Protocol: "http", Clear: "server", TLS: "server", Host: "any.example.com",
	}
	for _, peer := range []struct {
		name, ends string
		program    func(testing.TB) string
	}{
		{"ours", "properly", func(testing.TB) string { return "" }},
		// When one side of an upgraded connection hangs up Envoy resets the other, once it has all bytes.
		{"Envoy", "resets", command.Envoy},
	} {
		t.Run(peer.name, func(t *testing.T) {
			l, _ := world.Start(t, "ws", peer.program(t), "server")
			each(t, peer.ends, func(p place, args ...string) (string, error) {
				return l.Exec(t, time.Minute, p.pod, append([]string{self}, args...)...)
			})
		})
	}
}

// TestFrames: every kind and size of frame arrives as it was sent, both ways, and both ends see the end that the other made.
func TestFrames(t *testing.T) {
	up(t, func(t *testing.T, ends string, ask func(place, ...string) (string, error)) {
		for _, p := range places {
			talk := func(first, hangup string) error {
				_, err := ask(p, clientVerb, p.addr, p.host, first, hangup, p.security, ends)
				return err
			}
			// Listeners and routes come a moment after the pods.
			for end := time.Now().Add(20 * time.Second); talk("client", "server") != nil && time.Now().Before(end); {
				<-time.After(100 * time.Millisecond)
			}
			for _, first := range []string{"client", "server"} {
				for _, hangup := range []string{"client", "server"} {
					if err := talk(first, hangup); err != nil {
						t.Errorf("%s: the %s says goodbye first, the %s hangs up: %v", p.name, first, hangup, err)
					}
				}
			}
			out, err := ask(p, settingsVerb, p.addr, p.host, p.security)
			if err != nil || !strings.Contains(out, "not offered, refused") {
				t.Errorf("%s: Extended CONNECT: %s, %v", p.name, out, err)
			}
			t.Logf("%s: Extended CONNECT: %s", p.name, out)
		}
	})
}

// extended looks whether a server offers Extended CONNECT (RFC 8441), and tries it whatever it says.
func extended(addr, host string, secure bool) error {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if secure {
		c = tls.Client(c, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // as in dial
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "http"}, {":path", "/"}, {":authority", host}, {"sec-websocket-version", "13"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	fr := http2.NewFramer(c, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, err = io.WriteString(c, http2.ClientPreface)
	if err = errors.Join(err, fr.WriteSettings(), fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})); err != nil {
		return err
	}
	offered := "not offered"
	for {
		f, err := fr.ReadFrame()
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			fmt.Printf("%s, refused: connection ended\n", offered)
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", offered, err)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if v, ok := f.Value(http2.SettingEnableConnectProtocol); ok && v == 1 {
				offered = "offered"
			}
		case *http2.RSTStreamFrame:
			fmt.Printf("%s, refused: %v\n", offered, f.ErrCode)
			return nil
		case *http2.GoAwayFrame:
			fmt.Printf("%s, refused: goaway %v\n", offered, f.ErrCode)
			return nil
		case *http2.MetaHeadersFrame:
			if f.PseudoValue("status") == "200" {
				fmt.Printf("%s, done\n", offered)
			} else {
				fmt.Printf("%s, refused: %s\n", offered, f.PseudoValue("status"))
			}
			return nil
		}
	}
}
