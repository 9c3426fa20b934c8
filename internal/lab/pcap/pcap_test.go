package pcap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// tcpFrame is an Ethernet frame with a TCP segment.
func tcpFrame(src, dst netip.AddrPort, seq uint32, flags byte, payload []byte) []byte {
	tcp := binary.BigEndian.AppendUint16(nil, src.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, dst.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, seq)
	tcp = append(tcp, 0, 0, 0, 0, 8<<4, flags, 0, 0, 0, 0, 0, 0)
	tcp = append(tcp, make([]byte, 12)...) // options
	return ipFrame(src.Addr(), dst.Addr(), ProtoTCP, append(tcp, payload...))
}

func udpFrame(src, dst netip.AddrPort, payload []byte) []byte {
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = append(udp, 0, 0, 0, 0)
	return ipFrame(src.Addr(), dst.Addr(), ProtoUDP, append(udp, payload...))
}

func ipFrame(src, dst netip.Addr, proto byte, body []byte) []byte {
	frame := make([]byte, 12, 64+len(body))
	if src.Is4() {
		frame = binary.BigEndian.AppendUint16(frame, etherIPv4)
		frame = append(frame, 0x45, 0)
		frame = binary.BigEndian.AppendUint16(frame, uint16(20+len(body)))
		frame = append(frame, 0, 0, 0, 0, 64, proto, 0, 0)
	} else {
		frame = binary.BigEndian.AppendUint16(frame, etherIPv6)
		frame = append(frame, 0x60, 0, 0, 0)
		frame = binary.BigEndian.AppendUint16(frame, uint16(8+len(body)))
		frame = append(frame, 60, 64) // a destination option comes first
	}
	frame = append(append(frame, src.AsSlice()...), dst.AsSlice()...)
	if !src.Is4() {
		frame = append(frame, proto, 0, 1, 4, 0, 0, 0, 0)
	}
	return append(frame, body...)
}

var (
	a4 = netip.MustParseAddrPort("10.244.1.5:40000")
	b4 = netip.MustParseAddrPort("10.244.2.5:80")
	a6 = netip.MustParseAddrPort("[fd00:10:244:1::5]:40000")
	b6 = netip.MustParseAddrPort("[fd00:10:244:2::5]:80")
)

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want []Packet
		for range rapid.IntRange(0, 5).Draw(t, "packets") {
			data := rapid.SliceOf(rapid.Byte()).Draw(t, "data")
			want = append(want, Packet{
				Time: time.Unix(rapid.Int64Range(0, 1<<32-1).Draw(t, "sec"), rapid.Int64Range(0, 1e9-1).Draw(t, "nsec")),
				Data: data, Len: len(data) + rapid.IntRange(0, 10).Draw(t, "cut"),
			})
		}
		var buf bytes.Buffer
		w, err := NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range want {
			if err := w.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		r, err := NewReader(&buf)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range want {
			got, err := r.Next()
			if err != nil || !got.Time.Equal(p.Time) || !bytes.Equal(got.Data, p.Data) || got.Len != p.Len {
				t.Fatalf("got %v, %v; want %v", got, err, p)
			}
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("after the last: %v", err)
		}
	})
}

// TestHeader pins the bytes that other programs read.
func TestHeader(t *testing.T) {
	var buf bytes.Buffer
	w, err := NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(Packet{Time: time.Unix(1, 2), Data: []byte{9}, Len: 3}); err != nil {
		t.Fatal(err)
	}
	want := []byte{
		0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0,
		1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 9,
	}
	if diff := cmp.Diff(want, buf.Bytes()); diff != "" {
		t.Error(diff)
	}
}

func TestReaderRefuses(t *testing.T) {
	for name, raw := range map[string][]byte{
		"empty":     nil,
		"pcapng":    append([]byte{0x0a, 0x0d, 0x0d, 0x0a}, make([]byte, 20)...),
		"wifi":      append(append([]byte{0xd4, 0xc3, 0xb2, 0xa1}, make([]byte, 16)...), 105, 0, 0, 0),
		"too short": {0xd4, 0xc3, 0xb2, 0xa1},
	} {
		if _, err := NewReader(bytes.NewReader(raw)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func report(t interface{ Fatal(...any) }, marker string, frames ...[]byte) Report {
	s, err := NewScanner([]byte(marker))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		s.Add(Packet{Data: f, Len: len(f)})
	}
	return s.Report()
}

func TestScanAnySegmentation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const marker = "MARKER-17"
		src, dst := a4, b4
		if rapid.Bool().Draw(t, "v6") {
			src, dst = a6, b6
		}
		var stream []byte
		want := 0
		for range rapid.IntRange(0, 4).Draw(t, "parts") {
			stream = append(stream, rapid.SliceOfN(rapid.ByteRange('a', 'z'), 0, 30).Draw(t, "noise")...)
			if rapid.Bool().Draw(t, "marked") {
				stream = append(stream, marker...)
				want++
			}
		}
		// The sequence number may wrap in the middle.
		first := uint32(0) - uint32(rapid.IntRange(0, 60).Draw(t, "before wrap"))
		frames := [][]byte{tcpFrame(src, dst, first, flagSYN, nil)}
		var cut [][]byte
		for at := 0; at < len(stream); {
			n := min(rapid.IntRange(1, 12).Draw(t, "segment"), len(stream)-at)
			from := max(0, at-rapid.IntRange(0, 4).Draw(t, "overlap"))
			cut = append(cut, tcpFrame(src, dst, first+1+uint32(from), 0x10, stream[from:at+n]))
			at += n
		}
		if len(cut) > 0 {
			twice := rapid.SliceOfN(rapid.IntRange(0, len(cut)-1), 0, 5).Draw(t, "twice")
			for _, i := range twice {
				cut = append(cut, cut[i])
			}
			cut = rapid.Permutation(cut).Draw(t, "order")
		}
		got := report(t, marker, append(frames, cut...)...)
		if got.Occurrences != want {
			t.Fatalf("found %d, want %d in %q", got.Occurrences, want, stream)
		}
	})
}

func TestScan(t *testing.T) {
	const m = "secret"
	got := report(
		t, m,
		tcpFrame(a4, b4, 100, flagSYN, nil), tcpFrame(a4, b4, 101, 0x18, []byte("x secr")), tcpFrame(a4, b4, 107, 0x18, []byte("et y")),
		// The same ports for a new connection.
		tcpFrame(a4, b4, 9000, flagSYN, nil), tcpFrame(a4, b4, 9001, 0x18, []byte("secret")),
		// A gap: nothing is found across it.
		tcpFrame(b4, a4, 500, 0x18, []byte("sec")), tcpFrame(b4, a4, 600, 0x18, []byte("ret")),
		udpFrame(a6, b6, []byte("secretsecret")),
		ipFrame(a4.Addr(), b4.Addr(), 1, []byte("icmp quoting secret")),
		[]byte("short"), append(make([]byte, 14), m...),
	)
	type row struct {
		proto uint8
		n     int
	}
	var rows []row
	for _, f := range got.With() {
		rows = append(rows, row{f.Proto, f.Occurrences})
	}
	if diff := cmp.Diff([]row{{0, 1}, {1, 1}, {ProtoTCP, 2}, {ProtoUDP, 2}}, rows, cmp.AllowUnexported(row{})); diff != "" {
		t.Error(diff)
	}
	if got.Packets != 11 || got.Occurrences != 6 {
		t.Errorf("%+v", got)
	}
	if _, err := Scan(bytes.NewReader(nil), nil); err == nil {
		t.Error("an empty marker is found everywhere")
	}
}

func FuzzScan(f *testing.F) {
	var buf bytes.Buffer
	w, err := NewWriter(&buf)
	if err != nil {
		f.Fatal(err)
	}
	for _, frame := range [][]byte{tcpFrame(a4, b4, 1, 0x18, []byte("marker")), udpFrame(a6, b6, []byte("marker"))} {
		if err := w.Write(Packet{Time: time.Unix(1, 0), Data: frame}); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(buf.Bytes())
	f.Add(buf.Bytes()[:buf.Len()-3])
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := Scan(bytes.NewReader(slices.Clone(raw)), []byte("marker"))
		if err == nil && got.Occurrences > bytes.Count(raw, []byte("m")) {
			t.Errorf("found %d, more than there can be", got.Occurrences)
		}
	})
}
