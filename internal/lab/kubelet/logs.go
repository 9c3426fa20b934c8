package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
)

// maxLog bounds a log file; the one before is kept beside it as .1.
const maxLog = 16 << 20

// LogPath is a container's log.
func LogPath(s lab.State, namespace, pod, container string) string {
	return filepath.Join(s.Logs(), namespace+"_"+pod+"_"+container+".log")
}

// logFile collects a container's output over its restarts.
type logFile struct {
	path string

	mu   sync.Mutex
	f    *os.File
	size int64
}

func newLogFile(path string) *logFile { return &logFile{path: path} }

// Write appends. A log that cannot be written does not stop the container.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil && l.size+int64(len(b)) > maxLog {
		_ = l.f.Close()
		l.f = nil
		_ = os.Rename(l.path, l.path+".1")
	}
	if l.f == nil {
		f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return len(b), nil
		}
		l.f, l.size = f, 0
		if st, err := f.Stat(); err == nil {
			l.size = st.Size()
		}
	}
	n, _ := l.f.Write(b)
	l.size += int64(n)
	return len(b), nil
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		_ = l.f.Close()
		l.f = nil
	}
}

// CopyLog writes a log to w: all of it, or its last lines; with follow also
// what comes later, until ctx ends.
func CopyLog(ctx context.Context, w io.Writer, path string, follow bool, tail int) error {
	f, err := os.Open(path)
	for errors.Is(err, os.ErrNotExist) && follow {
		if !pause(ctx, followPause) {
			return nil
		}
		f, err = os.Open(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // it has written nothing yet
	}
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer func() { _ = f.Close() }()
	if tail > 0 {
		if err := seekTail(f, tail); err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
	}
	for {
		if _, err := io.Copy(w, f); err != nil {
			return fmt.Errorf("copy the log: %w", err)
		}
		if !follow || !pause(ctx, followPause) {
			return nil
		}
		if next := rotated(f, path); next != nil {
			_, err := io.Copy(w, f)
			_ = f.Close()
			f = next
			if err != nil {
				return fmt.Errorf("copy the log: %w", err)
			}
		}
	}
}

const followPause = 100 * time.Millisecond

// rotated answers with the file that has taken f's name since.
func rotated(f *os.File, path string) *os.File {
	now, err := os.Stat(path)
	if err != nil {
		return nil
	}
	if old, err := f.Stat(); err != nil || os.SameFile(old, now) {
		return nil
	}
	next, err := os.Open(path)
	if err != nil {
		return nil
	}
	return next
}

// seekTail moves to the start of the last n lines.
func seekTail(f *os.File, n int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const chunk = 64 << 10
	buf := make([]byte, chunk)
	pos, lines := end, 0
	for pos > 0 {
		size := min(chunk, pos)
		pos -= size
		if _, err := f.ReadAt(buf[:size], pos); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for i := bytes.LastIndexByte(buf[:size], '\n'); i >= 0; i = bytes.LastIndexByte(buf[:i], '\n') {
			if pos+int64(i) == end-1 {
				continue // the newline that ends the last line
			}
			if lines++; lines == n {
				_, err := f.Seek(pos+int64(i)+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
