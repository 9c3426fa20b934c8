package run

import (
	"bytes"
	"os"
	"strconv"
	"testing"
)

func TestProgramPages(t *testing.T) {
	const exe = "/opt/my mesh/ztunnel"
	for _, tc := range []struct {
		line     string
		from, to uintptr
	}{
		{"00401000-00c99000 r-xp 00001000 fe:00 131 /opt/my mesh/ztunnel", 0x401000, 0xc99000},
		{"00c99000-0123a000 r--p 00899000 fe:00 131 /opt/my mesh/ztunnel", 0xc99000, 0x123a000},
		{"0123a000-012bb000 rw-p 00e3a000 fe:00 131 /opt/my mesh/ztunnel", 0, 0},
		{"00401000-00c99000 r-xs 00001000 fe:00 131 /opt/my mesh/ztunnel", 0, 0},
		{"00401000-00c99000 r-xp 00001000 fe:00 131 /opt/my mesh/ztunnel (deleted)", 0, 0},
		{"7f0000000000-7f0000001000 r--p 00000000 fe:00 7 /usr/lib/libc.so.6", 0, 0},
		{"c000000000-c000400000 rw-p 00000000 00:00 0", 0, 0},
		{"7ffd0000-7ffe0000 r-xp 00000000 00:00 0 [vdso]", 0, 0},
		{"00c99000-00401000 r-xp 00001000 fe:00 131 /opt/my mesh/ztunnel", 0, 0},
		{"zz-00c99000 r-xp 00001000 fe:00 131 /opt/my mesh/ztunnel", 0, 0},
		{"", 0, 0},
	} {
		from, to, ok := programPages(tc.line, exe)
		if from != tc.from || to != tc.to || ok != (tc.to != 0) {
			t.Errorf("%q: %x-%x %v, want %x-%x", tc.line, from, to, ok, tc.from, tc.to)
		}
	}
}

// TestUnmapProgram: the program's pages go, and it runs on.
func TestUnmapProgram(t *testing.T) {
	before := residentFile(t)
	unmapProgram()
	after := residentFile(t)
	if after > before-512 {
		t.Errorf("%d KiB of files are resident, %d before", after, before)
	}
}

// residentFile is RssFile of proc(5), in KiB.
func residentFile(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("RssFile:")); ok {
			n, err := strconv.Atoi(string(bytes.Fields(rest)[0]))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile in /proc/self/status")
	return 0
}
