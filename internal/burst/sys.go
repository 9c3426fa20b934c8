package burst

import (
	"net"
	"syscall"
	"unsafe"
)

// closing is what a descriptor of package os says once it is closed: an error
// without a name, unlike that of package net (TestClosedFile).
const closing = "use of closed file"

// known gives an error of a descriptor the name that callers look for.
func known(err error) error {
	if err != nil && err.Error() == closing {
		return net.ErrClosed
	}
	return err
}

// rawLimit is the largest piece that is moved without telling the scheduler.
// These calls never wait, so there is nothing to tell: the thread is back
// before another could have taken over its work, and is not taken for one
// that blocks. Of more bytes the copying alone takes long.
const rawLimit = 64 << 10

// read is read(2) on a descriptor that does not block.
func read(fd uintptr, p []byte) (int, error) {
	if len(p) > rawLimit {
		return syscall.Read(int(fd), p)
	}
	return raw(syscall.SYS_READ, fd, p)
}

// write is write(2) on a descriptor that does not block.
func write(fd uintptr, p []byte) (int, error) {
	if len(p) > rawLimit {
		return syscall.Write(int(fd), p)
	}
	return raw(syscall.SYS_WRITE, fd, p)
}

func raw(call, fd uintptr, p []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errnoErr(errno)
	}
	return int(n), nil
}

// errnoErr saves the allocation of what happens often.
func errnoErr(e syscall.Errno) error {
	if e == syscall.EAGAIN {
		return errAgain
	}
	return e
}

var errAgain error = syscall.EAGAIN
