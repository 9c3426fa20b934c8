package h2

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// stepping is a connection whose writes wait for leave once it is armed.
type stepping struct {
	net.Conn
	armed chan struct{} // closed: from now on
	leave chan struct{}
}

func (s *stepping) WriteOwned(bufs [][]byte) error {
	select {
	case <-s.armed:
		<-s.leave
	default:
	}
	for _, b := range bufs {
		if _, err := s.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// TestCutWhileLent cuts a stream while another one's writer has a piece of its
// memory on the way, and then that write succeeds: the stream's own writer
// must learn of the cut, whoever would have written the rest.
func TestCutWhileLent(t *testing.T) {
	for name, cut := range map[string]func(c *Conn, s *Stream){
		"closed":     func(_ *Conn, s *Stream) { _ = s.Close() },
		"connection": func(c *Conn, _ *Stream) { _ = c.Close() },
		"deadline":   func(_ *Conn, s *Stream) { _ = s.SetWriteDeadline(time.Now().Add(-time.Second)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				nc := &stepping{Conn: a, armed: make(chan struct{}), leave: make(chan struct{})}
				server := NewServer(b, Config{}, func(s *Stream, _ []Field) {
					_ = s.Respond([]Field{{":status", "200"}}, false)
					<-s.Conn().Done() // reads nothing, so windows close
				})
				client := NewClient(nc, Config{})
				other, stream := tunnelTo(t, client, "other:1"), tunnelTo(t, client, "stream:1")
				synctest.Wait()
				close(nc.armed)
				first, second := make(chan error, 1), make(chan error, 1)
				go func() { _, err := other.WriteSlab(slabOf(make([]byte, 100<<10))); first <- err }()
				synctest.Wait() // its piece is on the way
				go func() { _, err := stream.WriteSlab(slabOf(make([]byte, 1<<20))); second <- err }()
				synctest.Wait() // waits for its turn
				nc.leave <- struct{}{}
				synctest.Wait() // its first piece is on the way, by the other's writer
				cut(client, stream)
				synctest.Wait()
				close(nc.leave)
				select {
				case err := <-second:
					if err == nil {
						t.Error("a write of more than the window succeeded")
					}
				case <-time.After(time.Minute):
					t.Error("the writer waits for ever")
				}
				if err := <-first; err != nil && !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
				_, _ = client.Close(), server.Close()
				client.Wait()
				server.Wait()
			})
		})
	}
}
