package h2

import (
	"bytes"
	"io"
	"runtime"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/marrowmesh/marrow/internal/testkit/tcppair"
)

// TestFloodLetsOthersRun: on one thread, a neighbour whose socket becomes ready does not wait for a flood of frames to end.
func TestFloodLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	a, b := tcppair.New(t)
	near, far := tcppair.New(t)
	var frames bytes.Buffer
	frames.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&frames, nil)
	_ = fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "10.0.0.1:80"})
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	const flood = 100 * yieldFrames
	for range flood {
		_ = fr.WriteData(1, false, []byte("x"))
	}
	if _, err := far.Write(frames.Bytes()); err != nil { // all of it is there before anybody reads
		t.Fatal(err)
	}
	ran := make(chan struct{})
	go func() {
		_, _ = b.Read(make([]byte, 1))
		close(ran)
	}()
	runtime.Gosched() // it waits for its socket now
	c := NewServer(near, Config{PingInterval: -1}, func(s *Stream, _ []Field) { _, _ = io.Copy(io.Discard, s) })
	defer func() {
		_ = c.Close()
		_ = far.Close()
		<-c.Done()
	}()
	if _, err := a.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-ran
	n := c.Stats().FramesIn
	for c.Stats().FramesIn < flood && c.Err() == nil {
		runtime.Gosched()
	}
	if all := c.Stats().FramesIn; n > flood/2 || all < flood {
		t.Errorf("the neighbour ran after %d of %d frames: %v", n, all, c.Err())
	}
}
