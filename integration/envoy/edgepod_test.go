//go:build lab

package envoy

import (
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// podVerb makes of this test binary the program of a pod that ends TLS itself and speaks to whoever upgrades.
const podVerb = "envoy-test-pod"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == podVerb {
		servePod(os.Args[2], os.Args[3])
	}
	os.Exit(m.Run())
}

func servePod(cert, key string) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Marrow-App", "pass/v1")
		if r.Header.Get("Upgrade") == "websocket" {
			echo(w, r)
			return
		}
		if r.TLS != nil {
			w.Header().Set("X-Server-Name", r.TLS.ServerName)
		}
		_, _ = io.WriteString(w, "pass\n")
	})
	serveJudges()
	go func() {
		plain := &http.Server{Addr: ":8080", Handler: h, ReadHeaderTimeout: 10 * time.Second}
		panic(plain.ListenAndServe())
	}()
	secure := &http.Server{Addr: ":8443", Handler: h, ReadHeaderTimeout: 10 * time.Second}
	panic(secure.ListenAndServeTLS(cert, key))
}

// echo agrees to the upgrade and sends back what comes, until nothing comes any more.
func echo(w http.ResponseWriter, r *http.Request) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Saw: "+
		r.Header.Get("Sec-Websocket-Key")+"\r\n\r\n")
	if r.URL.RawQuery == "bye" {
		_, _ = io.WriteString(c, "bye")
		return
	}
	_, _ = io.Copy(c, rw)
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
}
