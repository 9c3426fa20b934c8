package run

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// unmapProgram takes the pages of the program's own file, code and constants,
// out of this process's memory; they stay in the system's cache, and each comes
// back when it is touched. The start touches nearly all of them, a proxy at work
// a third. Pages that the process could have changed are left alone.
func unmapProgram() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		if from, to, ok := programPages(lines.Text(), exe); ok {
			// Refused, the pages stay where they are.
			_, _, _ = syscall.RawSyscall(syscall.SYS_MADVISE, from, to-from, syscall.MADV_DONTNEED)
		}
	}
}

// programPages reads a line of /proc/self/maps (proc(5)):
// "from-to perms offset device inode path".
func programPages(line, exe string) (from, to uintptr, ok bool) {
	fields := bytes.Fields([]byte(line))
	if len(fields) < 6 || string(bytes.Join(fields[5:], []byte(" "))) != exe {
		return 0, 0, false
	}
	if perms := string(fields[1]); perms != "r--p" && perms != "r-xp" {
		return 0, 0, false
	}
	low, high, found := bytes.Cut(fields[0], []byte("-"))
	a, err := strconv.ParseUint(string(low), 16, strconv.IntSize)
	b, err2 := strconv.ParseUint(string(high), 16, strconv.IntSize)
	if !found || err != nil || err2 != nil || a >= b {
		return 0, 0, false
	}
	return uintptr(a), uintptr(b), true
}
