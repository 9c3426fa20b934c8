package record

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/marrowmesh/marrow/internal/burst"
)

// Half is one direction: the traffic secret and the number of the next record.
type Half struct {
	Secret []byte `json:"-"`
	Seq    uint64
	// Past is what went this way before, as far as it is known. New refuses if
	// the next record is among it: somebody else uses the secret then.
	Past []byte
}

// Format keeps secrets out of whatever prints a Half.
func (h Half) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "{secret hidden, record %d}", h.Seq) }

// Post is how much of the peer's messages after the handshake was seen.
type Post struct {
	Head    []byte // of a message whose rest has not come yet
	Skip    int    // bytes of a ticket still to come
	Tickets int    // bytes of tickets so far
}

// State is a connection without its socket: what another Conn, in this
// process or in another, needs to go on with it. It holds secrets and
// plaintext: whoever carries it must not let anybody else read it. Only one
// Conn may go on from a State; two would use the same nonces for what each
// of them says.
type State struct {
	Suite     uint16
	Client    bool // our role in the handshake
	In, Out   Half
	Early     []byte // read from the socket, not opened yet
	Plain     []byte `json:"-"` // opened, not taken yet
	Post      Post
	Update    bool // we owe the peer a KeyUpdate
	SentClose bool // close_notify
	GotClose  bool
	// Limit is how many records a key may seal; 0 is the limit of the
	// algorithm. Less is for tests.
	Limit uint64
}

// Format keeps secrets and what was said out of whatever prints a State.
func (s State) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{suite %#04x, client %t, in %v, out %v, %d bytes early, %d bytes plain}",
		s.Suite, s.Client, s.In, s.Out, len(s.Early), len(s.Plain))
}

// maxSeq bounds restored record numbers: no key lives that long, and from
// here a number cannot overflow.
const maxSeq = 1 << 48

var (
	// ErrUsed refuses a State whose keys somebody else has begun to use.
	ErrUsed = errors.New("record: the keys were used already")
	// ErrExported is the end of a Conn that lives on elsewhere.
	ErrExported = errors.New("record: connection was handed over")
	// ErrBusy refuses an Export while somebody reads.
	ErrBusy = errors.New("record: connection is being read: end its reader by a read deadline in the past")
)

// Conn is a TLS 1.3 connection after its handshake. One goroutine at a time
// reads (Read or Feed); writers wait for each other; neither waits for the
// other direction.
type Conn struct {
	nc     net.Conn
	w      *burst.Writer // to nc; nil if that is no socket; used with out.mu held
	in     input
	out    output
	closed atomic.Bool
}

// New goes on with a connection whose handshake, or whose life in another
// Conn, left it in st. It keeps nothing of st's memory.
func New(nc net.Conn, st State) (*Conn, error) {
	s, ok := suiteOf(st.Suite)
	if !ok {
		return nil, fmt.Errorf("cipher suite %#04x is not spoken here", st.Suite)
	}
	if st.In.Seq > maxSeq || st.Out.Seq > maxSeq {
		return nil, fmt.Errorf("record numbers %d and %d, at most %d", st.In.Seq, st.Out.Seq, uint64(maxSeq))
	}
	if len(st.Post.Head) > headSize || st.Post.Skip < 0 || st.Post.Skip > maxTickets || len(st.Plain) > burst.Max {
		return nil, fmt.Errorf("state of %d head, %d ticket and %d plain bytes is impossible", len(st.Post.Head), st.Post.Skip, len(st.Plain))
	}
	c := &Conn{nc: nc}
	c.in.suite, c.out.suite = s, s
	if err := c.in.install(st.In.Secret, st.In.Seq); err != nil {
		return nil, fmt.Errorf("receiving: %w", err)
	}
	if err := c.out.install(st.Out.Secret, st.Out.Seq); err != nil {
		return nil, fmt.Errorf("sending: %w", err)
	}
	if c.in.opens(st.In.Past) || c.out.opens(st.Out.Past) {
		return nil, ErrUsed
	}
	if sc, ok := nc.(syscall.Conn); ok {
		if w, err := burst.NewWriter(sc); err == nil {
			c.w = w
		}
	}
	c.out.limit = rekeyAfter
	if st.Limit > 0 {
		c.out.limit = min(st.Limit, rekeyAfter)
	}
	c.in.limit = c.out.limit
	c.in.feeder = burst.NewFeeder(nc)
	c.in.once = c.onOnce
	c.in.post = post{client: st.Client, skip: st.Post.Skip, tickets: st.Post.Tickets, updates: bucket{left: updatesAtOnce, at: time.Now()}}
	c.in.post.have = copy(c.in.post.head[:], st.Post.Head)
	c.restore(st)
	return c, nil
}

func (c *Conn) restore(st State) {
	if len(st.Early) > 0 {
		c.in.early = bytes.Clone(st.Early)
	}
	if len(st.Plain) > 0 {
		c.in.plain = burst.Get(len(st.Plain))
		c.in.from = burst.Head
		c.in.to = burst.Head + copy(c.in.plain.B[burst.Head:], st.Plain)
	}
	if st.GotClose {
		c.in.err = errEnd
	}
	if st.SentClose {
		c.out.err = errSentClose
	}
	if st.Update {
		c.out.owed.Or(oweAnswer)
	}
}

// Export ends this Conn and gives what another one over the same socket
// needs. Nobody may be reading; a write that is under way is waited for. The
// socket stays open; it is NetConn's, or a duplicate of it.
func (c *Conn) Export() (State, error) {
	if !c.in.mu.TryLock() {
		return State{}, ErrBusy
	}
	defer c.unlockIn()
	c.out.mu.Lock()
	defer c.unlockOut()
	in, out := &c.in, &c.out
	st := State{
		Suite: in.suite.id, Client: in.post.client, Limit: out.limit, Update: out.owed.Load()&oweAnswer != 0,
		SentClose: errors.Is(out.err, errSentClose), GotClose: errors.Is(in.err, errEnd),
		Post: Post{Head: bytes.Clone(in.post.head[:in.post.have]), Skip: in.post.skip, Tickets: in.post.tickets},
	}
	if c.closed.Load() {
		return State{}, net.ErrClosed
	}
	if in.err != nil && !st.GotClose {
		return State{}, fmt.Errorf("export of a connection that has failed: %w", in.err)
	}
	if out.err != nil && !st.SentClose {
		return State{}, fmt.Errorf("export of a connection that has failed: %w", out.err)
	}
	st.In = Half{Secret: bytes.Clone(in.secret[:in.suite.secret]), Seq: in.seq}
	st.Out = Half{Secret: bytes.Clone(out.secret[:out.suite.secret]), Seq: out.seq}
	st.Early = slices.Concat(in.early, in.feeder.Left())
	if in.plain != nil {
		st.Plain = bytes.Clone(in.plain.B[in.from:in.to])
	}
	in.err, out.err = ErrExported, ErrExported
	out.owed.Store(0)
	in.erase()
	out.erase()
	in.release()
	return st, nil
}

// Suite is the cipher suite, as in tls.ConnectionState.
func (c *Conn) Suite() uint16 { return c.in.suite.id }

// NetConn is the connection below. Reading or writing it breaks this one.
func (c *Conn) NetConn() net.Conn { return c.nc }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// SetDeadline implements net.Conn. A write that a deadline interrupts ends
// the sending direction for good: part of a record may be on its way. A read
// may be repeated.
func (c *Conn) SetDeadline(t time.Time) error { return c.nc.SetDeadline(t) }

// SetReadDeadline implements net.Conn; see SetDeadline.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.nc.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn; see SetDeadline.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.nc.SetWriteDeadline(t) }
