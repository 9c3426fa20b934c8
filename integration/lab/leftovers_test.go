//go:build lab

package lab_test

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// inventory is what a lab could leave on the machine, each thing by a text that tells it apart. Others may use the
// machine meanwhile: of processes and network namespaces only those count that this test's programs run or hold.
type inventory map[string]bool

// take looks at the machine. Programs in p.bin are the test's.
func take(t *testing.T, p place) inventory {
	t.Helper()
	inv := inventory{}
	inv.processes(t, p)
	inv.mounts(t, p)
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		inv["link "+l.Attrs().Name] = true
	}
	inv.tables(t)
	inv.files(p.dir, func(path string) bool { return !strings.HasPrefix(path, p.bin) && path != p.dir && path != p.tmp })
	for _, dir := range []string{"/run/marrow-lab", "/run/netns", fmt.Sprintf("/tmp/marrow-lab-%d", os.Getuid())} {
		inv.files(dir, func(string) bool { return true })
	}
	// Nobody else's programs name temporary files after ours.
	strays, err := filepath.Glob("/tmp/marrow*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range strays {
		inv["file "+path] = true
	}
	return inv
}

func (inv inventory) processes(t *testing.T, p place) {
	t.Helper()
	pids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range pids {
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil || !strings.HasPrefix(exe, p.bin) {
			continue // ended meanwhile, or not ours
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		inv["process "+filepath.Base(dir)+" "+strings.ReplaceAll(string(cmdline), "\x00", " ")] = true
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err == nil {
			inv["network namespace "+ns] = true
		}
		fds, _ := filepath.Glob(filepath.Join(dir, "fd/*"))
		for _, fd := range fds {
			if ns, err := os.Readlink(fd); err == nil && strings.HasPrefix(ns, "net:") {
				inv["network namespace "+ns] = true
			}
		}
	}
}

// mounts are those that hold a namespace, or stand below the place.
func (inv inventory) mounts(t *testing.T, p place) {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, " nsfs ") || strings.Contains(line, p.dir) {
			inv["mount "+strings.TrimSpace(line)] = true
		}
	}
}

func (inv inventory) tables(t *testing.T) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		return // not this user's to see, nor then to change
	}
	tables, err := c.ListTables()
	if err != nil {
		return
	}
	for _, table := range tables {
		inv["nft table "+table.Name] = true
	}
}

func (inv inventory) files(dir string, count func(path string) bool) {
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && count(path) {
			inv["file "+path] = true
		}
		return nil
	})
}

// since waits a moment for the kernel to tidy up and returns what is new.
func (before inventory) since(t *testing.T, p place) []string {
	t.Helper()
	var left []string
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		left = nil
		for thing := range take(t, p) {
			if !before[thing] {
				left = append(left, thing)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			slices.Sort(left)
			return left
		}
	}
}

// nothingSince fails the test for everything that is new.
func (before inventory) nothingSince(t *testing.T, p place) {
	t.Helper()
	for _, thing := range before.since(t, p) {
		t.Errorf("left behind: %s", thing)
	}
}

// count is how many things of a kind there are.
func (inv inventory) count(kind string) int {
	return len(slices.DeleteFunc(slices.Collect(maps.Keys(inv)), func(s string) bool { return !strings.HasPrefix(s, kind+" ") }))
}
