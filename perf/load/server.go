package load

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// The first byte of a connection says what it is for.
const (
	modeSink     = 'u'
	modeFlood    = 'd'
	modeEcho     = 'e' // four bytes follow: the size of a message
	modeOne      = 'c' // this byte is the message
	modeHold     = 'i'
	modeSlowSink = 's'
	modeGet      = 'G' // a request line
	modePreface  = 'P' // of HTTP/2
)

// Serve answers every kind of load on a listener until ctx ends. It takes the
// listener over.
func Serve(ctx context.Context, l net.Listener) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			var temporary net.Error
			if errors.As(err, &temporary) && pause(ctx, 10*time.Millisecond) {
				continue // out of file descriptors: some will be closed
			}
			return err
		}
		work.Go(func() {
			defer func() { _ = c.Close() }()
			end := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer end()
			serve(ctx, c)
		})
	}
}

// serve handles one connection. Its errors are the client's to notice.
func serve(ctx context.Context, c net.Conn) {
	var mode [1]byte
	if _, err := io.ReadFull(c, mode[:]); err != nil {
		return
	}
	switch mode[0] {
	case modeSink:
		sink(c)
	case modeFlood:
		flood(c)
	case modeEcho:
		echo(c)
	case modeOne:
		_, _ = c.Write(mode[:])
	case modeHold:
		_, _ = c.Write(mode[:])
		_, _ = c.Read(mode[:]) // until the client leaves
	case modeSlowSink:
		_, _ = c.Write(mode[:])
		trickle(ctx, c)
	case modeGet, modePreface:
		serveHTTP(c, mode[0])
	}
}

// sink reads units; after one that begins with last it answers with a byte.
func sink(c net.Conn) {
	buf := make([]byte, 256<<10)
	var at int // in the unit
	var flagged bool
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		for p := buf[:n]; len(p) > 0; {
			if at == 0 {
				flagged = p[0] == last
			}
			step := min(unit-at, len(p))
			p, at = p[step:], at+step
			if at < unit {
				continue
			}
			at = 0
			if flagged {
				if _, err := c.Write([]byte{last}); err != nil {
					return
				}
			}
		}
	}
}

// What a unit, or the byte of a client that receives, begins with.
const (
	more = 0
	last = 1
)

// flood sends units from a byte more of the client to its byte last; the unit
// that begins after that is marked last and ends the phase.
func flood(c net.Conn) {
	buf := make([]byte, unit)
	var ending atomic.Bool
	start := make(chan struct{})
	left := make(chan struct{})
	go func() {
		defer close(left)
		var b [1]byte
		for {
			if _, err := io.ReadFull(c, b[:]); err != nil {
				return
			}
			if b[0] == last {
				ending.Store(true)
				continue
			}
			start <- struct{}{}
		}
	}()
	defer func() {
		_ = c.Close()
		for {
			select {
			case <-start:
			case <-left:
				return
			}
		}
	}()
	for {
		select {
		case <-start:
		case <-left:
			return
		}
		for end := false; !end; {
			end = ending.Swap(false)
			buf[0] = more
			if end {
				buf[0] = last
			}
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}
}

func echo(c net.Conn) {
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	n := binary.BigEndian.Uint32(size[:])
	if n == 0 || n > maxMessage {
		return
	}
	buf := make([]byte, n)
	for {
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

// trickle reads a little now and then, and never catches up.
func trickle(ctx context.Context, c net.Conn) {
	buf := make([]byte, 4<<10)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
		if !pause(ctx, slowPause) {
			return
		}
	}
}

// slowPause is between two reads of a slow reader.
const slowPause = 100 * time.Millisecond

// pause waits; false means that ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
