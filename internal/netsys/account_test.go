package netsys_test

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/netsys"
)

// TestProcessCPUSeesWork burns CPU and finds it in the process' clock.
func TestProcessCPUSeesWork(t *testing.T) {
	before, err := netsys.ProcessCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for end, n := before+50*time.Millisecond, 0; ; n++ {
		now, err := netsys.ProcessCPU(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now >= end {
			break
		}
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	used := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	if used < before+40*time.Millisecond {
		t.Errorf("getrusage has %v, the clock said more than %v", used, before+50*time.Millisecond)
	}
	if _, err := netsys.ProcessCPU(1 << 22); err == nil {
		t.Error("a process that does not exist has a clock")
	}
}

// TestSyscallCounterCounts makes a known number of calls.
func TestSyscallCounterCounts(t *testing.T) {
	c, err := netsys.CountSyscalls(os.Getpid())
	if err != nil {
		t.Skipf("this host does not let us count: %v", err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	before, err := c.Count()
	if err != nil {
		t.Fatal(err)
	}
	const calls = 10000
	for range calls {
		_, _, _ = syscall.RawSyscall(syscall.SYS_GETPPID, 0, 0, 0)
	}
	after, err := c.Count()
	if err != nil {
		t.Fatal(err)
	}
	if n := after - before; n < calls || n > calls+calls/5 {
		t.Errorf("%d calls counted, %d made", n, calls)
	}
}
