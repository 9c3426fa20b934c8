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
// a third. A mapping of which a page was changed is left alone, also where it may
// not be written any more: a relocated program's constants, a debugger's traps.
func unmapProgram() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, p := range programPages(maps, exe) {
		// Refused, the pages stay where they are.
		_, _, _ = syscall.RawSyscall(syscall.SYS_MADVISE, p.from, p.to-p.from, syscall.MADV_DONTNEED)
	}
}

// pages is one mapping.
type pages struct{ from, to uintptr }

// programPages finds the mappings of exe in /proc/self/smaps (proc(5)) that are
// as the file has them: a line "from-to perms offset device inode path" each, then
// lines "Name: value", of which Anonymous is what differs from the file.
func programPages(smaps []byte, exe string) (out []pages) {
	var at *pages
	for lines := bufio.NewScanner(bytes.NewReader(smaps)); lines.Scan(); {
		line := lines.Bytes()
		if value, ok := bytes.CutPrefix(line, []byte("Anonymous:")); ok {
			if at != nil && bytes.Equal(bytes.TrimSpace(value), []byte("0 kB")) {
				out = append(out, *at)
			}
			at = nil
			continue
		}
		if name, _, _ := bytes.Cut(line, []byte(" ")); !bytes.HasSuffix(name, []byte(":")) { // another mapping
			at = nil
			if p, ok := mapping(line, exe); ok {
				at = &p
			}
		}
	}
	return out
}

// mapping reads the first line of a mapping of exe that is not written to.
func mapping(line []byte, exe string) (p pages, ok bool) {
	fields := bytes.Fields(line)
	if len(fields) < 6 || string(bytes.Join(fields[5:], []byte(" "))) != exe {
		return p, false
	}
	if perms := string(fields[1]); perms != "r--p" && perms != "r-xp" {
		return p, false
	}
	low, high, found := bytes.Cut(fields[0], []byte("-"))
	a, err := strconv.ParseUint(string(low), 16, strconv.IntSize)
	b, err2 := strconv.ParseUint(string(high), 16, strconv.IntSize)
	if !found || err != nil || err2 != nil || a >= b {
		return p, false
	}
	return pages{uintptr(a), uintptr(b)}, true
}
