//go:build lab

package websocket_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // RFC 6455 wants it
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// saw is what the server's end of one connection was.
type saw struct {
	Sum    string // of all bytes after the upgrade
	End    string // how it ended
	Broken bool   // by a reset, after all bytes
}

// server echoes each frame without its mask, says goodbye first when a text asks it to, and tells afterwards what it saw.
type server struct {
	mu   sync.Mutex
	saws map[string]saw
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	switch {
	case r.URL.Path == "/saw":
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(s.saws[name])
		return
	case r.Header.Get("Upgrade") != "websocket":
		w.WriteHeader(http.StatusOK)
		return
	}
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", accept(r.Header.Get("Sec-WebSocket-Key")))
	sum := sha256.New()
	end, broken := echo(c, bufio.NewReader(io.TeeReader(buffered, sum)), r.URL.Query().Get("hangup") == "server")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saws[name] = saw{Sum: hex.EncodeToString(sum.Sum(nil)), End: end, Broken: broken}
}

// echo returns how the connection ended. hangup: we end it, once both have said goodbye.
func echo(c io.Writer, r *bufio.Reader, hangup bool) (end string, broken bool) {
	said, heard := false, false
	for !said || !heard || !hangup {
		f, err := readFrame(r)
		if broken := errors.Is(err, syscall.ECONNRESET); broken || errors.Is(err, io.EOF) {
			return fmt.Sprintf("goodbye said %v, heard %v: the client hung up", said, heard), broken
		}
		if err != nil {
			return fmt.Sprintf("goodbye said %v, heard %v: %v", said, heard, err), true
		}
		f.key = [4]byte{}
		if f.kind == text && string(f.payload) == askGoodbye {
			f = goodbye
		}
		heard = heard || f.kind == bye && !bytes.Equal(f.payload, goodbye.payload)
		if f.kind == bye && said {
			continue // the answer to ours
		}
		said = said || f.kind == bye
		if _, err := c.Write(f.append(nil)); err != nil {
			return fmt.Sprintf("goodbye said %v, heard %v: write: %v", said, heard, err), true
		}
	}
	return "goodbye said and heard: hung up", false
}

const askGoodbye = "say goodbye"

var goodbye = frame{last: true, kind: bye, payload: []byte("\x03\xe9going away")}

// accept proves that the key was read, by RFC 6455 section 4.2.2.
func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // RFC 6455 wants it
	return base64.StdEncoding.EncodeToString(sum[:])
}

func serve() error {
	s := &http.Server{Addr: ":8080", Handler: &server{saws: map[string]saw{}}, ReadHeaderTimeout: time.Minute}
	return s.ListenAndServe()
}

// sizes are the borders of the three ways to write a length, and one that no buffer holds.
var sizes = []int{0, 1, 125, 126, 65535, 65536, 1 << 20}

// conversation is all that the client sends before goodbyes.
func conversation() []frame {
	var out []frame
	add := func(last bool, kind byte, size int) {
		f := frame{last: last, kind: kind, payload: make([]byte, size)}
		for i := range f.payload {
			f.payload[i] = byte(rand.Uint32())
			if kind == text {
				f.payload[i] = ' ' + f.payload[i]%90
			}
		}
		for i := range f.key {
			f.key[i] = byte(1 + rand.IntN(255))
		}
		out = append(out, f)
	}
	for _, n := range sizes {
		add(true, text, n)
		add(true, blob, n)
		// A message of four parts, and control frames between them.
		add(false, blob, n)
		add(false, more, n)
		add(true, ping, min(n, 125))
		add(true, pong, min(n, 125))
		add(false, more, 0)
		add(true, more, n)
	}
	return out
}

// dial connects and upgrades.
func dial(ctx context.Context, addr, host, name, hangup string, secure bool) (net.Conn, *bufio.Reader, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if secure {
		c = tls.Client(c, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}) //nolint:gosec // whose certificate it is, other suites ask
	}
	const key = "dGhlIHNhbXBsZSBub25jZQ=="
	_, _ = fmt.Fprintf(c, "GET /?name=%s&hangup=%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", name, hangup, host, key)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err == nil && (resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-Websocket-Accept") != accept(key)) {
		err = fmt.Errorf("no upgrade: %s %v", resp.Status, resp.Header)
	}
	if err != nil {
		_ = c.Close()
		return nil, nil, err
	}
	return c, r, nil
}

// talk sends everything, says goodbye or asks for it, and wants back what a faithful carrier brings. resets: after the last byte a
// reset is as good an end as any.
func talk(ctx context.Context, addr, host, first, hangup string, secure, resets bool) error {
	name := fmt.Sprintf("%s-%s-%d", first, hangup, rand.Uint64())
	c, r, err := dial(ctx, addr, host, name, hangup, secure)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	var sent, want []byte
	for _, f := range conversation() {
		sent = f.append(sent)
		f.key = [4]byte{}
		want = f.append(want)
	}
	own := frame{last: true, kind: bye, key: [4]byte{1, 2, 3, 4}, payload: []byte("\x03\xe8enough")}
	if first == "client" {
		sent = own.append(sent)
		want = frame{last: true, kind: bye, payload: own.payload}.append(want)
	} else {
		sent = frame{last: true, kind: text, key: own.key, payload: []byte(askGoodbye)}.append(sent)
		want = goodbye.append(want)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- err
	}()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if err := errors.Join(err, <-wrote); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		return errors.New("what came back is not what was sent")
	}
	if first == "server" {
		answer := own.append(nil)
		if _, err := c.Write(answer); err != nil {
			return err
		}
		sent = append(sent, answer...)
	}
	end := "goodbye said true, heard true: the client hung up"
	if hangup == "server" {
		end = "goodbye said and heard: hung up"
		if n, err := io.Copy(io.Discard, r); n != 0 || err != nil && (!resets || !errors.Is(err, syscall.ECONNRESET)) {
			return fmt.Errorf("the server hung up: %d bytes more, %w", n, err)
		}
	}
	_ = c.Close()
	sum := sha256.Sum256(sent)
	return believed(ctx, addr, host, name, saw{Sum: hex.EncodeToString(sum[:]), End: end}, secure, resets)
}

// believed asks the server what it saw, until it tells.
func believed(ctx context.Context, addr, host, name string, want saw, secure, resets bool) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		},
		TLSClientConfig: &tls.Config{ServerName: host, InsecureSkipVerify: true}, //nolint:gosec // as in dial
	}}
	scheme := "http"
	if secure {
		scheme = "https"
	}
	var got saw
	for end := time.Now().Add(5 * time.Second); got == (saw{}) && time.Now().Before(end); {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+"/saw?name="+name, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		err = json.NewDecoder(resp.Body).Decode(&got)
		_ = resp.Body.Close()
		if err != nil {
			return err
		}
	}
	if resets {
		got.Broken = false
	}
	if got != want {
		return fmt.Errorf("the server saw %+v, want %+v", got, want)
	}
	return nil
}

// mainOf is what the test binary does in a pod.
func mainOf(args []string) int {
	var err error
	switch args[0] {
	case serverVerb:
		err = serve()
	case clientVerb:
		err = talk(context.Background(), args[1], args[2], args[3], args[4], args[5] == "tls", args[6] == "resets")
	case settingsVerb:
		err = extended(args[1], args[2], args[3] == "tls")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
