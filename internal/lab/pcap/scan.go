package pcap

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Report is what a scan found.
type Report struct {
	Packets     int   // all packets of the capture
	Bytes       int64 // of payload, doubled packets included
	Occurrences int   // of the marker, over all flows
	Flows       []FlowReport
}

// FlowReport is one direction of one conversation.
type FlowReport struct {
	Flow
	Packets     int
	Bytes       int64
	Occurrences int
}

// With are the flows in which the marker was found.
func (r Report) With() []FlowReport {
	var out []FlowReport
	for _, f := range r.Flows {
		if f.Occurrences > 0 {
			out = append(out, f)
		}
	}
	return out
}

// Scanner looks for a marker in packets.
type Scanner struct {
	marker  []byte
	flows   map[Flow]*flowState
	packets int
}

type flowState struct {
	report  FlowReport
	stream  []piece
	started bool
	last    int64 // the newest position seen, for unwrapping sequence numbers
	initial uint32
}

// piece is payload at a position of a TCP stream.
type piece struct {
	at   int64
	data []byte
}

// NewScanner looks for the marker, which must not be empty.
func NewScanner(marker []byte) (*Scanner, error) {
	if len(marker) == 0 {
		return nil, errors.New("pcap: the marker is empty")
	}
	return &Scanner{marker: slices.Clone(marker), flows: map[Flow]*flowState{}}, nil
}

// Scan reads a whole capture. One that was cut off in the middle of a packet
// is scanned as far as it goes.
func Scan(r io.Reader, marker []byte) (Report, error) {
	s, err := NewScanner(marker)
	if err != nil {
		return Report{}, err
	}
	in, err := NewReader(r)
	if err != nil {
		return Report{}, err
	}
	for {
		p, err := in.Next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return s.Report(), nil
		case err != nil:
			return s.Report(), fmt.Errorf("after %d packets: %w", s.packets, err)
		}
		s.Add(p)
	}
}

// Add takes one packet in.
func (s *Scanner) Add(p Packet) {
	s.packets++
	seg := decode(p.Data)
	f, ok := s.flows[seg.flow]
	if !ok {
		f = &flowState{report: FlowReport{Flow: seg.flow}}
		s.flows[seg.flow] = f
	}
	f.report.Packets++
	f.report.Bytes += int64(len(seg.payload))
	if seg.flow.Proto != ProtoTCP || !seg.flow.Src.IsValid() || seg.flow.Src.Port() == 0 {
		f.report.Occurrences += count(seg.payload, s.marker)
		return
	}
	if seg.syn {
		// The ports are used again for a new connection; a SYN sent twice is
		// the same one.
		if f.started && seg.seq != f.initial {
			f.close(s.marker)
		}
		if !f.started {
			f.started, f.initial, f.last = true, seg.seq, int64(seg.seq)
		}
		seg.seq++ // the SYN itself takes one number
	}
	if len(seg.payload) == 0 {
		return
	}
	if !f.started {
		f.started, f.initial, f.last = true, seg.seq, int64(seg.seq)
	}
	at := f.last + int64(int32(seg.seq-uint32(f.last)))
	f.last = max(f.last, at)
	f.stream = append(f.stream, piece{at: at, data: slices.Clone(seg.payload)})
}

// close counts the stream so far and forgets it.
func (f *flowState) close(marker []byte) {
	f.report.Occurrences += f.countStream(marker)
	f.stream, f.started = nil, false
}

// countStream puts the pieces together and counts the marker. Where bytes are
// missing, the marker cannot reach across.
func (f *flowState) countStream(marker []byte) int {
	pieces := slices.Clone(f.stream)
	slices.SortStableFunc(pieces, func(a, b piece) int { return cmp.Compare(a.at, b.at) })
	var (
		run   []byte
		end   int64
		total int
	)
	for i, p := range pieces {
		switch skip := end - p.at; {
		case i == 0 || skip < 0:
			total += count(run, marker)
			run = append([]byte(nil), p.data...)
			end = p.at + int64(len(p.data))
		case skip < int64(len(p.data)):
			run = append(run, p.data[skip:]...)
			end = p.at + int64(len(p.data))
		}
	}
	return total + count(run, marker)
}

// count counts occurrences, which may not overlap.
func count(b, marker []byte) int { return bytes.Count(b, marker) }

// Report is what was found so far, flows in order.
func (s *Scanner) Report() Report {
	r := Report{Packets: s.packets}
	for _, f := range s.flows {
		one := f.report
		one.Occurrences += f.countStream(s.marker)
		r.Bytes += one.Bytes
		r.Occurrences += one.Occurrences
		r.Flows = append(r.Flows, one)
	}
	slices.SortFunc(r.Flows, func(a, b FlowReport) int {
		return cmp.Or(a.Src.Compare(b.Src), a.Dst.Compare(b.Dst), cmp.Compare(a.Proto, b.Proto))
	})
	return r
}
