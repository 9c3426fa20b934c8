package bench

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/lab/pcap"
	"github.com/marrowmesh/marrow/perf/load"
	"github.com/marrowmesh/marrow/perf/result"
)

// inspect sends the first traffic through a lab, sees on the wire what was
// negotiated, and that nothing goes another way than it should.
func (b *bench) inspect(ctx context.Context, w *world) error {
	rec, err := w.lab.Record(ctx, target(server(0)), "")
	if err != nil {
		return err
	}
	for _, to := range []string{server(0), near} {
		spec := load.Spec{Kind: load.Connect, Conns: 1, Targets: []string{w.addr(to)}}
		if err := w.touch(ctx, client(0), spec); err != nil {
			return err
		}
	}
	// Traffic in the clear is to be seen where there is no mesh, and only there.
	done, err := w.lab.StopRecording(ctx, rec.ID)
	if err != nil {
		return err
	}
	name := w.impl.Name
	b.machine.Versions[name] = w.version(ctx, nodeA)
	if len(w.impl.Env) > 0 {
		b.machine.Environment[name] = strings.Join(w.impl.Env, " ")
	}
	hello, err := findHello(done.Path)
	switch {
	case err != nil:
		return err
	case hello == nil && w.mesh():
		return errors.New("no TLS handshake was seen between the nodes: traffic does not go through the mesh")
	case hello != nil && !w.mesh():
		return errors.New("a TLS handshake was seen without a mesh")
	case hello != nil:
		b.machine.CipherSuites[name], b.machine.KeyExchanges[name] = tls.CipherSuiteName(hello.suite), hello.group.String()
		b.tell(fmt.Sprintf("%s negotiates %s with %v", name, b.machine.CipherSuites[name], hello.group))
	}
	return nil
}

// touch runs a load for a moment. A server that has just started may not
// listen yet.
func (w *world) touch(ctx context.Context, from string, spec load.Spec) error {
	limit, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		ss, err := w.startAll(ctx, []placed{{pod: from, spec: spec}})
		if err != nil {
			return err
		}
		_, err = ss.phase(20 * time.Millisecond)
		if end := ss.end(); err == nil {
			return end
		}
		if wait(limit, 100*time.Millisecond) != nil {
			return err
		}
	}
}

// hello is what a server chose.
type hello struct {
	suite uint16
	group tls.CurveID
}

// findHello finds the first ServerHello of a capture.
func findHello(path string) (*hello, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	r, err := pcap.NewReader(f)
	if err != nil {
		return nil, err
	}
	for {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if h := parseHello(p.Data); h != nil {
			return h, nil
		}
	}
}

// parseHello looks for a handshake record with a ServerHello anywhere in a
// frame; its fields have to fit, so that nothing else is taken for one.
func parseHello(frame []byte) *hello {
	for rest := frame; ; {
		i := bytes.Index(rest, []byte{22, 3, 3})
		if i < 0 {
			return nil
		}
		rest = rest[i+1:]
		b := rest[2:]
		// Record length, type ServerHello, its length, version 1.2, random, session.
		if len(b) < 2+4+2+32+1 || b[2] != 2 || b[6] != 3 || b[7] != 3 {
			continue
		}
		// A HelloRetryRequest looks the same but for its random; the real one follows.
		if bytes.HasPrefix(b[8:], []byte{0xcf, 0x21, 0xad, 0x74}) {
			continue
		}
		session := int(b[40])
		b = b[41:]
		if len(b) < session+5 {
			continue
		}
		h := &hello{suite: binary.BigEndian.Uint16(b[session:])}
		extensions := b[session+5:]
		for len(extensions) >= 4 {
			kind, size := binary.BigEndian.Uint16(extensions), int(binary.BigEndian.Uint16(extensions[2:]))
			if len(extensions) < 4+size {
				break
			}
			const keyShare = 51
			if kind == keyShare && size >= 2 {
				h.group = tls.CurveID(binary.BigEndian.Uint16(extensions[4:]))
			}
			extensions = extensions[4+size:]
		}
		return h
	}
}

// clientCertificate is one that the lab's mesh trusts, for the first client
// pod's identity.
func (w *world) clientCertificate() (*load.TLS, error) {
	dir := w.lab.State.CA()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca-cert.pem"), filepath.Join(dir, "ca-key.pem"))
	if err != nil {
		return nil, fmt.Errorf("the lab's certificate authority: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/" + namespace + "/sa/" + client(0)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, pair.Leaf, key.Public(), pair.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("sign a client certificate: %w", err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	// An intermediate belongs into the chain; a root does no harm there.
	for _, c := range pair.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	return &load.TLS{Certificate: string(chain), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))}, nil
}

func bucket(upTo time.Duration, n uint64) result.Bucket {
	return result.Bucket{UpTo: micros(upTo), Count: n}
}
