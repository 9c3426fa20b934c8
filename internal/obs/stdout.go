package obs

import (
	"io"
	"os"
	"syscall"
	"time"
)

// Stdout is where binaries log.
func Stdout() io.Writer { return patient{os.Stdout} }

const (
	// pipePiece is what a pipe that says it is writable takes without blocking
	// (PIPE_BUF of Linux).
	pipePiece = 4 << 10
	// fdSetSize is how many descriptors select knows.
	fdSetSize = 1024
	// pauseFirst and pauseMost are how long a full pipe is left alone.
	pauseFirst = time.Millisecond
	pauseMost  = 50 * time.Millisecond
)

// patient writes to a file such that the thread never sleeps in the kernel
// because nobody reads. The runtime would notice that after 20 ms only, and a
// proxy that runs on one thread would stand still for as long, again and again
// with a slow reader. Setting the descriptor non-blocking is no way: others
// share it.
type patient struct{ f *os.File }

func (p patient) Write(b []byte) (int, error) {
	total := 0
	for pause := pauseFirst; len(b) > 0; {
		if !p.ready() {
			<-time.After(pause) // the poller takes no descriptor that others use blockingly
			pause = min(2*pause, pauseMost)
			continue
		}
		pause = pauseFirst
		n, err := p.f.Write(b[:min(len(b), pipePiece)])
		total += n
		b = b[n:]
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// ready says that a write will not block: there is room, the reader has gone,
// or nobody knows, which the write will show.
func (p patient) ready() bool {
	fd := int(p.f.Fd())
	bits := syscall.FdSet{}
	width := fdSetSize / len(bits.Bits)
	if fd < 0 || fd >= fdSetSize {
		return true
	}
	bits.Bits[fd/width] |= 1 << (fd % width)
	n, err := syscall.Select(fd+1, nil, &bits, nil, &syscall.Timeval{})
	return n != 0 || err != nil
}
