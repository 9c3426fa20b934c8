package netsys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNotNetns says that a file exists but is no network namespace.
var ErrNotNetns = errors.New("not a network namespace")

// Netns is a network namespace, held open by a file descriptor.
type Netns struct {
	file *os.File
	dev  uint64
	ino  uint64

	once    sync.Once
	home    *os.File // the process' own namespace: where threads go back to
	homeErr error

	stash stash
}

// OpenNetns opens the namespace at path, for instance /proc/<pid>/ns/net or a
// bind mount under /run/netns.
func OpenNetns(path string) (*Netns, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	n, err := NetnsFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return n, nil
}

// CurrentNetns opens the namespace of the calling process. Threads of a Go
// process share one unless somebody inside Do asks.
func CurrentNetns() (*Netns, error) {
	return OpenNetns("/proc/thread-self/ns/net")
}

// NetnsFromFD takes ownership of fd: it is closed by Close, and also when an
// error is returned.
func NetnsFromFD(fd int) (*Netns, error) {
	if fd < 0 {
		return nil, fmt.Errorf("descriptor %d: %w", fd, ErrNotNetns)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("stat namespace descriptor: %w", err)
	}
	if err := checkNetns(fd); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &Netns{file: os.NewFile(uintptr(fd), "netns"), dev: st.Dev, ino: st.Ino}, nil
}

func checkNetns(fd int) error {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("descriptor answers no namespace type (%w): %w", err, ErrNotNetns)
	}
	if kind != unix.CLONE_NEWNET {
		return fmt.Errorf("descriptor is a namespace of type %#x: %w", kind, ErrNotNetns)
	}
	return nil
}

// ID is what makes two descriptors the same namespace.
func (n *Netns) ID() (dev, ino uint64) { return n.dev, n.ino }

// Equal reports whether both are the same namespace.
func (n *Netns) Equal(o *Netns) bool {
	return n != nil && o != nil && n.dev == o.dev && n.ino == o.ino
}

// String names the namespace as the kernel's /proc links do.
func (n *Netns) String() string { return fmt.Sprintf("net:[%d]", n.ino) }

// FD is the descriptor, valid until Close.
func (n *Netns) FD() int { return int(n.file.Fd()) }

// Close releases the descriptor; the namespace lives on while anybody else
// holds it.
func (n *Netns) Close() error {
	n.stash.close()
	n.once.Do(func() { n.homeErr = os.ErrClosed })
	if n.home != nil {
		_ = n.home.Close()
	}
	return n.file.Close()
}

// Dup returns an independent holder of the same namespace.
func (n *Netns) Dup() (*Netns, error) {
	fd, err := n.DupFD()
	if err != nil {
		return nil, err
	}
	return &Netns{file: os.NewFile(uintptr(fd), "netns"), dev: n.dev, ino: n.ino}, nil
}

// DupFD returns a descriptor of the namespace that the caller closes.
func (n *Netns) DupFD() (int, error) {
	fd := -1
	rc, err := n.file.SyscallConn()
	if err == nil {
		var failure error
		err = rc.Control(func(own uintptr) { fd, failure = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
		err = errors.Join(err, failure)
	}
	if err != nil {
		return -1, fmt.Errorf("duplicate %v: %w", n, err)
	}
	return fd, nil
}

// CloseFD closes a descriptor that DupFD returned.
func CloseFD(fd int) { _ = unix.Close(fd) }

// Do runs fn on a thread that is inside the namespace, and waits for it. fn
// must not start goroutines that expect to be inside as well. A thread that
// cannot be brought back stays locked when its goroutine ends, which makes
// the runtime destroy it.
func (n *Netns) Do(fn func() error) error {
	done := make(chan error, 1)
	go n.enter(fn, done)
	return <-done
}

func (n *Netns) enter(fn func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The namespace of the main thread is what others see as that of the
		// process: hold it here and go in on another.
		inner := make(chan error, 1)
		go n.enter(fn, inner)
		err := <-inner
		runtime.UnlockOSThread()
		done <- err
		return
	}
	err, restored := n.inside(fn)
	if restored {
		runtime.UnlockOSThread()
	}
	done <- err
}

func (n *Netns) inside(fn func() error) (err error, restored bool) {
	// The main thread never leaves the namespace of the process.
	n.once.Do(func() { n.home, n.homeErr = os.Open("/proc/self/ns/net") })
	if n.homeErr != nil {
		return fmt.Errorf("open own network namespace: %w", n.homeErr), true
	}
	if err := setns(n.file); err != nil {
		return fmt.Errorf("enter %v (needs CAP_SYS_ADMIN): %w", n, err), true
	}
	err = fn()
	if back := setns(n.home); back != nil {
		return errors.Join(err, fmt.Errorf("leave %v, its thread ends: %w", n, back)), false
	}
	return err, true
}

// Loopback6 reports whether the namespace's loopback has IPv6.
func (n *Netns) Loopback6() bool {
	var off []byte
	err := n.Do(func() (err error) {
		off, err = os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
		return err
	})
	return err == nil && len(off) > 0 && off[0] == '0'
}

// setns keeps the descriptor from being closed meanwhile: its number could by
// then be that of another pod's namespace.
func setns(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = rc.Control(func(fd uintptr) { failure = unix.Setns(int(fd), unix.CLONE_NEWNET) })
	return errors.Join(err, failure)
}
