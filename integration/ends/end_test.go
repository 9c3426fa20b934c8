//go:build lab

package ends_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/marrowmesh/marrow/integration/arena"
)

func TestMain(m *testing.M) { os.Exit(arena.Main(m, &Pod{}, &Aborter{})) }

// Pod is the application of one pod: it does what a script tells, socket by socket.
type Pod struct {
	mu        sync.Mutex
	listeners map[string]*net.TCPListener
	conns     []*net.TCPConn
}

// Op is one step on one socket.
type Op struct {
	Conn  int
	Addr  string
	Bytes int64
	Seed  uint64        // what the bytes are
	Limit time.Duration // of the step; 0 = 10 s
}

// Seen is what the application observed.
type Seen struct {
	Conn  int
	Bytes int64
	Hash  string // of the bytes; "" for none
	Good  bool   // they are the beginning of what Seed gives
	End   string // EOF, ECONNRESET, EPIPE, ...; "" = nothing ended
}

func (p *Pod) keep(c *net.TCPConn) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
	return len(p.conns) - 1
}

func (p *Pod) conn(o Op) *net.TCPConn {
	p.mu.Lock()
	c := p.conns[o.Conn]
	p.mu.Unlock()
	if o.Limit == 0 {
		o.Limit = 10 * time.Second
	}
	return c
}

func (o Op) deadline() time.Time {
	if o.Limit == 0 {
		o.Limit = 10 * time.Second
	}
	return time.Now().Add(o.Limit)
}

// word is the errno that an application would see.
func word(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return ""
	case errors.Is(err, io.EOF):
		return "EOF"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "nothing in time"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// Listen waits for connections on a port.
func (p *Pod) Listen(o Op, _ *Seen) error {
	ln, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listeners == nil {
		p.listeners = map[string]*net.TCPListener{}
	}
	p.listeners[o.Addr] = ln.(*net.TCPListener)
	return nil
}

// Accept takes the next connection.
func (p *Pod) Accept(o Op, s *Seen) error {
	p.mu.Lock()
	ln := p.listeners[o.Addr]
	p.mu.Unlock()
	_ = ln.SetDeadline(o.deadline())
	c, err := ln.AcceptTCP()
	if err == nil {
		s.Conn = p.keep(c)
	}
	s.End = word(err)
	return nil
}

// Dial connects.
func (p *Pod) Dial(o Op, s *Seen) error {
	c, err := net.DialTimeout("tcp", o.Addr, time.Until(o.deadline()))
	if err == nil {
		s.Conn = p.keep(c.(*net.TCPConn))
	}
	s.End = word(err)
	return nil
}

// stream is an endless text that everybody knows.
type stream struct{ r *rand.ChaCha8 }

func textOf(seed uint64) stream {
	return stream{rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})}
}

func (s stream) Read(p []byte) (int, error) { return s.r.Read(p) }

// Send writes bytes. A socket that takes no more within the time ends it.
func (p *Pod) Send(o Op, s *Seen) error {
	c := p.conn(o)
	_ = c.SetWriteDeadline(o.deadline())
	n, err := io.Copy(struct{ io.Writer }{c}, io.LimitReader(textOf(o.Seed), o.Bytes))
	s.Bytes, s.End = n, word(err)
	return nil
}

// Nag writes single bytes until the other side's end is felt.
func (p *Pod) Nag(o Op, s *Seen) error {
	c := p.conn(o)
	for end := o.deadline(); ; time.Sleep(2 * time.Millisecond) {
		_ = c.SetWriteDeadline(end)
		if _, err := c.Write([]byte{0}); err != nil {
			s.End = word(err)
			return nil
		}
	}
}

// judge compares with what was to come, and hashes.
type judge struct {
	sum  hash.Hash
	want stream
	good bool
}

func (j *judge) Write(p []byte) (int, error) {
	want := make([]byte, len(p))
	_, _ = j.want.Read(want)
	j.good = j.good && string(want) == string(p)
	return j.sum.Write(p)
}

// Receive reads so many bytes, or with Bytes 0 until the end.
func (p *Pod) Receive(o Op, s *Seen) error {
	c := p.conn(o)
	_ = c.SetReadDeadline(o.deadline())
	var from io.Reader = struct{ io.Reader }{c}
	if o.Bytes > 0 {
		from = io.LimitReader(from, o.Bytes)
	}
	j := &judge{sum: sha256.New(), want: textOf(o.Seed), good: true}
	n, err := io.Copy(j, from)
	s.Bytes, s.Good, s.End = n, j.good, word(err)
	if n > 0 {
		s.Hash = hex.EncodeToString(j.sum.Sum(nil))[:16]
	}
	if err == nil && (o.Bytes == 0 || n < o.Bytes) {
		s.End = "EOF"
	}
	return nil
}

// Arrived waits until so many bytes lie in the socket, unread.
func (p *Pod) Arrived(o Op, s *Seen) error {
	rc, err := p.conn(o).SyscallConn()
	if err != nil {
		return err
	}
	for end := o.deadline(); time.Now().Before(end); time.Sleep(time.Millisecond) {
		var n int
		if cerr := rc.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); cerr != nil || err != nil {
			return errors.Join(cerr, err)
		}
		if s.Bytes = int64(n); s.Bytes >= o.Bytes {
			return nil
		}
	}
	s.End = "nothing in time"
	return nil
}

// Over waits until the kernel has given the connection up, without reading or writing.
func (p *Pod) Over(o Op, s *Seen) error {
	rc, err := p.conn(o).SyscallConn()
	if err != nil {
		return err
	}
	for end := o.deadline(); time.Now().Before(end); time.Sleep(time.Millisecond) {
		var info *unix.TCPInfo
		if cerr := rc.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil || err != nil {
			return errors.Join(cerr, err)
		}
		if info.State == unix.BPF_TCP_CLOSE {
			s.End = "reset"
			return nil
		}
	}
	s.End = "nothing in time"
	return nil
}

// CloseWrite is shutdown(SHUT_WR).
func (p *Pod) CloseWrite(o Op, s *Seen) error {
	s.End = word(p.conn(o).CloseWrite())
	return nil
}

// Close is close(2).
func (p *Pod) Close(o Op, s *Seen) error {
	s.End = word(p.conn(o).Close())
	return nil
}

// Reset is close(2) with SO_LINGER 0.
func (p *Pod) Reset(o Op, s *Seen) error {
	c := p.conn(o)
	if err := c.SetLinger(0); err != nil {
		return fmt.Errorf("linger: %w", err)
	}
	s.End = word(c.Close())
	return nil
}
