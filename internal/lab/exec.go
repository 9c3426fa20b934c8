package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
)

// ExecProtocol is what the exec connection is upgraded to: the client passes
// its three standard streams with one byte, then sends signals as JSON lines;
// the lab answers with one JSON line when the command has ended.
const ExecProtocol = "marrow-exec"

// Stdio are the streams of a command; nil means /dev/null.
type Stdio struct{ In, Out, Err *os.File }

// ExitError is the status of a command that did not end with 0.
type ExitError struct{ Code int }

// Error is the status in words.
func (e *ExitError) Error() string { return fmt.Sprintf("the command ended with status %d", e.Code) }

// ExitCode is the command's status, 128+n when a signal ended it.
func (e *ExitError) ExitCode() int { return e.Code }

// Exec runs a command in a pod with the caller's streams. Signals on the
// channel go to the command; when ctx ends it is killed. The error is an
// *ExitError when the command itself failed.
func (c *Client) Exec(ctx context.Context, r ExecRequest, io Stdio, signals <-chan os.Signal) error {
	conn, in, err := c.upgrade(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	// The lab kills the command when the connection closes.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := passStdio(conn, io); err != nil {
		return err
	}
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case <-over:
				return
			case s := <-signals:
				if n, ok := s.(syscall.Signal); ok {
					_ = json.NewEncoder(conn).Encode(ExecSignal{Signal: int(n)}) // an ended command needs none
				}
			}
		}
	}()
	var res ExecResult
	switch err := json.NewDecoder(in).Decode(&res); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("exec in %s: the lab ended before the command did: %w", r.Target, err)
	case res.Error != "":
		return fmt.Errorf("exec in %s: %s", r.Target, res.Error)
	case res.Exit != 0:
		return &ExitError{Code: res.Exit}
	}
	return nil
}

func (c *Client) upgrade(ctx context.Context, r ExecRequest) (*net.UnixConn, *bufio.Reader, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "unix", c.State.Socket())
	if err != nil {
		return nil, nil, fmt.Errorf("ask the lab: %w", err)
	}
	conn, ok := raw.(*net.UnixConn)
	if !ok {
		_ = raw.Close()
		return nil, nil, fmt.Errorf("%s is no unix socket", c.State.Socket())
	}
	in, err := handshake(ctx, conn, r)
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, in, nil
}

func handshake(ctx context.Context, conn net.Conn, r ExecRequest) (*bufio.Reader, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode the command: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lab/v1/exec", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", ExecProtocol)
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("ask the lab: %w", err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, fmt.Errorf("read the lab's answer: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer func() { _ = resp.Body.Close() }()
		return nil, readAPIError(resp)
	}
	return in, nil
}

func passStdio(conn *net.UnixConn, io Stdio) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	files := []*os.File{io.In, io.Out, io.Err}
	fds := make([]int, len(files))
	for i, f := range files {
		if f == nil {
			f = null
		}
		fds[i] = int(f.Fd())
	}
	if _, _, err := conn.WriteMsgUnix([]byte{'S'}, syscall.UnixRights(fds...), nil); err != nil {
		return fmt.Errorf("pass standard streams to the lab: %w", err)
	}
	return nil
}

// Output is what a command wrote and how it ended.
type Output struct {
	Stdout, Stderr []byte
	Exit           int
}

// Run executes a command in a pod and keeps its output. A status other than 0
// is in Output, not in the error.
func (c *Client) Run(ctx context.Context, t Target, command ...string) (Output, error) {
	return c.RunInput(ctx, t, nil, command...)
}

// RunInput is Run with standard input.
func (c *Client) RunInput(ctx context.Context, t Target, stdin []byte, command ...string) (Output, error) {
	var pipes []*os.File
	defer func() {
		for _, f := range pipes {
			_ = f.Close() // closed twice on the good path; only the first counts
		}
	}()
	pipe := func() (r, w *os.File, err error) {
		r, w, err = os.Pipe()
		if err == nil {
			pipes = append(pipes, r, w)
		}
		return r, w, err
	}
	var streams Stdio
	outR, outW, err := pipe()
	if err != nil {
		return Output{}, err
	}
	errR, errW, err := pipe()
	if err != nil {
		return Output{}, err
	}
	streams.Out, streams.Err = outW, errW
	var work sync.WaitGroup
	if stdin != nil {
		inR, inW, err := pipe()
		if err != nil {
			return Output{}, err
		}
		streams.In = inR
		work.Go(func() {
			_, _ = inW.Write(stdin) // a command need not read it all
			_ = inW.Close()
		})
	}
	var out Output
	work.Go(func() { out.Stdout, _ = io.ReadAll(outR) })
	work.Go(func() { out.Stderr, _ = io.ReadAll(errR) })
	err = c.Exec(ctx, ExecRequest{Target: t, Command: command}, streams, nil)
	_ = outW.Close()
	_ = errW.Close()
	if streams.In != nil {
		_ = streams.In.Close()
	}
	// A child that the command left behind may hold the streams open.
	if ctx.Err() != nil {
		_ = outR.Close()
		_ = errR.Close()
	}
	work.Wait()
	if exit, ok := errors.AsType[*ExitError](err); ok {
		out.Exit, err = exit.Code, nil
	}
	return out, err
}
