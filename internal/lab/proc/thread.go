package proc

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs fn on a thread whose network namespace is put back afterwards.
func onThread(fn func() error) error {
	runtime.LockOSThread()
	before, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the current network namespace: %w", err)
	}
	defer func() { _ = before.Close() }()
	err = fn()
	if back := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked and ends with its goroutine.
		return errors.Join(err, fmt.Errorf("leave a network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// onLostThread runs fn on a thread that ends afterwards, for changes that
// cannot be taken back.
func onLostThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if unix.Gettid() == unix.Getpid() {
			// The main thread does not end with its goroutine, and stands for
			// the whole process in /proc. While it is held here, another
			// goroutine gets another thread.
			done <- onLostThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn()
	}()
	return <-done
}

// enter moves the thread into the network, mount and pid namespaces of the
// process that the pidfd stands for; of the last only the thread's next
// children take notice. A mount namespace is entered at its own root, which is
// not the process's where the lab was started under chroot, so the process's
// root is taken over as well.
func enter(pid, pidfd int) error {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the root directory of process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(root) }()
	// The kernel lets a thread change its mount namespace only when it shares
	// its idea of / and of the working directory with nobody.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare fs: %w", err)
	}
	// The pidfd proves that the pid was still the process's when its root was opened.
	if err := unix.Setns(pidfd, unix.CLONE_NEWNET|unix.CLONE_NEWPID|unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the network, pid and mount namespaces: %w", err)
	}
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("go to the root directory of process %d: %w", pid, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("make the root directory of process %d our own: %w", pid, err)
	}
	return nil
}
