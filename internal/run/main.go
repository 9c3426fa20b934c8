package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes of every binary of the project.
const (
	ExitOK     = 0
	ExitFailed = 1
	// ExitConfig is EX_USAGE of sysexits: the configuration was refused and
	// nothing has listened yet.
	ExitConfig = 64
	// ExitSignal is what an impatient second signal ends with, and what was interrupted before its end.
	ExitSignal = 130
)

// exitCoder is an error that chooses the exit code.
type exitCoder interface {
	error
	ExitCode() int
}

// Main is the frame of a program: fn gets a context that ends at the first
// SIGTERM or SIGINT, and its error becomes the exit code. A second SIGINT ends
// the process without ceremony. An error with a method ExitCode() int chooses
// its own code (conf.Error: 64).
func Main(name string, fn func(ctx context.Context) error) int {
	sig := make(chan os.Signal, 4)
	signal.Notify(sig, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(sig)
	return mainWith(name, sig, os.Stderr, os.Exit, fn)
}

func mainWith(name string, sig <-chan os.Signal, stderr io.Writer, exit func(int), fn func(context.Context) error) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	over := make(chan struct{})
	watch := make(chan struct{})
	go func() {
		defer close(watch)
		for first := true; ; first = false {
			select {
			case s := <-sig:
				if !first && s == syscall.SIGINT {
					_, _ = fmt.Fprintf(stderr, "%s: second interrupt, leaving at once\n", name)
					exit(ExitSignal)
				}
				cancel(fmt.Errorf("%w by signal %s", ErrStopped, s))
			case <-over:
				return
			}
		}
	}()
	err := fn(ctx)
	close(over)
	<-watch
	cancel(ErrStopped)
	return ExitCode(name, stderr, err)
}

// ExitCode prints err, if it is one, and gives its exit code.
func ExitCode(name string, stderr io.Writer, err error) int {
	if err == nil || errors.Is(err, ErrStopped) || errors.Is(err, context.Canceled) {
		return ExitOK
	}
	_, _ = fmt.Fprintf(stderr, "%s: %v\n", name, err)
	if coded, ok := errors.AsType[exitCoder](err); ok {
		return coded.ExitCode()
	}
	return ExitFailed
}
