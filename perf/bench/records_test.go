package bench

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/lab/pcap"
)

// frame is a TCP segment from port 15008 as the lab's capture has it.
func frame(seq uint32, flags byte, payload []byte) []byte {
	b := make([]byte, 14, 14+40+len(payload))
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := make([]byte, 20)
	ip[0], ip[9] = 0x45, 6
	binary.BigEndian.PutUint16(ip[2:], uint16(40+len(payload)))
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, hbonePort)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13] = 5<<4, flags
	return append(append(append(b, ip...), tcp...), payload...)
}

func tlsRecord(n int) []byte {
	return append([]byte{23, 3, 3, byte(n >> 8), byte(n)}, make([]byte, n)...)
}

func count(t *testing.T, frames ...[]byte) recordCount {
	t.Helper()
	var file bytes.Buffer
	w, err := pcap.NewWriter(&file)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if err := w.Write(pcap.Packet{Time: time.Unix(1, 0), Data: f}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := countRecords(&file, hbonePort)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCountRecords(t *testing.T) {
	var stream []byte
	for _, n := range []int{16401, 100, 0, 3000} {
		stream = append(stream, tlsRecord(n)...)
	}
	// However the stream is cut, headers in the middle too, and with one
	// segment sent twice.
	for _, size := range []int{1, 3, 4, 7, 1000, len(stream)} {
		const first = 0xffffff00 // sequence numbers wrap
		frames := [][]byte{frame(first-1, 0, nil)}
		for at := 0; at < len(stream); at += size {
			frames = append(frames, frame(first+uint32(at), 0, stream[at:min(at+size, len(stream))]))
		}
		frames = append(frames, frames[1])
		if c := count(t, frames...); c.records != 4 || c.bytes != len(stream) || c.gaps {
			t.Errorf("cut by %d: %+v", size, c)
		}
	}
	if c := count(t, frame(5, 0, stream[:100]), frame(205, 0, stream[200:300])); !c.gaps {
		t.Error("a hole is not seen")
	}
	if c := count(t, frame(5, 0, []byte("GET / HTTP/1.1"))); !c.gaps {
		t.Error("clear text is taken for records")
	}
	// A new connection begins behind its SYN.
	if c := count(t, frame(7, 2, nil), frame(8, 0, tlsRecord(9))); c.records != 1 || c.gaps {
		t.Errorf("%+v", c)
	}
	if _, ok := parseSegment(make([]byte, 60)); ok {
		t.Error("zeros are a segment")
	}
}
