package run

import (
	"bytes"
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestGroupWaitsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup(t.Context())
		for range 5 {
			g.Go("worker", func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(time.Second)
				return ctx.Err()
			})
		}
		if got := g.Running(); len(got) != 1 || got[0] != "worker" {
			t.Fatalf("Running() = %v", got)
		}
		start := time.Now()
		g.Stop()
		if err := g.Wait(); err != nil {
			t.Fatalf("Wait() = %v, want nil after Stop", err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("Wait returned after %v, want 1s", d)
		}
		if g.Go("late", func(context.Context) error { t.Error("ran"); return nil }) {
			t.Error("Go after Wait started something")
		}
	})
}

// TestGroupHolds: what is held is waited for and named like a goroutine.
func TestGroupHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup(t.Context())
		release, ok := g.Hold("parked")
		if got := g.Running(); !ok || len(got) != 1 || got[0] != "parked" {
			t.Fatalf("held %v, Running() = %v", ok, got)
		}
		start := time.Now()
		time.AfterFunc(time.Second, release)
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("Wait returned after %v, released after 1 s", d)
		}
		if _, ok := g.Hold("late"); ok {
			t.Error("held by a group that is over")
		}
	})
}

func TestGroupFirstErrorStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		g := NewGroup(t.Context())
		g.Go("victim", func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) })
		g.Go("culprit", func(context.Context) error { return boom })
		err := g.Wait()
		if !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "culprit: ") {
			t.Fatalf("Wait() = %v, want culprit: boom", err)
		}
	})
}

func TestDrainCutImpliesStart(t *testing.T) {
	d := NewDrain()
	d.Cut()
	if !d.Draining() {
		t.Fatal("cut without start")
	}
	ctx, cancel := d.Context(t.Context())
	defer cancel()
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), ErrDrained) {
		t.Fatalf("cause = %v", context.Cause(ctx))
	}
}

func TestDrainReachesChildren(t *testing.T) {
	d := NewDrain()
	a, b := d.Child(), d.Child()
	b.Detach()
	b.Cut()
	if a.Draining() || d.Draining() {
		t.Fatal("a child's cut reached its sibling or parent")
	}
	d.Start()
	late := d.Child()
	if !a.Draining() || !late.Draining() {
		t.Fatal("start did not reach the children")
	}
	d.Cut()
	<-a.Forced()
	<-late.Forced()
	<-d.Child().Forced()
}

func TestDrainFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan struct{})
		start := time.Now()
		if NewDrain().Finish(done, 5*time.Second) || time.Since(start) != 5*time.Second {
			t.Fatalf("unfinished work: after %v", time.Since(start))
		}
		close(done)
		if !NewDrain().Finish(done, 5*time.Second) {
			t.Fatal("finished work was reported as lost")
		}
	})
}

func TestReadyUndo(t *testing.T) {
	r := NewReady()
	var seen []Change
	r.OnChange(func(c Change) { c.Elapsed = 0; seen = append(seen, c) })
	state, wl := r.Task("state manager"), r.Task("workload proxy manager")
	get := func(method string) (int, string) {
		w := httptest.NewRecorder()
		r.Handler().ServeHTTP(w, httptest.NewRequest(method, "/healthz/ready", nil))
		return w.Code, w.Body.String()
	}
	if c, b := get("GET"); c != 500 || b != "not ready, pending: state manager, workload proxy manager\n" {
		t.Fatalf("%d %q", c, b)
	}
	state.Done()
	wl.Done()
	wl.Done()
	if c, b := get("GET"); c != 200 || b != "ready\n" {
		t.Fatalf("%d %q", c, b)
	}
	wl.Undo()
	if c, b := get("GET"); c != 500 || b != "not ready, pending: workload proxy manager\n" {
		t.Fatalf("%d %q", c, b)
	}
	if c, _ := get("POST"); c != 405 {
		t.Fatalf("POST = %d", c)
	}
	want := []Change{{Task: "state manager", Done: true, Pending: 1}, {Task: "workload proxy manager", Done: true}, {Task: "workload proxy manager", Pending: 1}}
	if len(seen) != len(want) || seen[0] != want[0] || seen[1] != want[1] || seen[2] != want[2] {
		t.Fatalf("changes %v, want %v", seen, want)
	}
}

type coded struct{}

func (coded) Error() string { return "bad" }
func (coded) ExitCode() int { return ExitConfig }

func TestMainExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{{nil, 0}, {context.Canceled, 0}, {errors.New("x"), 1}, {coded{}, 64}, {errors.Join(errors.New("a"), coded{}), 64}} {
		var out bytes.Buffer
		got := mainWith("prog", make(chan os.Signal), &out, func(int) { t.Error("exit called") }, func(context.Context) error { return c.err })
		if got != c.want || (got != 0) != (out.Len() > 0) {
			t.Errorf("%v: exit %d (want %d), stderr %q", c.err, got, c.want, out.String())
		}
	}
}

func TestMainSignals(t *testing.T) {
	sig := make(chan os.Signal, 3)
	var out bytes.Buffer
	exited := make(chan int, 3)
	sig <- syscall.SIGTERM
	sig <- syscall.SIGINT
	got := mainWith("prog", sig, &out, func(c int) { exited <- c }, func(ctx context.Context) error {
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), ErrStopped) {
			t.Errorf("cause %v", context.Cause(ctx))
		}
		if c := <-exited; c != ExitSignal {
			t.Errorf("exit %d", c)
		}
		return ctx.Err()
	})
	if got != 0 {
		t.Fatalf("exit %d", got)
	}
}
