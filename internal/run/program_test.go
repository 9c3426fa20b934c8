package run

import (
	"bytes"
	"os"
	"strconv"
	"testing"
)

func TestMapping(t *testing.T) {
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
		p, ok := mapping([]byte(tc.line), exe)
		if p.from != tc.from || p.to != tc.to || ok != (tc.to != 0) {
			t.Errorf("%q: %x-%x %v, want %x-%x", tc.line, p.from, p.to, ok, tc.from, tc.to)
		}
	}
}

// TestChangedPagesStay: what was relocated or patched cannot come back from the file.
func TestChangedPagesStay(t *testing.T) {
	const smaps = `00400000-00500000 r-xp 00001000 fe:00 131 /bin/ztunnel
Size:               1024 kB
Anonymous:             0 kB
00500000-00600000 r--p 00101000 fe:00 131 /bin/ztunnel
Size:               1024 kB
Anonymous:             4 kB
00600000-00700000 r--p 00201000 fe:00 131 /bin/ztunnel
Size:               1024 kB
00700000-00800000 r--p 00201000 fe:00 132 /lib/other
Anonymous:             0 kB
`
	got := programPages([]byte(smaps), "/bin/ztunnel")
	if len(got) != 1 || got[0] != (pages{0x400000, 0x500000}) {
		t.Errorf("%x", got)
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
