package h2

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames writes well-formed beginnings for the fuzzer.
func frames(write func(fr *http2.Framer, headers func(kv ...string) []byte)) []byte {
	var out, block bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	fr.AllowIllegalWrites = true
	enc := hpack.NewEncoder(&block)
	_ = fr.WriteSettings()
	write(fr, func(kv ...string) []byte {
		block.Reset()
		for i := 0; i < len(kv); i += 2 {
			_ = enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
		}
		return append([]byte(nil), block.Bytes()...)
	})
	return out.Bytes()
}

// seedTo is where seeds go.
type seedTo func(b []byte)

func (f seedTo) Add(args ...any) { f(args[0].([]byte)) }

func seeds(f interface{ Add(args ...any) }) {
	f.Add(frames(func(fr *http2.Framer, h func(...string) []byte) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: h(":method", "CONNECT", ":authority", "a:1")})
		_ = fr.WriteDataPadded(1, false, []byte("hello"), make([]byte, 3))
		_ = fr.WriteWindowUpdate(1, 5)
		_ = fr.WriteData(1, true, nil)
	}))
	f.Add(frames(func(fr *http2.Framer, h func(...string) []byte) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: h(":status", "200")})
		_ = fr.WriteData(1, false, []byte("hello"))
		_ = fr.WriteRSTStream(1, 8)
		_ = fr.WriteGoAway(1, 0, nil)
	}))
	f.Add(frames(func(fr *http2.Framer, h func(...string) []byte) {
		block := h(":method", "CONNECT", ":authority", "a:1", "x", "y")
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:3]})
		_ = fr.WriteContinuation(1, true, block[3:])
		_ = fr.WritePing(false, [8]byte{1})
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 14})
		_ = fr.WritePriority(3, http2.PriorityParam{StreamDep: 1})
	}))
}

// through gives input to a connection and waits for its end: it must end, and
// its windows must be whole.
func through(t *testing.T, start func(nc net.Conn) *Conn, input []byte) {
	t.Helper()
	a, b := net.Pipe()
	c := start(a)
	swallowed := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, b); close(swallowed) }()
	_ = b.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = b.Write(input)
	_ = b.Close()
	ended := make(chan struct{})
	go func() { c.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the connection does not end")
	}
	<-swallowed
	if c.Err() == nil || c.Streams() != 0 {
		t.Errorf("ended with error %v and %d streams", c.Err(), c.Streams())
	}
	if w := c.recv; w.left < 0 || w.left+w.unsaid+w.held > w.size || w.queued != 0 {
		t.Errorf("window: left %d, unsaid %d, held %d, size %d, queued %d", w.left, w.unsaid, w.held, w.size, w.queued)
	}
}

func FuzzServer(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		through(t, func(nc net.Conn) *Conn { return NewServer(nc, Config{}, okHandler) }, append([]byte(http2.ClientPreface), input...))
	})
}

func FuzzClient(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		through(t, func(nc net.Conn) *Conn {
			c := NewClient(nc, Config{})
			s, err := c.Open(t.Context(), []Field{{":method", "CONNECT"}, {":authority", "a:1"}}, false)
			if err == nil {
				c.wg.Go(func() { _, _ = io.Copy(io.Discard, s); _ = s.Close() })
			}
			return c
		}, input)
	})
}
