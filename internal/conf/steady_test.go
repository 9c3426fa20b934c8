package conf

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestWithSteady(t *testing.T) {
	for name, tt := range map[string]struct {
		in, want []string
		done     bool
	}{
		"nothing set":        {in: []string{"A=b"}, want: []string{"A=b", "GODEBUG=" + steady}},
		"empty":              {in: []string{"GODEBUG=", "A=b"}, want: []string{"A=b", "GODEBUG=" + steady}},
		"others are kept":    {in: []string{"GODEBUG=gctrace=1,madvdontneed=0"}, want: []string{"GODEBUG=gctrace=1,madvdontneed=0," + steady}},
		"in force":           {in: []string{"GODEBUG=" + steady}, want: []string{"GODEBUG=" + steady}, done: true},
		"the operator's own": {in: []string{"GODEBUG=x=1,schedtrace=0"}, want: []string{"GODEBUG=x=1,schedtrace=0"}, done: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, done := withSteady(tt.in)
			if !slices.Equal(got, tt.want) || done != tt.done {
				t.Errorf("%q, %v; want %q, %v", got, done, tt.want, tt.done)
			}
		})
	}
}

// TestSteady executes this test program, which executes itself once more.
func TestSteady(t *testing.T) {
	if os.Getenv("A_CHILD") != "" {
		if err := Steady(); err != nil {
			t.Fatal(err)
		}
		fmt.Println("child:", os.Getpid(), os.Getenv("GODEBUG"))
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSteady$")
	cmd.Env = append(cmd.Environ(), "A_CHILD=1", "GODEBUG=madvdontneed=0")
	out, err := cmd.CombinedOutput()
	want := "child: " + strconv.Itoa(cmd.Process.Pid) + " madvdontneed=0," + steady
	if err != nil || strings.Count(string(out), want) != 1 {
		t.Errorf("%v, want %q once in:\n%s", err, want, out)
	}
}
