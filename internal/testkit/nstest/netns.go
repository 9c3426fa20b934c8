package nstest

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/marrowmesh/marrow/internal/netsys"
)

// NewNetns makes an empty network namespace that lives as long as the test.
func NewNetns(tb testing.TB) *netsys.Netns {
	tb.Helper()
	type made struct {
		ns  *netsys.Netns
		err error
	}
	ch := make(chan made, 1)
	go unshare(func(ns *netsys.Netns, err error) { ch <- made{ns, err} })
	m := <-ch
	if m.err != nil {
		tb.Fatalf("new network namespace: %v", m.err)
	}
	tb.Cleanup(func() { _ = m.ns.Close() })
	return m.ns
}

// unshare spoils the thread that it runs on: it stays locked, so that the
// thread ends with the goroutine. The main thread cannot end and is spared.
func unshare(done func(*netsys.Netns, error)) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		held := make(chan struct{})
		go unshare(func(ns *netsys.Netns, err error) {
			done(ns, err)
			close(held)
		})
		<-held
		runtime.UnlockOSThread()
		return
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		done(nil, err)
		return
	}
	done(netsys.CurrentNetns())
}
