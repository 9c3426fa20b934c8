package burst

import (
	"io"
	"os"
	"syscall"
)

// Writer writes to a socket. One goroutine at a time may use it.
type Writer struct {
	rc   syscall.RawConn
	wait bool
	p    []byte
	n    int
	err  error
	step func(fd uintptr) bool
}

// NewWriter makes a Writer of a socket.
func NewWriter(c syscall.Conn) (*Writer, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &Writer{rc: rc}
	w.step = w.onReady
	return w, nil
}

// TryWrite writes what the socket takes now; fewer bytes than asked for and
// no error mean that it is full.
func (w *Writer) TryWrite(p []byte) (int, error) { return w.write(p, false) }

// Write writes all of p.
func (w *Writer) Write(p []byte) (int, error) { return w.write(p, true) }

func (w *Writer) write(p []byte, wait bool) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	w.p, w.n, w.err, w.wait = p, 0, nil, wait
	err := w.rc.Write(w.step)
	w.p = nil
	if w.err != nil {
		return w.n, w.err
	}
	if err != nil && w.n < len(p) {
		return w.n, known(err)
	}
	return w.n, nil
}

// onReady writes until the socket is full; false asks the poller to wait.
func (w *Writer) onReady(fd uintptr) bool {
	for w.n < len(w.p) {
		n, err := write(fd, w.p[w.n:])
		switch {
		case err == syscall.EINTR: //nolint:errorlint // straight from the kernel
		case err == syscall.EAGAIN: //nolint:errorlint // straight from the kernel
			return !w.wait
		case err != nil:
			w.err = os.NewSyscallError("write", err)
			return true
		case n <= 0:
			w.err = io.ErrShortWrite
			return true
		default:
			if w.n += n; w.n < len(w.p) {
				return !w.wait // a short write is a full socket
			}
		}
	}
	return true
}
