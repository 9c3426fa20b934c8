//go:build lab

package ends_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/integration/arena"
)

// Aborter makes connections only to break them.
type Aborter struct{}

// Serve answers with what it gets.
func (*Aborter) Serve(addr string, _ *arena.None) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return nil
}

// Aborts says how many connections to break, how many at a time.
type Aborts struct {
	Addr     string
	Count    int
	Parallel int
}

// Broken counts them by the moment.
type Broken struct {
	Moments  [5]int64
	Failures int64 // that could not be connected
}

// Run breaks each connection by RST at a random moment.
func (*Aborter) Run(a Aborts, out *Broken) error {
	var moments [5]atomic.Int64
	var failures atomic.Int64
	var next atomic.Int64
	var work sync.WaitGroup
	for range a.Parallel {
		work.Go(func() {
			buf := make([]byte, 64<<10)
			for next.Add(1) <= int64(a.Count) {
				c, err := net.DialTimeout("tcp", a.Addr, 10*time.Second)
				if err != nil {
					failures.Add(1)
					continue
				}
				moment := rand.IntN(len(moments))
				abort(c.(*net.TCPConn), moment, buf)
				moments[moment].Add(1)
			}
		})
	}
	work.Wait()
	for i := range moments {
		out.Moments[i] = moments[i].Load()
	}
	out.Failures = failures.Load()
	if out.Failures > int64(a.Count/100) {
		return errors.New("more than one of a hundred connections failed")
	}
	return nil
}

// abort goes on until the moment, then resets.
func abort(c *net.TCPConn, moment int, buf []byte) {
	defer c.Close()
	_ = c.SetLinger(0)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if moment == 0 { // at once
		return
	}
	n := 1 + rand.IntN(len(buf))
	if moment == 4 { // after the end of our side
		_, _ = c.Write(buf[:1])
		_ = c.CloseWrite()
		_, _ = c.Read(buf)
		return
	}
	_, _ = c.Write(buf[:n])
	switch moment {
	case 2: // in the middle of the answer
		_, _ = c.Read(buf[:1+n/2])
	case 3: // when all is said
		_, _ = io.ReadFull(c, buf[:n])
	}
}

// TestAbortsLeaveNothing: 10,000 connections that clients reset at random moments.
func TestAbortsLeaveNothing(t *testing.T) {
	a := arena.Up(t, arena.Pod{Name: "client", Node: "node-1", Mesh: true}, arena.Pod{Name: "near", Node: "node-1", Mesh: true},
		arena.Pod{Name: "far", Node: "node-2", Mesh: true})
	client := a.Agent(t, arena.InPod("client"))
	proxies := []*arena.Agent{a.Watch(t, "node-1"), a.Watch(t, "node-2")}
	for _, server := range []string{"far", "near"} {
		arena.Do[arena.None](t, a.Agent(t, arena.InPod(server)), "Aborter.Serve", ":7200")
		run := Aborts{Addr: net.JoinHostPort(a.IP(t, server).String(), "7200"), Count: 300, Parallel: 32}
		// The tunnels between the two nodes stay, as they should: they are there before.
		arena.Do[Broken](t, client, "Aborter.Run", run)
		time.Sleep(500 * time.Millisecond)
		before := []arena.State{proxies[0].Look(t), proxies[1].Look(t)}
		began := time.Now()
		run.Count = 5000
		done := arena.Do[Broken](t, client, "Aborter.Run", run)
		took := time.Since(began)
		for i, p := range proxies {
			p.Settled(t, before[i], 0, 10*time.Second)
			after := p.Look(t)
			t.Logf("%s, node-%d: %d goroutines, %d files; before %d and %d; RSS %d -> %d KiB", server, i+1, after.Goroutines, after.FDs,
				before[i].Goroutines, before[i].FDs, before[i].RSS>>10, after.RSS>>10)
		}
		t.Logf("%s: %d connections reset in %v (at once, after writing, in the answer, after it, half-closed: %v; %d not connected)",
			server, run.Count, took.Round(time.Millisecond), done.Moments, done.Failures)
	}
}
