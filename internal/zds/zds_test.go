package zds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	zdspb "github.com/marrowmesh/marrow/api/zds"
	"github.com/marrowmesh/marrow/internal/obs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openFDs counts the process's descriptors.
func openFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// settle waits until f is true.
func settle(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not happen: " + what)
		}
	}
}

// proxy is a Handler that keeps what it was told.
type proxy struct {
	mu     sync.Mutex
	log    []string
	refuse map[string]error
	slow   chan struct{}
}

func (p *proxy) note(f string, a ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, fmt.Sprintf(f, a...))
}

func (p *proxy) seen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.log, "\n")
}

func (p *proxy) Session(up bool) { p.note("session %v", up) }

func (p *proxy) Add(_ context.Context, uid string, i Info, fd int) error {
	var st syscall.Stat_t
	err := syscall.Fstat(fd, &st)
	p.note("add %s %s/%s/%s ino=%v", uid, i.Namespace, i.Name, i.ServiceAccount, err == nil && st.Ino > 0)
	_ = syscall.Close(fd)
	if p.slow != nil {
		<-p.slow
	}
	return p.refuse[uid]
}

func (p *proxy) Keep(_ context.Context, uid string) error { p.note("keep %s", uid); return nil }
func (p *proxy) Del(_ context.Context, uid string) error  { p.note("del %s", uid); return nil }
func (p *proxy) Snapshot(context.Context) error           { p.note("snapshot"); return nil }

type bench struct {
	t    *testing.T
	path string
	s    *Server
	mu   sync.Mutex
	pods []Entry // FD as the agent's own
	null int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "z.sock")}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	b.null = int(f.Fd())
	b.s = NewServer(ServerConfig{Snapshot: b.snapshot})
	b.s.acceptGap = time.Millisecond
	return b
}

func (b *bench) snapshot(context.Context) []Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := slices.Clone(b.pods)
	for i := range out {
		if out[i].FD >= 0 {
			fd, err := dupFD(out[i].FD)
			if err != nil {
				b.t.Error(err)
			}
			out[i].FD = fd
		}
	}
	return out
}

func (b *bench) serve() (stop func()) {
	b.t.Helper()
	if err := b.s.Listen(b.path); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.s.Serve(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	}
}

func (b *bench) connect(h Handler) (stop func() error) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewClient(obs.Discard()).Run(ctx, b.path, h) }()
	return func() error { cancel(); return <-done }
}

var web = Info{"web-1", "shop", "web"}

func TestConversation(t *testing.T) {
	b := newBench(t)
	b.pods = []Entry{{"u1", web, b.null}, {"u2", Info{"api", "shop", "api"}, -1}}
	if err := b.s.Add(t.Context(), "u0", web, b.null); !errors.Is(err, ErrNoProxy) {
		t.Fatal(err)
	}
	defer b.serve()()
	p := &proxy{refuse: map[string]error{"u4": errors.New("failure to start proxy: port taken")}}
	stop := b.connect(p)
	settle(t, "snapshot", func() bool { return strings.HasSuffix(p.seen(), "snapshot") })
	if err := b.s.Add(t.Context(), "u3", web, b.null); err != nil {
		t.Error(err)
	}
	var refused *Refused
	if err := b.s.Add(t.Context(), "u4", web, b.null); !errors.As(err, &refused) || refused.Text != "failure to start proxy: port taken" {
		t.Error(err)
	}
	if err := b.s.Del(t.Context(), "u3"); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	want := "session true\nadd u1 shop/web-1/web ino=true\nkeep u2\nsnapshot\nadd u3 shop/web-1/web ino=true\nadd u4 shop/web-1/web ino=true\ndel u3\nsession false"
	if p.seen() != want {
		t.Errorf("got\n%s\nwant\n%s", p.seen(), want)
	}
	settle(t, "disconnect seen", func() bool { return b.s.Peers() == 0 })
}

func TestClientComesBack(t *testing.T) {
	b := newBench(t)
	p := &proxy{}
	stop := b.connect(p) // before the agent listens
	end := b.serve()
	settle(t, "first session", func() bool { return strings.Count(p.seen(), "snapshot") == 1 })
	end()
	b.s = NewServer(ServerConfig{Snapshot: b.snapshot})
	defer b.serve()() // in place of the stale socket
	settle(t, "second session", func() bool { return strings.Count(p.seen(), "snapshot") == 2 })
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestSeveralProxies(t *testing.T) {
	b := newBench(t)
	defer b.serve()()
	p1, p2 := &proxy{}, &proxy{}
	defer b.connect(p1)()
	settle(t, "first", func() bool { return strings.Contains(p1.seen(), "snapshot") })
	stop2 := b.connect(p2)
	settle(t, "second", func() bool { return strings.Contains(p2.seen(), "snapshot") })
	if err := errors.Join(b.s.Add(t.Context(), "u", web, b.null), b.s.Del(t.Context(), "u")); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(p1.seen(), "add") || !strings.Contains(p1.seen(), "del u") || !strings.Contains(p2.seen(), "add u") || !strings.Contains(p2.seen(), "del u") {
		t.Errorf("first: %s\nsecond: %s", p1.seen(), p2.seen())
	}
	if err := stop2(); err != nil {
		t.Error(err)
	}
	settle(t, "second gone", func() bool { return b.s.Peers() == 1 })
	if err := b.s.Add(t.Context(), "v", web, b.null); err != nil || !strings.Contains(p1.seen(), "add v") {
		t.Error(err, p1.seen())
	}
}

// rawProxy connects and says hello, the rest is the test's.
func (b *bench) rawProxy() *net.UnixConn {
	b.t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: b.path, Net: "unixpacket"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	hello, _ := encodeHello()
	if err := writePacket(c, hello, -1); err != nil {
		b.t.Fatal(err)
	}
	return c
}

func TestLateAckEndsConnection(t *testing.T) {
	b := newBench(t)
	b.s.limit = 50 * time.Millisecond
	defer b.serve()()
	c := b.rawProxy()
	ack, _ := encodeAck(nil)
	if string(ack) != "\x0a\x00" {
		t.Fatalf("empty ack is %x, want 0a00", ack)
	}
	buf := make([]byte, packetLimit)
	if m, _, err := readPacket(c, buf); err != nil || string(m) != "\x1a\x00" {
		t.Fatalf("snapshot_sent is %x, %v", m, err)
	}
	_ = writePacket(c, ack, -1)
	if err := b.s.Add(t.Context(), "u", web, b.null); !errors.Is(err, ErrLost) {
		t.Errorf("add without ack: %v", err)
	}
	settle(t, "connection dropped", func() bool { return b.s.Peers() == 0 })
}

func TestUnsolicitedDataEndsConnection(t *testing.T) {
	b := newBench(t)
	defer b.serve()()
	c := b.rawProxy()
	ack, _ := encodeAck(nil)
	for range 2 { // the second answers nothing
		_ = writePacket(c, ack, -1)
	}
	settle(t, "connection dropped", func() bool { return b.s.Peers() == 0 })
}

func TestSilentPeerIsDropped(t *testing.T) {
	b := newBench(t)
	b.s.limit = 30 * time.Millisecond
	defer b.serve()()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: b.path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	settle(t, "known", func() bool { return b.s.Peers() == 1 })
	settle(t, "dropped", func() bool { return b.s.Peers() == 0 })
}

func TestListenRefusals(t *testing.T) {
	b := newBench(t)
	if err := os.WriteFile(b.path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.s.Listen(b.path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Error(err)
	}
	if err := b.s.Listen("/" + strings.Repeat("x", 200)); err == nil || !strings.Contains(err.Error(), "kernel allows") {
		t.Error(err)
	}
	if _, err := encodeAdd(strings.Repeat("u", 2000), web); err == nil {
		t.Error("a message beyond the packet limit was made")
	}
}

// agent is a hand-made agent: it accepts one connection after the other.
type agent struct {
	t *testing.T
	l *net.UnixListener
}

func newAgent(t *testing.T, path string) *agent {
	t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &agent{t, l}
}

func (a *agent) accept() *net.UnixConn {
	a.t.Helper()
	_ = a.l.SetDeadline(time.Now().Add(5 * time.Second))
	c, err := a.l.AcceptUnix()
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { c.Close() })
	b, _, err := readPacket(c, make([]byte, packetLimit))
	if err != nil || string(b) != "\x08\x01" {
		a.t.Fatalf("hello is %x, %v", b, err)
	}
	return c
}

func (a *agent) ask(c *net.UnixConn, b []byte, fds ...int) error {
	a.t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(b, oob, nil); err != nil {
		a.t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	in, _, err := readPacket(c, make([]byte, packetLimit))
	if err != nil {
		return err
	}
	return decodeAck(in)
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestProtocolErrorsEndRun(t *testing.T) {
	snap, keep := must(encodeSnapshotSent()), must(encodeKeep("u"))
	noInfo := must(proto.Marshal(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: "u"}}}))
	for name, c := range map[string]struct {
		before, last []byte
		fds          bool
	}{"keep after snapshot": {snap, keep, false}, "second snapshot": {snap, snap, false}, "add without info": {keep, noInfo, true}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			a := newAgent(t, b.path)
			p := &proxy{}
			before := openFDs(t)
			done := make(chan error, 1)
			go func() { done <- NewClient(obs.Discard()).Run(t.Context(), b.path, p) }()
			conn := a.accept()
			if err := a.ask(conn, c.before); err != nil {
				t.Fatal(err)
			}
			var fds []int
			if c.fds {
				fds = []int{b.null}
			}
			var refused *Refused
			if err := a.ask(conn, c.last, fds...); !errors.As(err, &refused) {
				t.Errorf("answer %v, want a nack", err)
			}
			if err := <-done; !errors.Is(err, ErrProtocol) {
				t.Errorf("Run() = %v", err)
			}
			conn.Close()
			settle(t, "descriptors closed", func() bool { return openFDs(t) <= before })
		})
	}
}

func TestGarbageReconnects(t *testing.T) {
	add := must(encodeAdd("u", web))
	b := newBench(t)
	a := newAgent(t, b.path)
	p := &proxy{}
	stop := b.connect(p)
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	first := a.accept()
	before := openFDs(t)
	conn := first
	for name, c := range map[string]struct {
		data []byte
		fds  []int
	}{
		"garbage":        {[]byte{0xff, 0xff, 0xff}, nil},
		"no payload":     {must(proto.Marshal(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{}}))[:0:0], nil},
		"too long":       {make([]byte, packetLimit+1), []int{b.null}},
		"add without fd": {add, nil},
		"two fds":        {add, []int{b.null, b.null}},
		"many fds":       {add, slices.Repeat([]int{b.null}, 40)},
		"del with fd":    {must(encodeDel("u")), []int{b.null}},
		"snapshot fd":    {must(encodeSnapshotSent()), []int{b.null}},
		"no uid":         {must(encodeDel("")), nil},
		"garbage fd":     {[]byte{0xff}, []int{b.null}},
	} {
		if len(c.data) == 0 {
			c.data = []byte{0x78, 0x01} // an unknown field alone
		}
		err := a.ask(conn, c.data, c.fds...)
		var refused *Refused
		if !errors.As(err, &refused) || !strings.HasPrefix(refused.Text, "failure to read message") {
			t.Errorf("%s: answer %v, want a nack", name, err)
		}
		conn.Close()
		conn = a.accept()
		settle(t, name+": descriptors closed", func() bool { return openFDs(t) <= before })
	}
	if strings.Contains(p.seen(), "add") || strings.Contains(p.seen(), "del") {
		t.Error(p.seen())
	}
}

func TestNoDescriptorLeaks(t *testing.T) {
	b := newBench(t)
	b.pods = slices.Repeat([]Entry{{"u", web, b.null}}, 20)
	end := b.serve()
	before := openFDs(t)
	// A slow proxy: callers leave while their call is queued or taken.
	p := &proxy{slow: make(chan struct{})}
	stop := b.connect(p)
	settle(t, "connected", func() bool { return strings.Contains(p.seen(), "add") })
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if err := b.s.Add(ctx, fmt.Sprint(i), web, b.null); err == nil {
				t.Error("added")
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	cancel()
	wg.Wait()
	close(p.slow)
	if err := stop(); err != nil {
		t.Error(err)
	}
	settle(t, "gone", func() bool { return b.s.Peers() == 0 })
	settle(t, "descriptors closed", func() bool { return openFDs(t) <= before })
	end()
}

func TestCallerSeesLostConnection(t *testing.T) {
	b := newBench(t)
	end := b.serve()
	c := b.rawProxy()
	buf := make([]byte, packetLimit)
	read := func() {
		t.Helper()
		if _, fds, err := readPacket(c, buf); err != nil {
			t.Fatal(err)
		} else {
			closeAll(fds)
		}
	}
	read() // snapshot_sent
	if err := writePacket(c, must(encodeAck(nil)), -1); err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() { got <- b.s.Add(t.Context(), "u", web, b.null) }()
	read() // the add
	c.Close()
	if err := <-got; !errors.Is(err, ErrLost) {
		t.Error(err)
	}
	if err := b.s.Del(t.Context(), "u"); err != nil {
		t.Errorf("delete without proxy: %v", err)
	}
	end()
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add(must(encodeAdd("u", web)), 1)
	f.Add(must(encodeKeep("u")), 0)
	f.Add(must(encodeDel("u")), 2)
	f.Add(must(encodeSnapshotSent()), 0)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		var fds []int
		for range min(max(n, 0), 3) {
			fd, err := dupFD(0)
			if err != nil {
				t.Skip()
			}
			fds = append(fds, fd)
		}
		r, err := decodeRequest(b, fds)
		if err != nil && r.fd >= 0 || err == nil && (r.kind == kindAdd) != (r.fd >= 0) || err == nil && r.kind != kindSnapshot && r.uid == "" {
			t.Fatalf("%+v, %v", r, err)
		}
		for _, fd := range fds {
			open := syscall.Close(fd) == nil
			if open != (r.fd == fd) {
				t.Fatalf("descriptor open: %v, result %+v, %v", open, r, err)
			}
		}
	})
}

func FuzzDecodeAck(f *testing.F) {
	f.Add([]byte("\x0a\x00"))
	f.Add(must(encodeAck(errors.New("no"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		var refused *Refused
		if err := decodeAck(b); errors.As(err, &refused) {
			again, encErr := encodeAck(errors.New(refused.Text))
			if encErr != nil || len(again) > packetLimit {
				t.Fatalf("%d bytes, %v", len(again), encErr)
			}
		}
		_ = decodeHello(b)
	})
}
