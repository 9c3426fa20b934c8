package mtls

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/marrowmesh/marrow/internal/burst"
	"github.com/marrowmesh/marrow/internal/mtls/record"
)

// keyLog catches the application secrets of one handshake; crypto/tls gives
// them in the form of NSS key log lines. They go nowhere else.
type keyLog struct {
	client, server []byte
	err            error
}

// Write implements io.Writer. It never fails the handshake: what it does not
// understand only means that the standard library keeps the connection.
func (k *keyLog) Write(line []byte) (int, error) {
	label, rest, _ := bytes.Cut(line, []byte(" "))
	var to *[]byte
	switch string(label) {
	case "CLIENT_TRAFFIC_SECRET_0":
		to = &k.client
	case "SERVER_TRAFFIC_SECRET_0":
		to = &k.server
	default:
		return len(line), nil
	}
	_, text, _ := bytes.Cut(bytes.TrimSuffix(rest, []byte("\n")), []byte(" "))
	secret := make([]byte, hex.DecodedLen(len(text)))
	switch _, err := hex.Decode(secret, text); {
	case err != nil:
		k.err = fmt.Errorf("key log line %s: not hexadecimal", label)
	case *to != nil:
		k.err = fmt.Errorf("key log line %s: twice", label)
	}
	*to = secret
	return len(line), nil
}

func (k *keyLog) complete() bool { return k.client != nil && k.server != nil }

func (k *keyLog) erase() {
	clear(k.client)
	clear(k.server)
}

const (
	recordHeader = 5
	// maxFlight is how much of a handshake's last flights is kept to look for
	// records that crypto/tls must not have sent or read.
	maxFlight = 64 << 10
)

// tap is the connection under a handshake. It gives crypto/tls one record at
// a time, so that nothing of what follows the handshake is lost inside, while
// itself it reads whatever has arrived.
type tap struct {
	net.Conn
	keys keyLog
	slab *burst.Slab // B[from:to] was read from Conn and not given out
	from int
	to   int
	left int  // bytes of the record that is being given out
	free bool // the handshake is over and crypto/tls keeps the connection

	// What crypto/tls has sent and read since the application's keys exist. None
	// of it may be sealed by them.
	sent, got []byte
	overflow  bool
}

func (t *tap) Read(p []byte) (int, error) {
	if t.free {
		if t.from == t.to {
			return t.Conn.Read(p)
		}
		return t.give(p, t.to-t.from), nil
	}
	for t.left == 0 {
		if have := t.to - t.from; have >= recordHeader {
			t.left = recordHeader + int(binary.BigEndian.Uint16(t.slab.B[t.from+3:]))
			break
		}
		if err := t.fill(); err != nil {
			if t.from < t.to && errors.Is(err, io.EOF) {
				return t.give(p, t.to-t.from), nil // less than a header: crypto/tls says what that means
			}
			return 0, err
		}
	}
	if t.from == t.to {
		if err := t.fill(); err != nil {
			return 0, err
		}
	}
	n := t.give(p, min(t.left, t.to-t.from))
	t.left -= n
	if t.keys.complete() {
		t.keep(&t.got, p[:n])
	}
	return n, nil
}

// fill reads what has arrived behind what is there.
func (t *tap) fill() error {
	if t.slab == nil {
		t.slab = burst.Get(1)
	}
	t.to = copy(t.slab.B, t.slab.B[t.from:t.to])
	t.from = 0
	n, err := t.Conn.Read(t.slab.B[t.to:])
	t.to += n
	if n > 0 {
		return nil
	}
	return err
}

func (t *tap) give(p []byte, limit int) int {
	n := copy(p, t.slab.B[t.from:t.from+limit])
	if t.from += n; t.from == t.to && t.free {
		t.release()
	}
	return n
}

func (t *tap) Write(p []byte) (int, error) {
	if !t.free && t.keys.complete() {
		t.keep(&t.sent, p)
	}
	return t.Conn.Write(p)
}

func (t *tap) keep(flight *[]byte, p []byte) {
	if t.overflow = t.overflow || len(*flight)+len(p) > maxFlight; !t.overflow {
		*flight = append(*flight, p...)
	}
}

// release forgets what was read and not given out.
func (t *tap) release() {
	if t.slab != nil {
		t.slab.Free()
		t.slab, t.from, t.to = nil, 0, 0
	}
}

// takeOver goes on with c's connection by our own records. The error says why
// crypto/tls had better keep it; c is then as good as before.
func (t *tap) takeOver(c *tls.Conn, client bool) (*record.Conn, error) {
	defer t.keys.erase()
	state := c.ConnectionState()
	switch {
	case state.Version != tls.VersionTLS13:
		return nil, fmt.Errorf("TLS version %#04x", state.Version)
	case !record.Supports(state.CipherSuite):
		return nil, fmt.Errorf("cipher suite %s", tls.CipherSuiteName(state.CipherSuite))
	case t.keys.err != nil:
		return nil, t.keys.err
	case !t.keys.complete():
		return nil, errors.New("the handshake gave no secrets")
	case t.overflow:
		return nil, fmt.Errorf("a flight of more than %d bytes", maxFlight)
	case t.left != 0:
		return nil, fmt.Errorf("the handshake ended %d bytes before the end of a record", t.left)
	}
	in, out := t.keys.client, t.keys.server
	if client {
		in, out = out, in
	}
	st := record.State{
		Suite: state.CipherSuite, Client: client,
		In: record.Half{Secret: in, Past: t.got}, Out: record.Half{Secret: out, Past: t.sent},
	}
	if t.slab != nil {
		st.Early = t.slab.B[t.from:t.to]
	}
	own, err := record.New(t.Conn, st)
	if err != nil {
		return nil, err
	}
	t.release()
	return own, nil
}
