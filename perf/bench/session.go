package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/perf/load"
)

// session is a load client that runs in a pod.
type session struct {
	pod    string
	in     *os.File // commands
	events *json.Decoder
	from   *os.File
	errs   bytes.Buffer
	done   chan struct{}
	exit   error // after done
}

// start runs a client in a pod and waits until it is connected.
func (w *world) start(ctx context.Context, pod string, spec load.Spec) (*session, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode the load: %w", err)
	}
	s := &session{pod: pod, done: make(chan struct{})}
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inR.Close(), inW.Close())
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inR.Close(), inW.Close(), outR.Close(), outW.Close())
	}
	s.in, s.from, s.events = inW, outR, json.NewDecoder(outR)
	go func() { // ends with the command
		defer close(s.done)
		var copying sync.WaitGroup
		copying.Go(func() {
			_, _ = s.errs.ReadFrom(errR) // what was read is the message
			_ = errR.Close()
		})
		s.exit = w.lab.Exec(ctx, lab.ExecRequest{Target: target(pod), Command: []string{"marrow", "perf-load", "client", "--spec", string(raw)}},
			lab.Stdio{In: inR, Out: outW, Err: errW}, nil)
		for _, f := range []*os.File{inR, outW, errW} {
			_ = f.Close()
		}
		copying.Wait()
	}()
	if _, err := s.next(); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// next reads an event.
func (s *session) next() (load.Event, error) {
	var e load.Event
	if err := s.events.Decode(&e); err != nil {
		<-s.done
		return e, fmt.Errorf("load client in %s ended: %w: %s", s.pod, errors.Join(s.exit, err), lastLine(s.errs.String()))
	}
	if e.Error != "" {
		return e, fmt.Errorf("load client in %s: %s", s.pod, e.Error)
	}
	return e, nil
}

// phase loads for d and comes to rest.
func (s *session) phase(d time.Duration) (load.Report, error) {
	if err := json.NewEncoder(s.in).Encode(load.Command{Seconds: d.Seconds()}); err != nil {
		return load.Report{}, fmt.Errorf("command the load client in %s: %w", s.pod, err)
	}
	e, err := s.next()
	if err != nil {
		return load.Report{}, err
	}
	if e.Report == nil {
		return load.Report{}, fmt.Errorf("load client in %s: a phase without a report", s.pod)
	}
	return *e.Report, nil
}

// end tells the client to leave and waits until it has. Its status says
// nothing that its events have not said.
func (s *session) end() error {
	err := s.in.Close()
	<-s.done
	return errors.Join(err, s.from.Close())
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// sessions load at the same time.
type sessions []*session

// startAll runs one client per load.
func (w *world) startAll(ctx context.Context, loads []placed) (sessions, error) {
	out := make(sessions, len(loads))
	errs := make([]error, len(loads))
	var work sync.WaitGroup
	for i, l := range loads {
		work.Go(func() { out[i], errs[i] = w.start(ctx, l.pod, l.spec) })
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, out.end())
	}
	return out, nil
}

// placed is a load and the pod that makes it.
type placed struct {
	pod  string
	spec load.Spec
}

// phase makes a phase of all clients and adds their reports up. An operation
// that failed is an error: the others would look too good.
func (ss sessions) phase(d time.Duration) (load.Report, error) {
	reports, errs := make([]load.Report, len(ss)), make([]error, len(ss))
	var work sync.WaitGroup
	for i, s := range ss {
		work.Go(func() { reports[i], errs[i] = s.phase(d) })
	}
	work.Wait()
	var sum load.Report
	for _, r := range reports {
		sum.Add(r)
	}
	if sum.Errors > 0 {
		errs = append(errs, fmt.Errorf("%d operations failed, the first: %s", sum.Errors, sum.Error))
	}
	return sum, errors.Join(errs...)
}

func (ss sessions) end() error {
	var errs []error
	for _, s := range ss {
		if s != nil {
			errs = append(errs, s.end())
		}
	}
	return errors.Join(errs...)
}
