package fabric

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/marrowmesh/marrow/internal/lab/pcap"
)

// The kernel fills a ring of blocks that this process maps. A ring's size is
// not bound by the limits on socket buffers, which root of a user namespace
// may not raise.
const (
	blockSize = 1 << 17 // holds the largest packet
	// On a quiet link every block is handed over nearly empty, so that it is
	// their number, not their size, that lets the reader stall: for 1.28 s.
	blockCount = 128
	// retireAfter makes the kernel hand over a block that is not full.
	retireAfter = 10 * time.Millisecond
	// settle is how long a stopping capture waits for the blocks of packets
	// that were already seen.
	settle = 5 * retireAfter
)

// CaptureStats counts what a capture saw.
type CaptureStats struct {
	Packets int
	Dropped int // the reader was too slow for; a search of the capture is then not complete
}

// Capture is a running capture.
type Capture struct {
	name string
	f    *os.File
	ring []byte

	out   *bufio.Writer
	w     *pcap.Writer
	stats CaptureStats
	ended chan struct{}
	err   error // valid when ended is closed
}

// StartCapture records the packets of the namespace, both directions, in pcap
// format to w: those of one interface, or of all when iface is empty. When it
// returns, every later packet is recorded.
//
// A forwarded packet passes two interfaces and is recorded at both. Segments
// are recorded as the kernel hands them on, up to 64 KiB, before they are cut.
func StartCapture(ns *Netns, iface string, w io.Writer) (*Capture, error) {
	c := &Capture{name: ns.Name(), out: bufio.NewWriterSize(w, 1<<16), ended: make(chan struct{})}
	if iface != "" {
		c.name += " " + iface
	}
	// Nothing is written for a capture that cannot start.
	if err := ns.Do(func() error { return c.open(iface) }); err != nil {
		return nil, fmt.Errorf("fabric: capture on %s: %w", c.name, err)
	}
	var err error
	if c.w, err = pcap.NewWriter(c.out); err == nil {
		// Readers of a pipe see at once that the capture is on.
		err = c.out.Flush()
	}
	if err != nil {
		return nil, fmt.Errorf("fabric: capture on %s: %w", c.name, errors.Join(err, unix.Munmap(c.ring), c.f.Close()))
	}
	go c.run()
	return c, nil
}

// open makes socket and ring; the socket gets packets from the bind on, so
// that the ring holds all of them.
func (c *Capture) open(iface string) (err error) {
	index := 0
	if iface != "" {
		link, err := net.InterfaceByName(iface)
		if err != nil {
			return fmt.Errorf("interface %q: %w", iface, err)
		}
		index = link.Index
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("choose the ring's format: %w", err)
	}
	req := unix.TpacketReq3{
		Block_size: blockSize, Block_nr: blockCount, Frame_size: 2048, Frame_nr: blockSize / 2048 * blockCount,
		Retire_blk_tov: uint32(retireAfter.Milliseconds()),
	}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return fmt.Errorf("make a ring of %d MiB: %w", blockSize*blockCount>>20, err)
	}
	c.ring, err = unix.Mmap(fd, 0, blockSize*blockCount, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	all := binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(all), Ifindex: index}); err != nil {
		return errors.Join(fmt.Errorf("bind: %w", err), unix.Munmap(c.ring))
	}
	c.f = os.NewFile(uintptr(fd), "capture")
	return nil
}

// Stop ends the capture and waits until all it saw is written.
func (c *Capture) Stop() (CaptureStats, error) {
	// It fails only if the capture has ended by itself.
	_ = c.f.SetReadDeadline(time.Now().Add(settle))
	<-c.ended
	return c.stats, c.err
}

// Ended is closed when the capture has ended, be it because w failed.
func (c *Capture) Ended() <-chan struct{} { return c.ended }

// Capture records until ctx ends; see StartCapture.
func (f *Fabric) Capture(ctx context.Context, ns *Netns, iface string, w io.Writer) (CaptureStats, error) {
	c, err := StartCapture(ns, iface, w)
	if err != nil {
		return CaptureStats{}, err
	}
	select {
	case <-ctx.Done():
	case <-c.Ended():
	}
	return c.Stop()
}

func (c *Capture) run() {
	defer close(c.ended)
	err := c.loop()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	err = errors.Join(err, c.out.Flush(), c.count(), unix.Munmap(c.ring), c.f.Close())
	if err != nil {
		c.err = fmt.Errorf("fabric: capture on %s: %w", c.name, err)
	}
}

// loop writes block after block until the deadline that Stop sets.
func (c *Capture) loop() error {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	for at := 0; ; at = (at + 1) % blockCount {
		block := c.ring[at*blockSize : (at+1)*blockSize]
		// The kernel hands a block over by this word, and gets it back so.
		status := (*uint32)(unsafe.Pointer(&block[8]))
		ready := func(uintptr) bool { return atomic.LoadUint32(status)&unix.TP_STATUS_USER != 0 }
		if !ready(0) {
			if err := c.out.Flush(); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			if err := raw.Read(ready); err != nil {
				return err
			}
		}
		if err := c.writeBlock(block); err != nil {
			return err
		}
		atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
	}
}

// writeBlock writes the packets of a block. The layouts are those of struct
// tpacket_hdr_v1, tpacket3_hdr and sockaddr_ll in the machine's byte order.
func (c *Capture) writeBlock(block []byte) error {
	number := binary.NativeEndian.Uint32(block[12:])
	at := binary.NativeEndian.Uint32(block[16:])
	for range number {
		h := block[at:]
		next := binary.NativeEndian.Uint32(h[0:])
		captured := binary.NativeEndian.Uint32(h[12:])
		mac := uint32(binary.NativeEndian.Uint16(h[24:]))
		const header, hatype, pkttype = 48, 8, 10
		ll := h[header:]
		loopback := binary.NativeEndian.Uint16(ll[hatype:]) == unix.ARPHRD_LOOPBACK
		if !loopback || ll[pkttype] != unix.PACKET_OUTGOING {
			p := pcap.Packet{
				Time: time.Unix(int64(binary.NativeEndian.Uint32(h[4:])), int64(binary.NativeEndian.Uint32(h[8:]))),
				Data: h[mac : mac+captured],
				Len:  int(binary.NativeEndian.Uint32(h[16:])),
			}
			if err := c.w.Write(p); err != nil {
				return err
			}
			c.stats.Packets++
		}
		at += next
	}
	return nil
}

// count asks the kernel what it had to leave out.
func (c *Capture) count() error {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	var stats *unix.TpacketStatsV3
	err = errors.Join(raw.Control(func(fd uintptr) {
		stats, err = unix.GetsockoptTpacketStatsV3(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}), err)
	if err != nil {
		return fmt.Errorf("read the counters: %w", err)
	}
	c.stats.Dropped = int(stats.Drops)
	return nil
}
