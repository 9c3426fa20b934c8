package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/marrowmesh/marrow/internal/lab/pcap"
	"github.com/marrowmesh/marrow/perf/scenario"
)

// records counts what goes over the wire between the nodes in a short phase of
// the load: TLS records and their bytes, for every implementation alike, since
// their headers are readable. The capture costs time, so that this phase is
// neither timed nor used for any other count. Where the capture lost packets
// there is no figure.
func (b *bench) records(ctx context.Context, w *world, s scenario.Scenario, ss sessions, metrics map[string]float64) error {
	if s.Pairs > 1 || !wants(s, "records_per_mb") { // one pod is listened to
		return nil
	}
	rec, err := w.lab.Record(ctx, target(server(0)), "")
	if err != nil {
		return err
	}
	report, err := ss.phase(recordPhase)
	rec, stopErr := w.lab.StopRecording(ctx, rec.ID)
	if err := errors.Join(err, stopErr); err != nil {
		return fmt.Errorf("counting records: %w", err)
	}
	defer func() { _ = os.Remove(rec.Path) }() // else it goes with the lab
	f, err := os.Open(rec.Path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	count, err := countRecords(f, hbonePort)
	switch {
	case err != nil:
		return err
	case rec.Dropped > 0 || count.gaps || count.records == 0 || report.Bytes == 0:
		return nil
	}
	mb := float64(report.Bytes) / 1e6
	metrics["records_per_mb"] = float64(count.records) / mb
	metrics["wire_over_payload"] = float64(count.bytes) / float64(report.Bytes)
	return nil
}

// recordPhase is short: every byte of it goes through a file.
const recordPhase = 30 * time.Millisecond

// recordCount is what was seen of TLS on a port.
type recordCount struct {
	records int
	bytes   int  // of TLS, headers included
	gaps    bool // bytes are missing: the count is worth nothing
}

// flow is one direction of a TCP connection.
type flow struct {
	next   uint32 // sequence number of the next byte
	header []byte // of the record that is being counted, as far as it is there
	rest   int    // bytes of the record that are still to come
}

// countRecords follows every connection with a port of a capture that began
// when they were at rest: the first byte of each is the first of a record.
func countRecords(in io.Reader, port uint16) (recordCount, error) {
	var c recordCount
	r, err := pcap.NewReader(in)
	if err != nil {
		return c, err
	}
	flows := map[string]*flow{}
	for {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			return c, err
		}
		seg, ok := parseSegment(p.Data)
		if !ok || (seg.from != port && seg.to != port) {
			continue
		}
		if p.Len > len(p.Data) {
			c.gaps = true
		}
		f := flows[seg.key]
		if f == nil || seg.syn {
			if len(seg.payload) == 0 && !seg.syn {
				continue // an acknowledgement says nothing of where records begin
			}
			f = &flow{next: seg.seq}
			if seg.syn {
				f.next++
			}
			flows[seg.key] = f
		}
		f.add(seg, &c)
	}
}

// add counts what is new in a segment.
func (f *flow) add(s segment, c *recordCount) {
	behind := int32(f.next - s.seq)
	switch {
	case behind < 0 && len(s.payload) > 0:
		c.gaps = true
		return
	case behind < 0 || int(behind) >= len(s.payload):
		return // nothing, or sent again
	}
	data := s.payload[behind:]
	f.next += uint32(len(data))
	c.bytes += len(data)
	for len(data) > 0 {
		if f.rest > 0 {
			n := min(f.rest, len(data))
			f.rest, data = f.rest-n, data[n:]
			continue
		}
		const headerLen = 5
		n := min(headerLen-len(f.header), len(data))
		f.header, data = append(f.header, data[:n]...), data[n:]
		if len(f.header) < headerLen {
			return
		}
		if f.header[0] < 20 || f.header[0] > 24 || f.header[1] != 3 {
			c.gaps = true // not the beginning of a record
			return
		}
		c.records++
		f.rest, f.header = int(binary.BigEndian.Uint16(f.header[3:])), f.header[:0]
	}
}

// segment is one TCP segment.
type segment struct {
	key      string // addresses and ports
	from, to uint16
	seq      uint32
	syn      bool
	payload  []byte
}

// parseSegment reads an Ethernet frame. The lab's frames have no tags and its
// packets neither fragments nor IPv6 extensions.
func parseSegment(frame []byte) (s segment, ok bool) {
	const ethernet = 14
	if len(frame) < ethernet+20 {
		return s, false
	}
	ip := frame[ethernet:]
	var tcp, addresses []byte
	switch kind := binary.BigEndian.Uint16(frame[12:]); {
	case kind == 0x0800 && ip[9] == 6:
		header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if total == 0 || total > len(ip) { // segmentation offload may leave zero
			total = len(ip)
		}
		if header < 20 || header > total {
			return s, false
		}
		tcp, addresses = ip[header:total], ip[12:20]
	case kind == 0x86dd && len(ip) >= 40 && ip[6] == 6:
		end := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		if end == 40 || end > len(ip) {
			end = len(ip)
		}
		tcp, addresses = ip[40:end], ip[8:40]
	default:
		return s, false
	}
	if len(tcp) < 20 {
		return s, false
	}
	offset := int(tcp[12]>>4) * 4
	if offset < 20 || offset > len(tcp) {
		return s, false
	}
	const synFlag = 2
	return segment{
		key: string(addresses) + string(tcp[:4]), from: binary.BigEndian.Uint16(tcp), to: binary.BigEndian.Uint16(tcp[2:]),
		seq: binary.BigEndian.Uint32(tcp[4:]), syn: tcp[13]&synFlag != 0, payload: tcp[offset:],
	}, true
}
