//go:build lab

package hostile_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/marrowmesh/marrow/integration/arena"
	"github.com/marrowmesh/marrow/internal/mtls"
)

func TestMain(m *testing.M) {
	os.Exit(arena.Main(m, &Victim{}, &Neighbour{}, &Attacker{}, &Dozer{}, &Impostor{}, &Caller{}))
}

// Ports of the pod server.
const (
	echoPort   = "7001" // gives back what it gets
	sourcePort = "7002" // sends for ever
	stallPort  = "7003" // accepts and never reads
	sinkPort   = "7004" // reads and forgets
)

// None is no argument, or no answer.
type None = arena.None

// Victim is the application.
type Victim struct{}

// Serve starts the application. It lives as long as the agent.
func (*Victim) Serve(None, *None) error {
	zeros := make([]byte, 64<<10)
	for port, serve := range map[string]func(net.Conn){
		echoPort: func(c net.Conn) { _, _ = io.Copy(c, c) },
		sourcePort: func(c net.Conn) {
			_ = c.(*net.TCPConn).SetWriteBuffer(16 << 10) // else hundreds of full sockets are what the machine is busy with
			for {
				if _, err := c.Write(zeros); err != nil {
					return
				}
			}
		},
		// Its end is seen by a read when the test's sender is gone, long after the socket is full.
		stallPort: func(c net.Conn) { <-time.After(5 * time.Second) },
		sinkPort:  func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
	} {
		ln, err := net.Listen("tcp", ":"+port)
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
					serve(c)
				}()
			}
		}()
	}
	return nil
}

// Neighbour asks through its own tunnel while others attack.
type Neighbour struct {
	mu   sync.Mutex
	conn net.Conn
}

// Rounds is how a window of round trips went.
type Rounds struct {
	Count         int
	P50, P99, Max time.Duration
	Fault         string // the connection broke, or an answer was wrong
}

// Window says how long to ask, and whom.
type Window struct {
	Addr string
	For  time.Duration
	Deaf bool // Caller: read nothing before the end
}

// Ask makes round trips of 100 bytes, one after the other, on the connection of the calls before.
func (n *Neighbour) Ask(w Window, out *Rounds) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == nil {
		c, err := net.DialTimeout("tcp", w.Addr, 5*time.Second)
		if err != nil {
			return err
		}
		n.conn = c
	}
	msg, back := make([]byte, 100), make([]byte, 100)
	var took []time.Duration
	_ = n.conn.SetDeadline(time.Now().Add(w.For + 5*time.Second))
	for end := time.Now().Add(w.For); ; {
		began := time.Now()
		if !began.Before(end) {
			break
		}
		msg[0]++
		_, err := n.conn.Write(msg)
		if err == nil {
			_, err = io.ReadFull(n.conn, back)
		}
		if err == nil && back[0] != msg[0] {
			err = errors.New("an answer to something else")
		}
		if err != nil {
			out.Fault = err.Error()
			_ = n.conn.Close()
			n.conn = nil
			break
		}
		took = append(took, time.Since(began))
	}
	out.Count = len(took)
	if len(took) > 0 {
		slices.Sort(took)
		out.P50, out.P99, out.Max = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	}
	return nil
}

// Attacker runs rows of the tables.
type Attacker struct{}

// Assault says what to do to whom, for how long.
type Assault struct {
	Name, Pod, Server string
	For               time.Duration
}

// Outcome is what it came to.
type Outcome struct {
	Ends  map[string]int // how connections ended
	Sent  int64          // frames or the like
	Notes []string
}

// Run attacks until the time is over. An attack whose connection is cut off goes on with a new one.
func (*Attacker) Run(a Assault, out *Outcome) error {
	return a.attack(out, func(_ context.Context, err error) error { return err })
}

// keptOut is the end of a connection that was not let in.
const keptOut = "not let in"

// Persist is Run by somebody who knocks again when he is not let in.
func (*Attacker) Persist(a Assault, out *Outcome) error {
	return a.attack(out, func(ctx context.Context, _ error) error {
		out.Ends[keptOut]++
		pause(ctx, time.Millisecond)
		return nil
	})
}

// attack makes one connection after the other; failed is asked what becomes of it when one cannot be made.
func (a Assault) attack(out *Outcome, failed func(context.Context, error) error) error {
	last()
	cert, err := certificate(a.Pod)
	if err != nil {
		return err
	}
	out.Ends = map[string]int{}
	i := slices.IndexFunc(attacks(), func(r attack) bool { return r.name == a.Name })
	if i < 0 {
		return fmt.Errorf("no attack %q", a.Name)
	}
	row := attacks()[i]
	ctx, cancel := context.WithTimeout(context.Background(), a.For)
	defer cancel()
	if row.mob != nil {
		return row.mob(ctx, &mob{cert: cert, server: a.Server, out: out})
	}
	for ctx.Err() == nil {
		if err := row.once(ctx, cert, a.Server, out); err != nil {
			if err := failed(ctx, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// once is one connection of an attack.
func (a attack) once(ctx context.Context, cert *mtls.Certificate, server string, out *Outcome) error {
	patient, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	p, err := dialPeer(patient, cert, server, a.manners)
	if err != nil {
		return err
	}
	defer p.close()
	if !slices.Contains(a.want, tolerated) {
		ctx = patient // it has to end by itself, also when the attack's time is over meanwhile
	}
	a.run(ctx, p)
	out.Ends[a.finish(p)]++
	out.Sent += p.sent.Load()
	if why := p.why(); len(out.Notes) < 2 && why != "" {
		out.Notes = append(out.Notes, why)
	}
	return nil
}

// modesty is a niceness: about a tenth of what others get, if they want it. With less an attack on a busy machine is none.
const modesty = 10

// last gives this process a low priority, by its threads and by its session, whichever the kernel goes by: in life
// the attacker burns the CPU of another machine.
func last() {
	_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(modesty)), 0)
	threads, _ := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, modesty)
		}
	}
}

var certificates sync.Map // pod -> *mtls.Certificate: one is enough for all attacks

func certificate(pod string) (*mtls.Certificate, error) {
	if c, ok := certificates.Load(pod); ok {
		return c.(*mtls.Certificate), nil
	}
	c, err := arena.Certificate(context.Background(), pod)
	if err == nil {
		certificates.Store(pod, c)
	}
	return c, err
}

// Dozer holds connections that never get to the point.
type Dozer struct {
	mu   sync.Mutex
	held map[string]net.Conn
}

// Hold opens one connection of each kind to a pod.
func (d *Dozer) Hold(a Assault, _ *None) error {
	cert, err := certificate(a.Pod)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = map[string]net.Conn{}
	addr := net.JoinHostPort(a.Server, "15008")
	for name, begin := range map[string]func(net.Conn) error{
		"nothing at all": func(net.Conn) error { return nil },
		"half a hello":   func(c net.Conn) error { _, err := c.Write(plain(recordHandshake, 500, clientHello)); return err },
		"a hello and no more": func(c net.Conn) error {
			go func() {
				_ = tls.Client(deaf{c}, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{mtls.Protocol}}).Handshake()
			}()
			return nil
		},
		"no preface":        func(c net.Conn) error { _, err := arena.Handshake(context.Background(), c, cert, nil); return err },
		"half a preface":    d.says(cert, http2.ClientPreface[:11]),
		"no SETTINGS":       d.says(cert, http2.ClientPreface),
		"no answer to PING": d.says(cert, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
		"half a frame":      d.says(cert, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x08\x06"),
	} {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err == nil {
			err = begin(c)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		d.held[name] = c
	}
	return nil
}

func (*Dozer) says(cert *mtls.Certificate, text string) func(net.Conn) error {
	return func(c net.Conn) error {
		s, err := arena.Handshake(context.Background(), c, cert, nil)
		if err == nil {
			_, err = io.WriteString(s, text)
		}
		return err
	}
}

// Awake names those that the server has not closed yet.
func (d *Dozer) Awake(_ None, out *[]string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, c := range d.held {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			*out = append(*out, name)
		}
	}
	slices.Sort(*out)
	return nil
}
