package obs

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestPatient: a pipe that nobody reads stops the writer, and not the only thread that runs Go code.
func TestPatient(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	blocking := os.NewFile(w.Fd(), "pipe") // Fd makes it blocking, as standard output is
	sent := make([]byte, 200<<10)
	_, _ = rand.Read(sent)
	done := make(chan error, 1)
	go func() {
		_, err := patient{blocking}.Write(sent)
		done <- err
	}()
	time.Sleep(50 * time.Millisecond) // the pipe is full by now
	if inside := writingTo(t, w.Fd()); inside > 0 {
		t.Errorf("%d threads are asleep in a write", inside)
	}
	select {
	case err := <-done:
		t.Fatalf("200 KiB went into a pipe that nobody reads: %v", err)
	default:
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("other bytes, %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	_ = r.Close()
	if _, err := (patient{blocking}).Write([]byte("x")); err == nil {
		t.Error("a pipe without a reader takes lines")
	}
	_ = w.Close()
}

// TestPatientFile: files are always ready.
func TestPatientFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("a line\n"), 10_000)
	if n, err := (patient{f}).Write(want); n != len(want) || err != nil {
		t.Error(n, err)
	}
	_ = f.Close()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// writingTo counts this process' threads that are in a write to fd.
func writingTo(t *testing.T, fd uintptr) (n int) {
	t.Helper()
	calls, err := filepath.Glob("/proc/self/task/*/syscall")
	if err != nil || len(calls) == 0 {
		t.Fatalf("the kernel does not tell what its threads do: %v", err)
	}
	for _, path := range calls {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		var nr int
		var arg uintptr
		if k, _ := fmt.Sscanf(string(b), "%d 0x%x", &nr, &arg); k == 2 && nr == syscall.SYS_WRITE && arg == fd {
			n++
		}
	}
	return n
}
