package proc

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// endSession waits for the end of the main process and kills what it started:
// without a pid namespace of its own the kernel does not do it.
func (p *Process) endSession() {
	pid := p.PID()
	// The process is left unreaped, so that its id still means its own group.
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL) // the group may be empty
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.execs {
		_ = e.Signal(syscall.SIGKILL) // the same
	}
	p.execs = nil
}

// adopt makes child end with p.
func (p *Process) adopt(child *Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := p.execs[:0]
	for _, e := range p.execs {
		if _, ended := e.Status(); !ended {
			kept = append(kept, e)
		}
	}
	p.execs = append(kept, child)
	if _, ended := p.Status(); ended {
		_ = child.Signal(syscall.SIGKILL)
	}
}
