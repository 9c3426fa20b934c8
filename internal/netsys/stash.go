package netsys

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stashMost is how many unused sockets of one family wait in a namespace
	// whose pod is being called again and again.
	stashMost = 16
	// stashFor is how long they wait.
	stashFor = 2 * time.Second
)

// stash holds sockets of a namespace that nobody connected yet. A socket stays
// in the namespace in which it was made, and all else can be done to it from
// anywhere: whoever makes several in one visit saves entering and leaving, and
// a goroutine on a thread of its own, for each but the first.
type stash struct {
	mu     sync.Mutex
	free   [2][]int // by family: IPv4, IPv6
	batch  int      // how many the last visit made
	last   time.Time
	timer  *time.Timer
	closed bool
}

func stashOf(family int) int {
	if family == unix.AF_INET6 {
		return 1
	}
	return 0
}

// take returns an unused socket, -1 if there is none.
func (s *stash) take(family int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := &s.free[stashOf(family)]
	n := len(*free) - 1
	if n < 0 {
		return -1
	}
	fd := (*free)[n]
	*free = (*free)[:n]
	return fd
}

// next is how many sockets to make in a visit: one, and twice as many as last
// time for as long as visits follow each other closely.
func (s *stash) next(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.last) > stashFor/2 {
		s.batch = 0
	}
	s.last = now
	s.batch = min(max(2*s.batch, 1), stashMost)
	return s.batch
}

// put keeps a socket for later.
func (s *stash) put(family, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := &s.free[stashOf(family)]
	if s.closed || len(*free) >= stashMost {
		_ = unix.Close(fd)
		return
	}
	*free = append(*free, fd)
	if s.timer == nil {
		s.timer = time.AfterFunc(stashFor, s.sweep)
	}
}

// sweep closes what nobody wanted for a while.
func (s *stash) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rest := stashFor - time.Since(s.last); rest > 0 && !s.closed {
		s.timer.Reset(rest)
		return
	}
	s.empty()
}

func (s *stash) empty() {
	for i, free := range s.free {
		for _, fd := range free {
			_ = unix.Close(fd)
		}
		s.free[i] = nil
	}
	s.timer = nil
}

func (s *stash) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.empty()
}

// socket returns a non-blocking TCP socket of the namespace for an address of
// a's family.
func (n *Netns) socket(a netip.Addr) (int, error) {
	family := family(a)
	if fd := n.stash.take(family); fd >= 0 {
		return fd, nil
	}
	var made []int
	want := n.stash.next(time.Now())
	err := n.Do(func() error {
		for range want {
			fd, err := tcpSocket(a)
			if err != nil {
				return err
			}
			made = append(made, fd)
		}
		return nil
	})
	if len(made) == 0 {
		return -1, err // at least one was asked for
	}
	for _, fd := range made[1:] {
		n.stash.put(family, fd)
	}
	return made[0], nil
}
