package waypoint

import "syscall"

func processGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

func stopGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) }
