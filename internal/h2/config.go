package h2

import (
	"sync/atomic"
	"time"
)

// Config is the settings of one connection. Zero fields take the mesh's
// defaults, the same for both roles where not said otherwise.
type Config struct {
	StreamWindow  uint32        // most that a stream's window grows to while its owner keeps up; 0 = 4 MiB
	ConnWindow    uint32        // bytes a peer may send on all streams before we say more; 0 = 16 MiB
	Queue         int64         // bytes queued on all streams up to which the connection's window is given back on receipt; 0 = 64 MiB
	FrameSize     uint32        // largest DATA frame taken; 0 = 1 MiB
	MaxStreams    uint32        // server: streams a peer may open, 0 = 200; client: streams opened at once, 0 = 100
	MaxHeaderList uint32        // decoded header bytes taken; 0 = 64 KiB as server, 16 KiB as client
	PingInterval  time.Duration // first ping, and pause after each answer; 0 = 10 s, negative = never
	PingTimeout   time.Duration // silence after a ping that ends the connection; 0 = 20 s
	Requests      *Requests     // requests of every kind are carried; nil = those that ask for a tunnel, as strictly as that allows
	Totals        *Totals       // what all connections of this Config do is added to it; nil = nowhere
}

// Totals counts over the life of a process. Each write to a connection, and each
// piece that is copied, adds to it; so the sums are a moment late at most.
type Totals struct {
	Frames atomic.Uint64 // frames written
	Copied atomic.Uint64 // bytes of streams' data that were copied on their way, other than by sealing and opening
	Queued atomic.Int64  // bytes that wait in streams' queues, of connections that have ended too
	// QueueLimit is the bytes that all connections together may queue before no
	// window is given back any more until its bytes were read; 0 = 128 MiB.
	QueueLimit int64
}

// queue notes n bytes more in streams' queues.
func (t *Totals) queue(n int) {
	if t != nil && n != 0 {
		t.Queued.Add(int64(n))
	}
}

// crowded reports that all connections together queue more than they may.
func (t *Totals) crowded() bool {
	if t == nil {
		return false
	}
	limit := t.QueueLimit
	if limit <= 0 {
		limit = processQueue
	}
	return t.Queued.Load() > limit
}

func (t *Totals) wrote(frames uint64) {
	if t != nil {
		t.Frames.Add(frames)
	}
}

func (t *Totals) copied(n int) {
	if t != nil && n > 0 {
		t.Copied.Add(uint64(n))
	}
}

const (
	defaultWindow    = 65535 // what RFC 9113 gives before anything is said
	defaultMaxFrame  = 16384
	assumedStreams   = 100 // what a server is taken to allow before its SETTINGS
	maxWindow        = 1<<31 - 1
	prefaceTimeout   = 10 * time.Second
	lingerTimeout    = time.Second            // last words and the peer's own close
	outboxLimit      = 256 << 10              // bytes queued before writers wait
	backlogLimit     = 1 << 20                // bytes queued, answers to the peer's own frames included, beyond which it is cut off
	processQueue     = 128 << 20              // bytes queued on all connections of one Totals
	baseWindow       = 256 << 10              // a stream's window at first, and while its owner lags
	extraLimit       = 16 << 20               // what all streams of a connection may have above the base
	maxTurn          = 256 << 10              // one write, when several streams have something to send
	soleTurn         = 1 << 20                // and when one alone does
	sharedTurn       = 64 << 10               // and when several have: what one sends before the next one's turn
	gatherLimit      = 2 << 10                // a write of no more waits for others that are ready
	yieldFrames      = 128                    // a flood of small frames lets others run after so many
	smallWrite       = 16 << 10               // what is copied behind somebody's write instead of waiting for it
	crumbPiece       = 2 << 10                // pieces that are collected when several come at once
	crumbSize        = 256                    // a window that lets us send less than this is not worth the frame
	headerTable      = 4096                   // bytes of header compression's memory, each way
	exportWait       = time.Second            // what Export gives the peer to answer
	maxControlFrame  = 128 << 10              // any frame but DATA: two whole header lists
	maxBlockFrames   = 256                    // HEADERS and CONTINUATIONs of one header block
	maxInformational = 10                     // 1xx responses before the final one
	patientReset     = 250 * time.Millisecond // a stream that lived so long before its answer is given up by right
)

func (c Config) withDefaults(r role) Config {
	set := func(p *uint32, v uint32) {
		if *p == 0 {
			*p = v
		}
	}
	set(&c.StreamWindow, 4<<20)
	set(&c.ConnWindow, 16<<20)
	set(&c.FrameSize, 1<<20)
	if r == server {
		set(&c.MaxStreams, 200)
		set(&c.MaxHeaderList, 64<<10)
	} else {
		set(&c.MaxStreams, 100)
		set(&c.MaxHeaderList, 16<<10)
	}
	c.StreamWindow = min(c.StreamWindow, maxWindow)
	c.ConnWindow = max(min(c.ConnWindow, maxWindow), defaultWindow)
	c.FrameSize = max(min(c.FrameSize, 1<<24-1), defaultMaxFrame)
	if c.Queue <= 0 {
		c.Queue = 64 << 20
	}
	if c.PingInterval == 0 {
		c.PingInterval = 10 * time.Second
	}
	if c.PingTimeout == 0 {
		c.PingTimeout = 20 * time.Second
	}
	return c
}

// base is the window that a stream starts with.
func (c *Config) base() int64 { return int64(min(c.StreamWindow, baseWindow)) }

type role uint8

const (
	client role = iota
	server
)
