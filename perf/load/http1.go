package load

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
)

// The codecs here are of this load alone: requests and answers are made once,
// and of what comes only as much is read as shows that it is whole and right.
// So the load costs little, and the same with every implementation.

// asker1 asks by HTTP/1.1.
type asker1 struct {
	c    net.Conn
	text []byte
	buf  []byte
}

func newAsker1(c net.Conn, s Spec) *asker1 {
	text := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: marrow-perf\r\nAccept: */*\r\n\r\n", s.path(), s.Targets[0])
	return &asker1{c: c, text: []byte(text), buf: make([]byte, 16<<10)}
}

func (*asker1) moved() uint64 { return answerSize }

func (a *asker1) ask() error {
	if _, err := a.c.Write(a.text); err != nil {
		return err
	}
	have, head := 0, -1
	for head < 0 {
		if have == len(a.buf) {
			return wrongAnswer("headers of more than %d bytes", have)
		}
		n, err := a.c.Read(a.buf[have:])
		if err != nil {
			return err
		}
		have += n
		head = bytes.Index(a.buf[:have], []byte("\r\n\r\n"))
	}
	if !bytes.HasPrefix(a.buf, []byte("HTTP/1.1 200 ")) {
		return wrongAnswer("%q", a.buf[:min(have, 100)])
	}
	size := contentLength(a.buf[:head+2])
	left := head + 4 + size - have
	if size != answerSize || left < 0 {
		return wrongAnswer("%d bytes declared, %d beyond the end", size, -left)
	}
	_, err := io.ReadFull(a.c, a.buf[have:have+left])
	return err
}

// contentLength finds the header in some whole lines; -1 = there is none.
func contentLength(head []byte) int {
	const name = "\r\ncontent-length:"
	for i := 0; i+len(name) < len(head); i++ {
		if head[i] != '\r' || !bytes.EqualFold(head[i:i+len(name)], []byte(name)) {
			continue
		}
		value, _, _ := bytes.Cut(head[i+len(name):], []byte("\r"))
		n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
		if err != nil || n < 0 {
			return -1
		}
		return n
	}
	return -1
}

// serve1 answers GETs by HTTP/1.1; seen was read already.
func serve1(c net.Conn, seen []byte) {
	answer := append([]byte("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: "+strconv.Itoa(answerSize)+"\r\n\r\n"), make([]byte, answerSize)...)
	buf := make([]byte, 16<<10)
	have := copy(buf, seen)
	var out []byte
	for {
		n, err := c.Read(buf[have:])
		if err != nil {
			return
		}
		have += n
		out = out[:0]
		rest := buf[:have]
		for {
			at := bytes.Index(rest, []byte("\r\n\r\n"))
			if at < 0 {
				break
			}
			rest = rest[at+4:]
			out = append(out, answer...)
		}
		have = copy(buf, rest)
		if have == len(buf) {
			return // no request of ours
		}
		if len(out) == 0 {
			continue
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}
