//go:build lab

package lab_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// certificate is one that the mesh's authority gave to the pod itself.
func (w *world) certificate(pod string) signed {
	w.t.Helper()
	got := in[signed](w, pod, "csr", csrArgs{Token: "pod", Identity: spiffe(w.ns, pod)})
	if got.Code != "OK" {
		w.t.Fatalf("no certificate for %s: %s %s", pod, got.Code, got.Message)
	}
	return got
}

// leafAndChain leaves the root out, which nobody presents.
func (s signed) leafAndChain() string { return strings.Join(s.Chain[:len(s.Chain)-1], "") }

const simpleGet = "GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n"

// TestTunnelRefuses: with a valid certificate, but not for what is asked.
func TestTunnelRefuses(t *testing.T) {
	w := newWorld(t, "tunnel", true)
	cert := w.certificate("rogue")
	server, near := w.ip("server").String(), w.ip("near").String()
	good := connectTo(server + ":8080")
	w.undisturbed(func() {
		open := tunnelArgs{Dst: server + ":15008", Chain: cert.leafAndChain(), Key: cert.Key}
		honest := open
		honest.Requests, honest.Body = [][]field{good}, simpleGet
		got := in[tunnelEnd](w, "rogue", "tunnel", honest)
		if len(got.Answers) != 1 || got.Answers[0].Status != "200" || !strings.Contains(got.Answers[0].Data, "200 OK") || got.Peer != spiffe(w.ns, "server") {
			t.Fatalf("an honest peer: %+v", got)
		}
		cases := []struct {
			name   string
			fields []field
			status string // "" = any refusal
		}{
			{"another pod's address", connectTo(near + ":8080"), "400"},
			{"an address outside the mesh", connectTo("192.0.2.1:8080"), "400"},
			{"loopback", connectTo("127.0.0.1:8080"), "400"},
			{"the tunnel port itself", connectTo(server + ":15008"), "503"},
			{"the outbound port", connectTo(server + ":15001"), "503"},
			{"the plaintext port", connectTo(server + ":15006"), "503"},
			{"a name that nobody knows", connectTo("nobody.example:8080"), "503"},
			{"no port", connectTo(server), "400"},
			{"a port beyond all", connectTo(server + ":99999"), "400"},
			{"an empty authority", connectTo(""), "400"},
			{"another method", []field{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", server + ":8080"}}, ""},
			{"extended CONNECT", []field{{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "http"}, {":path", "/"}, {":authority", server + ":8080"}}, ""},
			{"no method", []field{{":authority", server + ":8080"}}, ""},
		}
		for _, c := range cases {
			attack := open
			attack.Requests = [][]field{c.fields}
			got := in[tunnelEnd](w, "rogue", "tunnel", attack)
			if len(got.Answers) != 1 || got.Answers[0].Status == "200" || (got.Answers[0].Status == "" && got.Answers[0].Reset == "" && got.GoAway == "") ||
				(c.status != "" && got.Answers[0].Status != c.status) {
				t.Errorf("%s: %+v, want status %q", c.name, got, c.status)
			}
		}
		// A refused stream takes nothing away from its neighbours on the same connection.
		mixed := open
		mixed.Requests, mixed.Body = [][]field{connectTo(near + ":8080"), good}, simpleGet
		got = in[tunnelEnd](w, "rogue", "tunnel", mixed)
		if len(got.Answers) != 2 || got.Answers[0].Status != "400" || got.Answers[1].Status != "200" || !strings.Contains(got.Answers[1].Data, "200 OK") {
			t.Errorf("a good stream beside a bad one: %+v", got)
		}
		// A closed port of the right pod is a failure of the way, not of the asker.
		closed := open
		closed.Requests = [][]field{connectTo(server + ":7")}
		got = in[tunnelEnd](w, "rogue", "tunnel", closed)
		if len(got.Answers) != 1 || got.Answers[0].Status != "503" {
			t.Errorf("a port where nobody listens: %+v, want 503 and no 200 before", got)
		}
	})
}

// TestPeersRefused: certificates that the mesh must not believe. Some are signed by its own, stolen root, so that
// nothing but the one fault speaks against them.
func TestPeersRefused(t *testing.T) {
	w := newWorld(t, "peers", true)
	server := w.ip("server").String()
	hour := time.Now().Add(time.Hour)
	root, other := stolen(w), foreign(t)
	w.undisturbed(func() {
		send := func(chain, key string, change func(*tunnelArgs)) tunnelEnd {
			a := tunnelArgs{Dst: server + ":15008", Chain: chain, Key: key, Requests: [][]field{connectTo(server + ":8080")}, Body: simpleGet}
			if change != nil {
				change(&a)
			}
			return in[tunnelEnd](w, "rogue", "tunnel", a)
		}
		chain, key := root.sign(spiffe(w.ns, "rogue"), hour)
		if got := send(chain, key, nil); len(got.Answers) != 1 || got.Answers[0].Status != "200" {
			t.Fatalf("what the stolen root signs rightly: %+v", got)
		}
		refused := func(name string, got tunnelEnd) {
			t.Helper()
			if got.TLS == "" || got.Dial != "" || (len(got.Answers) > 0 && (got.Answers[0].Status != "" || got.Answers[0].Data != "")) {
				t.Errorf("%s: %+v, want a refusal in the handshake", name, got)
			}
		}
		c, k := root.sign("spiffe://evil.local/ns/"+w.ns+"/sa/rogue", hour)
		refused("another trust domain", send(c, k, nil))
		c, k = other.sign(spiffe(w.ns, "rogue"), hour)
		refused("another root", send(c, k, nil))
		c, k = root.sign(spiffe(w.ns, "rogue"), time.Now().Add(-time.Minute))
		refused("expired", send(c, k, nil))
		c, k = root.sign("", hour)
		refused("no identity", send(c, k, nil))
		refused("no certificate", send("", "", nil))
		refused("TLS 1.2", send(chain, key, func(a *tunnelArgs) { a.TLS12 = true }))
		refused("another protocol", send(chain, key, func(a *tunnelArgs) { a.ALPN = []string{"http/1.1"} }))
		// Each refusal is in the node's log, with what was wrong.
		for _, word := range []string{"evil.local", "expired"} {
			if err := w.logged("ztunnel-node-2", time.Time{}, word, server); err != nil {
				t.Errorf("the refusal is not told: %v", err)
			}
		}
	})
}

// TestHostileBytes: what no honest peer sends, to every port of the proxy.
func TestHostileBytes(t *testing.T) {
	w := newWorld(t, "bytes", true)
	cert := w.certificate("rogue")
	server := w.ip("server").String()
	good := connectTo(server + ":8080")
	w.undisturbed(func() {
		for _, attack := range []string{"no preface", "garbage", "huge headers", "endless continuation", "rapid reset", "data on stream 0"} {
			began := time.Now()
			send := func() tunnelEnd {
				return in[tunnelEnd](w, "rogue", "tunnel", tunnelArgs{Dst: server + ":15008", Chain: cert.leafAndChain(), Key: cert.Key, Attack: attack, Requests: [][]field{good}})
			}
			got := send()
			// From the second on it is kept out for 1, 2, 4 and 8 seconds.
			for strings.Contains(got.Dial+got.TLS, "reset by peer") && time.Since(began) < 20*time.Second {
				time.Sleep(100 * time.Millisecond)
				got = send()
			}
			t.Logf("%s: %d frames, GOAWAY %q, answers %+v, end %q, %v", attack, got.Sent, got.GoAway, got.Answers, got.End, time.Since(began).Round(time.Millisecond))
			if len(got.Answers) > 0 && got.Answers[0].Status == "200" {
				t.Errorf("%s: was accepted: %+v", attack, got)
			}
			// Either the stream is refused, or the connection ends, soon.
			refused := len(got.Answers) > 0 && (got.Answers[0].Status != "" || got.Answers[0].Reset != "")
			if !refused && (got.End == "" || strings.Contains(got.End, "timeout")) {
				t.Errorf("%s: the connection stays open: %+v", attack, got)
			}
			w.mustAsk("client", "http://server/", "--count", "2")
		}
		// Raw bytes, from a pod beside the mesh and from both nodes.
		for _, port := range []int{15001, 15006, 15008} {
			for _, from := range []string{"rogue", "node-1", "node-2"} {
				for kind, data := range map[string][]byte{
					"text":  []byte(simpleGet),
					"zeros": make([]byte, 64<<10),
					"tls":   {0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3},
				} {
					got := in[rawEnd](w, from, "raw", rawSend{Dst: fmt.Sprintf("%s:%d", server, port), Data: data, Timeout: 2 * time.Second})
					if strings.Contains(string(got.Received), "200 OK") {
						t.Errorf("%s to port %d from %s got an answer of the application: %q", kind, port, from, firstLine(got.Received))
					}
					if got.Dial == "" && !got.Closed {
						t.Errorf("%s to port %d from %s: the connection stays open: %s", kind, port, from, got.Error)
					}
				}
			}
		}
	})
	// The same proxy serves the other pods of the node still.
	w.mustAsk("client", "http://near/")
}
