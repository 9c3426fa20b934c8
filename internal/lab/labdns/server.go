package labdns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/miekg/dns"
)

// Server answers queries from the Records it was given last.
type Server struct {
	zone atomic.Pointer[zone]
}

// NewServer knows no name yet.
func NewServer() *Server {
	s := &Server{}
	s.SetRecords(Records{})
	return s
}

// SetRecords replaces everything the server knows; the Records are not kept.
func (s *Server) SetRecords(r Records) {
	z := newZone(r)
	s.zone.Store(&z)
}

// Answer is the response to one query.
func (s *Server) Answer(q *dns.Msg) *dns.Msg {
	m := (*s.zone.Load()).answer(q)
	// Clients commonly take the first address; a headless Service shall not
	// always lead to the same pod.
	rand.Shuffle(len(m.Answer), func(i, j int) {
		if m.Answer[i].Header().Rrtype == m.Answer[j].Header().Rrtype {
			m.Answer[i], m.Answer[j] = m.Answer[j], m.Answer[i]
		}
	})
	return m
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := s.Answer(q)
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
			m.SetEdns0(opt.UDPSize(), false)
		}
	}
	m.Truncate(size)
	// A client that has gone away is no matter of the server's.
	_ = w.WriteMsg(m)
}

// Listener holds the sockets of a server before it serves, so that a pod
// started after Listen finds DNS there.
type Listener struct {
	packets []net.PacketConn
	streams []net.Listener
}

// Listen opens port 53, UDP and TCP, on each address.
func Listen(ctx context.Context, addrs ...netip.Addr) (*Listener, error) {
	l := &Listener{}
	var lc net.ListenConfig
	for _, a := range addrs {
		at := netip.AddrPortFrom(a, 53).String()
		p, err := lc.ListenPacket(ctx, "udp", at)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("labdns: listen on %s/udp: %w", at, err), l.Close())
		}
		l.packets = append(l.packets, p)
		t, err := lc.Listen(ctx, "tcp", at)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("labdns: listen on %s/tcp: %w", at, err), l.Close())
		}
		l.streams = append(l.streams, t)
	}
	return l, nil
}

// Close closes the sockets.
func (l *Listener) Close() error {
	var errs []error
	for _, p := range l.packets {
		errs = append(errs, p.Close())
	}
	for _, t := range l.streams {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}

// Serve answers on the listener until ctx ends; then it closes the listener.
func (s *Server) Serve(ctx context.Context, l *Listener) error {
	var servers []*dns.Server
	for _, p := range l.packets {
		servers = append(servers, &dns.Server{PacketConn: p, Handler: s, MsgAcceptFunc: acceptAll})
	}
	for _, t := range l.streams {
		servers = append(servers, &dns.Server{Listener: t, Handler: s, MsgAcceptFunc: acceptAll})
	}
	ended := make(chan error, len(servers))
	for _, one := range servers {
		go func() { ended <- one.ActivateAndServe() }()
	}
	var errs []error
	left := len(servers)
	select {
	case <-ctx.Done():
	case err := <-ended:
		errs = append(errs, err)
		left--
	}
	// Closing the sockets, rather than asking each server to shut down, also
	// ends one that has not got round to reading yet.
	errs = append(errs, l.Close())
	for range left {
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// acceptAll leaves it to answer to refuse queries; only responses are ignored.
func acceptAll(h dns.Header) dns.MsgAcceptAction {
	const response = 1 << 15
	if h.Bits&response != 0 {
		return dns.MsgIgnore
	}
	return dns.MsgAccept
}
