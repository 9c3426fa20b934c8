package pcap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	// SnapLen is the largest packet a capture holds; segmentation offload
	// makes packets of up to 64 KiB on virtual links.
	SnapLen = 262144

	magicNano  = 0xa1b23c4d
	magicMicro = 0xa1b2c3d4
	ethernet   = 1

	fileHeaderLen   = 24
	packetHeaderLen = 16
)

// Packet is one captured frame.
type Packet struct {
	Time time.Time
	Data []byte // what was captured
	Len  int    // what was on the wire; at least len(Data)
}

// Writer writes a capture file.
type Writer struct {
	w   io.Writer
	hdr [packetHeaderLen]byte
}

// NewWriter writes the file's header.
func NewWriter(w io.Writer) (*Writer, error) {
	hdr := make([]byte, 0, fileHeaderLen)
	hdr = binary.LittleEndian.AppendUint32(hdr, magicNano)
	hdr = binary.LittleEndian.AppendUint16(hdr, 2)
	hdr = binary.LittleEndian.AppendUint16(hdr, 4)
	hdr = append(hdr, make([]byte, 8)...) // time zone and accuracy: zero, as everybody does
	hdr = binary.LittleEndian.AppendUint32(hdr, SnapLen)
	hdr = binary.LittleEndian.AppendUint32(hdr, ethernet)
	if _, err := w.Write(hdr); err != nil {
		return nil, fmt.Errorf("pcap: write header: %w", err)
	}
	return &Writer{w: w}, nil
}

// Write adds one packet.
func (w *Writer) Write(p Packet) error {
	binary.LittleEndian.PutUint32(w.hdr[0:], uint32(p.Time.Unix()))
	binary.LittleEndian.PutUint32(w.hdr[4:], uint32(p.Time.Nanosecond()))
	binary.LittleEndian.PutUint32(w.hdr[8:], uint32(len(p.Data)))
	binary.LittleEndian.PutUint32(w.hdr[12:], uint32(max(p.Len, len(p.Data))))
	if _, err := w.w.Write(w.hdr[:]); err != nil {
		return fmt.Errorf("pcap: write packet: %w", err)
	}
	if _, err := w.w.Write(p.Data); err != nil {
		return fmt.Errorf("pcap: write packet: %w", err)
	}
	return nil
}

// Reader reads a capture file of either byte order and resolution.
type Reader struct {
	r     io.Reader
	order binary.ByteOrder
	unit  time.Duration // of the fraction field
}

// NewReader reads the file's header.
func NewReader(r io.Reader) (*Reader, error) {
	var hdr [fileHeaderLen]byte
	if _, err := io.ReadFull(r, hdr[:]); err != nil {
		return nil, fmt.Errorf("pcap: read header: %w", err)
	}
	out := &Reader{r: r}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(hdr[:]) {
		case magicNano:
			out.order, out.unit = order, time.Nanosecond
		case magicMicro:
			out.order, out.unit = order, time.Microsecond
		}
	}
	if out.order == nil {
		return nil, fmt.Errorf("pcap: the file starts with %x, which is not a pcap file", hdr[:4])
	}
	if link := out.order.Uint32(hdr[20:]) & 0xffff; link != ethernet {
		return nil, fmt.Errorf("pcap: link type %d; only Ethernet (1) is understood", link)
	}
	return out, nil
}

// Next reads one packet; io.EOF ends the file. A file cut in the middle of a
// packet, as by a killed writer, ends with io.ErrUnexpectedEOF.
func (r *Reader) Next() (Packet, error) {
	var hdr [packetHeaderLen]byte
	if _, err := io.ReadFull(r.r, hdr[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return Packet{}, io.EOF
		}
		return Packet{}, fmt.Errorf("pcap: read packet: %w", err)
	}
	captured := r.order.Uint32(hdr[8:])
	if captured > SnapLen {
		return Packet{}, fmt.Errorf("pcap: a packet of %d bytes, the limit is %d", captured, SnapLen)
	}
	p := Packet{
		Time: time.Unix(int64(r.order.Uint32(hdr[0:])), int64(r.order.Uint32(hdr[4:]))*int64(r.unit)),
		Data: make([]byte, captured),
		Len:  int(r.order.Uint32(hdr[12:])),
	}
	if _, err := io.ReadFull(r.r, p.Data); err != nil {
		return Packet{}, fmt.Errorf("pcap: read packet: %w", errors.Join(io.ErrUnexpectedEOF, err))
	}
	return p, nil
}
