package phases_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

// answering is a pod whose application answers every request by the same bytes, and ends the connection.
func answering(t *testing.T, bytes string) *world {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, bytes)
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); served.Wait() })
	w := newWorld(t)
	w.podTCP("10.0.0.1:8080", l.Addr().String(), "spiffe://td/ns/shop/sa/app")
	w.mustApply(cluster(t, "v1"), endpoints("v1", "10.0.0.1:8080"), terminate(t), internal(t, manager(t)), routes(t, nil, to("/", "v1")))
	return w
}

// TestAnswersThatAreNone: an application cannot end the waypoint by a status that no answer has, nor have its client read
// as answers what follows a change of protocol that nobody asked for.
func TestAnswersThatAreNone(t *testing.T) {
	for _, status := range []int{0, 42, 99, 101} {
		t.Run(fmt.Sprintf("%03d", status), func(t *testing.T) {
			w := answering(t, fmt.Sprintf("HTTP/1.1 %03d Strange\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", status))
			c := w.client(shopper, vip+":80", false)
			for range 2 {
				if resp, body := do(t, c, "GET", "/"); resp.StatusCode != http.StatusBadGateway {
					t.Errorf("got %d %q", resp.StatusCode, body)
				}
			}
		})
	}
}

// TestPanicIsContained: a mistake of ours costs the request that met it, not the process.
func TestPanicIsContained(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		w := one(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		c := w.client(shopper, vip+":80", h2)
		ask := func(want int) {
			t.Helper()
			if resp, body := do(t, c, "GET", "/"); resp.StatusCode != want {
				t.Errorf("HTTP/2 %v: got %d %q, want %d", h2, resp.StatusCode, body, want)
			}
		}
		ask(http.StatusOK)
		w.id = func() string { panic("a mistake") }
		ask(http.StatusInternalServerError)
		w.id = func() string { return "id-2" }
		ask(http.StatusOK)
	}
}
