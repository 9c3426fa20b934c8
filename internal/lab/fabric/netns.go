package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Netns holds a network namespace open.
type Netns struct {
	name string
	f    *os.File
	path string
}

// NewNetns makes an empty network namespace with its loopback down.
func NewNetns(name string) (*Netns, error) {
	var made *Netns
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("fabric: make the network namespace of %s: %w", name, err)
		}
		var err error
		made, err = CurrentNetns(name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return made, nil
}

// CurrentNetns opens the calling thread's network namespace.
func CurrentNetns(name string) (*Netns, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("fabric: open the network namespace of %s: %w", name, err)
	}
	// Not os.Getpid: when /proc is still the host's, its numbers count.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("fabric: find the lab in /proc: %w", err), f.Close())
	}
	return &Netns{name: name, f: f, path: fmt.Sprintf("/proc/%s/fd/%d", self, f.Fd())}, nil
}

// FD is the open descriptor; it belongs to n.
func (n *Netns) FD() int { return int(n.f.Fd()) }

// Path names the namespace for other processes of the lab, as long as this
// process holds it.
func (n *Netns) Path() string { return n.path }

// Name is what the namespace was made for, for messages.
func (n *Netns) Name() string { return n.name }

// Close lets go of the namespace; the kernel removes it with its last user.
func (n *Netns) Close() error { return n.f.Close() }

// Do runs fn on a thread inside the namespace. Sockets that fn makes stay
// there; goroutines that it starts do not.
func (n *Netns) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("fabric: enter the network namespace of %s: %w", n.name, err)
		}
		return fn()
	})
}

// onThread runs fn on a thread whose network namespace is put back afterwards.
// A thread that cannot be put back is not used again.
func onThread(fn func() error) error {
	runtime.LockOSThread()
	before, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("fabric: open the current network namespace: %w", err)
	}
	defer func() { _ = before.Close() }()
	err = fn()
	if back := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("fabric: leave a network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// DialContext connects from inside the namespace. The address must be an IP
// address and port: names would be resolved elsewhere.
func (n *Netns) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() error {
		var (
			d   net.Dialer
			err error
		)
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens inside the namespace.
func (n *Netns) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var l net.Listener
	err := n.Do(func() error {
		var (
			c   net.ListenConfig
			err error
		)
		l, err = c.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram socket inside the namespace.
func (n *Netns) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	var p net.PacketConn
	err := n.Do(func() error {
		var (
			c   net.ListenConfig
			err error
		)
		p, err = c.ListenPacket(ctx, network, address)
		return err
	})
	return p, err
}

// setting is one kernel setting, named as sysctl(8) does.
type setting struct{ name, value string }

// settings of a namespace; see doc.go for the reasons.
func settings(ipv6, forward bool) []setting {
	onOff := map[bool]string{true: "1", false: "0"}[forward]
	list := []setting{
		{"net.ipv4.ip_forward", onOff},
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "0"},
		{"net.ipv4.conf.lo.rp_filter", "0"},
	}
	if !ipv6 {
		return list
	}
	return append(list,
		setting{"net.ipv6.conf.all.disable_ipv6", "0"},
		setting{"net.ipv6.conf.default.disable_ipv6", "0"},
		setting{"net.ipv6.conf.lo.disable_ipv6", "0"},
		setting{"net.ipv6.conf.all.accept_dad", "0"},
		setting{"net.ipv6.conf.default.accept_dad", "0"},
		setting{"net.ipv6.conf.all.accept_ra", "0"},
		setting{"net.ipv6.conf.default.accept_ra", "0"},
		setting{"net.ipv6.conf.all.forwarding", onOff},
		setting{"net.ipv6.conf.default.forwarding", onOff},
	)
}

// apply writes the settings that do not have their value yet, so that a
// read-only /proc/sys matters only where something has to change.
func (n *Netns) apply(list []setting) error {
	return n.Do(func() error {
		for _, s := range list {
			file := filepath.Join("/proc/sys", strings.ReplaceAll(s.name, ".", "/"))
			now, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(now)) == s.value {
				continue
			}
			if err := os.WriteFile(file, []byte(s.value), 0o644); err != nil {
				return fmt.Errorf("fabric: set %s to %s in %s: %w; if /proc/sys is read-only (a container), mount it writable or run the container with --privileged", s.name, s.value, n.name, err)
			}
		}
		return nil
	})
}

// HostHasIPv6 reports whether this kernel speaks IPv6.
func HostHasIPv6() bool {
	raw, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(raw)) == "0"
}
