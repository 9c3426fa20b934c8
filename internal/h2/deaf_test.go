package h2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestDeafPeerIsCutOff: answers to the peer's own frames need no window, so one that asks on and never reads a byte
// would make us keep all of them.
func TestDeafPeerIsCutOff(t *testing.T) {
	a, b := net.Pipe()
	refuse := func(s *Stream, _ []Field) {
		_ = s.Respond([]Field{{":status", "400"}}, true)
		_ = s.CloseCode(NoError)
	}
	c := NewServer(a, Config{PingInterval: -1}, refuse)
	_, _ = io.WriteString(b, http2.ClientPreface)
	fr := http2.NewFramer(b, nil)
	_ = fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for id := uint32(1); id < 1_000_000; id += 2 {
		block.Reset()
		_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
		_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "a:1"})
		if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}) != nil {
			break
		}
		for c.Streams() > 50 { // slower than the limits of streams
			if c.Err() != nil {
				break
			}
		}
	}
	_ = b.Close()
	c.Wait()
	var ce *ConnError
	if !errors.As(c.Err(), &ce) || ce.Code != EnhanceYourCalm {
		t.Fatalf("ended by %v, want ENHANCE_YOUR_CALM", c.Err())
	}
}
