package arena

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/cluster"
	"github.com/marrowmesh/marrow/internal/lab/proc"
	"github.com/marrowmesh/marrow/internal/lab/sandbox"
)

const (
	agentVerb = "arena-agent" // serve the services on the standard streams
	waitVerb  = "arena-wait"  // the pods' own program: nothing, until told to end
)

// Main is for TestMain: besides the tests, this binary is the lab inside its sandbox, the pods' program, and the agents
// that answer for services (values with methods as net/rpc wants them), Watcher among them.
func Main(m *testing.M, services ...any) int {
	proc.MaybeInit()
	sandbox.MaybeInit()
	if box, ok := sandbox.Inside(); ok {
		return cluster.Main(box, os.Args[1:])
	}
	if len(os.Args) == 2 && os.Args[1] == agentVerb {
		return serve(append(services, &Watcher{}))
	}
	if len(os.Args) == 2 && os.Args[1] == waitVerb {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		return 0
	}
	return m.Run()
}

// stdio is the connection of an agent, seen from inside.
type stdio struct {
	io.Reader
	io.WriteCloser
}

func serve(services []any) int {
	s := rpc.NewServer()
	for _, one := range services {
		if err := s.Register(one); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	s.ServeConn(stdio{os.Stdin, os.Stdout})
	return 0
}

// Agent is a process of this test binary in a pod.
type Agent struct {
	rpc    *rpc.Client
	ended  chan struct{}
	errs   bytes.Buffer // what it wrote to standard error; after ended
	exit   error        // after ended
	target string
}

// Agent starts an agent; it ends with the test.
func (a *Arena) Agent(tb testing.TB, in lab.Target) *Agent {
	tb.Helper()
	var pipes [6]*os.File
	for i := 0; i < len(pipes); i += 2 {
		var err error
		if pipes[i], pipes[i+1], err = os.Pipe(); err != nil {
			tb.Fatal(err)
		}
	}
	inR, inW, outR, outW, errR, errW := pipes[0], pipes[1], pipes[2], pipes[3], pipes[4], pipes[5]
	g := &Agent{ended: make(chan struct{}), target: in.String()}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	go func() {
		defer close(g.ended)
		var read sync.WaitGroup
		read.Go(func() { _, _ = io.Copy(&g.errs, errR) })
		g.exit = a.lab.Exec(ctx, lab.ExecRequest{Target: in, Command: []string{a.self, agentVerb}}, lab.Stdio{In: inR, Out: outW, Err: errW}, nil)
		_, _, _ = inR.Close(), outW.Close(), errW.Close()
		read.Wait()
	}()
	g.rpc = rpc.NewClient(stdio{outR, inW})
	tb.Cleanup(func() {
		_ = g.rpc.Close() // the agent ends when its standard input does
		select {
		case <-g.ended:
		case <-time.After(5 * time.Second):
		}
		cancel()
		<-g.ended
		_, _ = outR.Close(), errR.Close()
	})
	return g
}

// Call runs a service's method in the agent. The method shall end by itself; limit is for one that does not.
func (g *Agent) Call(limit time.Duration, method string, args, reply any) error {
	call := g.rpc.Go(method, args, reply, make(chan *rpc.Call, 1))
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-call.Done:
		if errors.Is(call.Error, rpc.ErrShutdown) || errors.Is(call.Error, io.ErrUnexpectedEOF) {
			<-g.ended
			return fmt.Errorf("%s in %s: the agent ended: %w: %w: %s", method, g.target, call.Error, g.exit, g.errs.String())
		}
		if call.Error != nil {
			return fmt.Errorf("%s in %s: %w", method, g.target, call.Error)
		}
		return nil
	case <-late.C:
		return fmt.Errorf("%s in %s did not end within %v", method, g.target, limit)
	}
}

// Do is Call that must succeed, with the reply as its value.
func Do[R any](tb testing.TB, g *Agent, method string, args any) R {
	tb.Helper()
	var reply R
	if err := g.Call(time.Minute, method, args, &reply); err != nil {
		tb.Fatal(err)
	}
	return reply
}

// None is no argument, or no answer.
type None = struct{}

// Watch is an agent beside a node's proxy.
func (a *Arena) Watch(tb testing.TB, node string) *Agent {
	tb.Helper()
	return a.Agent(tb, Ztunnel(node))
}

// Look takes the proxy's state.
func (g *Agent) Look(tb testing.TB) State {
	tb.Helper()
	return Do[State](tb, g, "Watcher.Look", None{})
}

// Settled waits until the proxy holds no more than before; if it does after all this time, it says what.
func (g *Agent) Settled(tb testing.TB, before State, slack int, limit time.Duration) {
	tb.Helper()
	var s State
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if s = g.Look(tb); s.Goroutines <= before.Goroutines+slack && s.FDs <= before.FDs+slack {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	profile := Do[string](tb, g, "Watcher.Goroutines", None{})
	lines := strings.SplitN(profile, "\n", 61)
	tb.Errorf("left behind by %s: %d goroutines and %d files, at rest %d and %d\n%s", g.target, s.Goroutines, s.FDs, before.Goroutines, before.FDs,
		strings.Join(lines[:min(60, len(lines))], "\n"))
}
