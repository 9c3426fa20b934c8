package record

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash"
)

// maxSecret is the length of the longest traffic secret: SHA-384's.
const maxSecret = sha512.Size384

// suite is what a cipher suite decides for the record layer.
type suite struct {
	id     uint16
	key    int // bytes
	secret int // bytes: the length of the hash
	hash   func() hash.Hash
}

// suiteOf tells the suites that this package speaks; ChaCha20-Poly1305 is not
// one of them, it has no fast implementation in the standard library.
func suiteOf(id uint16) (suite, bool) {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256:
		return suite{id: id, key: 16, secret: sha256.Size, hash: sha256.New}, true
	case tls.TLS_AES_256_GCM_SHA384:
		return suite{id: id, key: 32, secret: sha512.Size384, hash: sha512.New384}, true
	}
	return suite{}, false
}

// Supports reports whether a connection of this cipher suite can be taken over.
func Supports(suite uint16) bool {
	_, ok := suiteOf(suite)
	return ok
}

// expand is HKDF-Expand-Label of RFC 8446 7.1 with an empty context.
func (s suite) expand(secret []byte, label string, size int) ([]byte, error) {
	full := "tls13 " + label
	info := make([]byte, 0, len(full)+4)
	info = binary.BigEndian.AppendUint16(info, uint16(size))
	info = append(info, byte(len(full)))
	info = append(info, full...)
	info = append(info, 0)
	return hkdf.Expand(s.hash, secret, string(info), size)
}

// half is one direction's key. The nonce is kept here, not on the stack: what
// goes through the AEAD interface would be allocated for each record.
type half struct {
	suite  suite
	aead   cipher.AEAD
	secret [maxSecret]byte
	mask   uint64   // the last eight bytes of the IV
	nonce  [12]byte // the first four never change under one key
	seq    uint64   // of the next record
}

// install takes secret as the traffic secret whose next record is seq.
func (h *half) install(secret []byte, seq uint64) error {
	if len(secret) != h.suite.secret {
		return fmt.Errorf("traffic secret of %d bytes, suite %#04x has %d", len(secret), h.suite.id, h.suite.secret)
	}
	key, err := h.suite.expand(secret, "key", h.suite.key)
	if err != nil {
		return err
	}
	defer clear(key)
	iv, err := h.suite.expand(secret, "iv", len(h.nonce))
	if err != nil {
		return err
	}
	defer clear(iv)
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	if h.aead, err = cipher.NewGCM(block); err != nil {
		return err
	}
	copy(h.secret[:], secret)
	copy(h.nonce[:4], iv)
	h.mask = binary.BigEndian.Uint64(iv[4:])
	h.seq = seq
	return nil
}

// next goes to the next generation of keys, RFC 8446 7.2.
func (h *half) next() error {
	secret, err := h.suite.expand(h.secret[:h.suite.secret], "traffic upd", h.suite.secret)
	if err != nil {
		return err
	}
	defer clear(secret)
	return h.install(secret, 0)
}

// tick makes the nonce of the next record and counts it.
func (h *half) tick() []byte {
	binary.BigEndian.PutUint64(h.nonce[4:], h.mask^h.seq)
	h.seq++
	return h.nonce[:]
}

// erase forgets the keys.
func (h *half) erase() {
	clear(h.secret[:])
	clear(h.nonce[:])
	h.aead, h.mask = nil, 0
}

// opens reports whether any record in stream was sealed as the next one under
// this key. Nothing changes by asking.
func (h *half) opens(stream []byte) bool {
	var scratch []byte
	for len(stream) >= headerSize {
		size := headerSize + int(binary.BigEndian.Uint16(stream[3:]))
		if size > len(stream) {
			break
		}
		if stream[0] == typeData {
			out, err := h.aead.Open(scratch[:0], h.tick(), stream[headerSize:size], stream[:headerSize])
			h.seq--
			if err == nil {
				return true
			}
			scratch = out
		}
		stream = stream[size:]
	}
	return false
}
