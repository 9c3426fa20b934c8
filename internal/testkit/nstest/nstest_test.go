package nstest

import (
	"os"
	"runtime"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestRunsInside(t *testing.T) {
	Need(t)
	if os.Getpid() == 1 {
		t.Error("the tests run as pid 1; init should")
	}
	if os.Geteuid() != 0 {
		t.Errorf("uid %d inside, want 0", os.Geteuid())
	}
}

// recorder notes how a test would have ended.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper() {}

func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = strings.TrimSpace(args[0].(string))
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = strings.TrimSpace(args[1].(string))
	runtime.Goexit()
}

func TestSkipOrFail(t *testing.T) {
	run := func(required bool) *recorder {
		r := &recorder{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			decide(r, "use sysctl", required)
		}()
		<-done
		return r
	}
	if r := run(false); r.skipped != "use sysctl" || r.failed != "" {
		t.Errorf("not required: skipped %q, failed %q", r.skipped, r.failed)
	}
	if r := run(true); r.failed != "use sysctl" || r.skipped != "" {
		t.Errorf("required: skipped %q, failed %q", r.skipped, r.failed)
	}
}
