package h2

import (
	"time"
)

// Config is the settings of one connection. Zero fields take the mesh's
// defaults, the same for both roles where not said otherwise.
type Config struct {
	StreamWindow  uint32        // bytes a peer may send on a stream unread; 0 = 4 MiB
	ConnWindow    uint32        // bytes a peer may send on all streams unread; 0 = 16 MiB
	FrameSize     uint32        // largest DATA frame taken; 0 = 1 MiB
	MaxStreams    uint32        // server: streams a peer may open, 0 = 200; client: streams opened at once, 0 = 100
	MaxHeaderList uint32        // decoded header bytes taken; 0 = 64 KiB as server, 16 KiB as client
	PingInterval  time.Duration // first ping, and pause after each answer; 0 = 10 s, negative = never
	PingTimeout   time.Duration // silence after a ping that ends the connection; 0 = 20 s
}

const (
	defaultWindow    = 65535 // what RFC 9113 gives before anything is said
	defaultMaxFrame  = 16384
	assumedStreams   = 100 // what a server is taken to allow before its SETTINGS
	maxWindow        = 1<<31 - 1
	prefaceTimeout   = 10 * time.Second
	lingerTimeout    = time.Second // last words and the peer's own close
	outboxLimit      = 256 << 10   // bytes queued before writers wait
	backlogLimit     = 1 << 20     // bytes queued, answers to the peer's own frames included, beyond which it is cut off
	maxDataFrame     = 128 << 10   // our own frames: large enough to be few, small enough to share
	maxControlFrame  = 128 << 10   // any other frame: two whole header lists
	readBufferSize   = 32 << 10    // two TLS records
	maxInformational = 10          // 1xx responses before the final one
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
	if c.PingInterval == 0 {
		c.PingInterval = 10 * time.Second
	}
	if c.PingTimeout == 0 {
		c.PingTimeout = 20 * time.Second
	}
	return c
}

type role uint8

const (
	client role = iota
	server
)
