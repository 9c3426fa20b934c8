//go:build lab

package hostile_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strings"
)

// TLS 1.3 record content types (RFC 8446, 5.1).
const (
	recordCipherSpec  = 20
	recordAlert       = 21
	recordHandshake   = 22
	recordApplication = 23
)

// forger writes TLS 1.3 records of its own making on a connection whose handshake crypto/tls has done. Nobody else may
// write there.
type forger struct {
	w       io.Writer
	newHash func() hash.Hash
	keyLen  int
	secret  []byte
	aead    cipher.AEAD
	iv      []byte
	seq     uint64
}

// forge takes the writing side over. It must come before the first byte that crypto/tls would send.
func (p *peer) forge() (*forger, error) {
	secret, err := clientSecret(p.keys.String())
	if err != nil {
		return nil, err
	}
	f := &forger{w: p.raw}
	switch suite := p.tls.ConnectionState().CipherSuite; suite {
	case tls.TLS_AES_128_GCM_SHA256:
		f.newHash, f.keyLen = sha256.New, 16
	case tls.TLS_AES_256_GCM_SHA384:
		f.newHash, f.keyLen = sha512.New384, 32
	default:
		return nil, fmt.Errorf("no records are forged for suite %s", tls.CipherSuiteName(suite))
	}
	return f, f.rekey(secret)
}

// rekey goes on with the keys of a traffic secret.
func (f *forger) rekey(secret []byte) error {
	key, err := f.expand(secret, "key", f.keyLen)
	if err != nil {
		return err
	}
	if f.iv, err = f.expand(secret, "iv", 12); err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	f.aead, err = cipher.NewGCM(block)
	f.secret, f.seq = secret, 0
	return err
}

// update is a KeyUpdate; what follows it has the next keys.
func (f *forger) update(wantOne bool) []byte {
	body := []byte{24, 0, 0, 1, 0}
	if wantOne {
		body[4] = 1
	}
	record := f.record(recordHandshake, body, 0)
	if next, err := f.expand(f.secret, "traffic upd", len(f.secret)); err == nil {
		_ = f.rekey(next) // nothing of it can fail that did not before
	}
	return record
}

func clientSecret(log string) ([]byte, error) {
	for line := range strings.Lines(log) {
		if words := strings.Fields(line); len(words) == 3 && words[0] == "CLIENT_TRAFFIC_SECRET_0" {
			return hex.DecodeString(words[2])
		}
	}
	return nil, fmt.Errorf("no client secret in the key log %q", log)
}

// expand is HKDF-Expand-Label of RFC 8446, 7.1, without a context.
func (f *forger) expand(secret []byte, label string, n int) ([]byte, error) {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(append(info, byte(len(label))), label...)
	return hkdf.Expand(f.newHash, secret, string(append(info, 0)), n)
}

// record seals one record: content, its type, and so many zeros of padding.
func (f *forger) record(kind byte, content []byte, padding int) []byte {
	inner := make([]byte, 0, len(content)+1+padding)
	inner = append(append(inner, content...), kind)
	inner = inner[:len(content)+1+padding]
	header := []byte{recordApplication, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(header[3:], uint16(len(inner)+f.aead.Overhead()))
	nonce := make([]byte, len(f.iv))
	binary.BigEndian.PutUint64(nonce[4:], f.seq)
	for i := range nonce {
		nonce[i] ^= f.iv[i]
	}
	f.seq++
	return f.aead.Seal(header, nonce, inner, header)
}

// plain is a record that is not encrypted, with a length that need not be true.
func plain(kind byte, length int, content []byte) []byte {
	return append([]byte{kind, 3, 3, byte(length >> 8), byte(length)}, content...)
}

// Write sends p as application data, so that frames can go through the forger.
func (f *forger) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), 16<<10)
		if _, err := f.w.Write(f.record(recordApplication, rest[:n], 0)); err != nil {
			return len(p) - len(rest), err
		}
		rest = rest[n:]
	}
	return len(p), nil
}
