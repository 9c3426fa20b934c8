package h2

import (
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// TestFramesOfRefusedStreams: what an honest peer has under way when it has not read our final GOAWAY yet disturbs nobody.
func TestFramesOfRefusedStreams(t *testing.T) {
	for name, send := range map[string]func(fr *http2.Framer, id uint32) error{
		"window": func(fr *http2.Framer, id uint32) error { return fr.WriteWindowUpdate(id, 1<<20) },
		"reset":  func(fr *http2.Framer, id uint32) error { return fr.WriteRSTStream(id, http2.ErrCodeCancel) },
		"data":   func(fr *http2.Framer, id uint32) error { return fr.WriteData(id, false, []byte("x")) },
	} {
		t.Run(name, func(t *testing.T) {
			lockstep(t, Config{PingInterval: -1}, server, okHandler, func(c *Conn, w *wire) {
				w.connect(1)
				synctest.Wait()
				c.Drain()
				time.Sleep(lingerTimeout + time.Millisecond) // the peer has not answered the ping yet
				w.connect(3)
				synctest.Wait()
				if err := send(w.fr, 3); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if err := c.Err(); err != nil {
					t.Errorf("stream 1, which is served, is cut: %v", err)
				}
			})
		})
	}
}

// TestGivingUpIsFree: an application that hangs makes honest clients give up; who gives up at once is an attacker.
func TestGivingUpIsFree(t *testing.T) {
	for wait, free := range map[time.Duration]bool{time.Second: true, patientReset: true, patientReset / 2: false} {
		hung := func(s *Stream, _ []Field) {
			gone := make(chan struct{})
			s.OnAbort(func() { close(gone) })
			<-gone
		}
		lockstep(t, Config{PingInterval: -1}, server, hung, func(c *Conn, w *wire) {
			id := uint32(1)
			for range 20 {
				first := id
				for range 200 {
					w.connect(id)
					id += 2
				}
				synctest.Wait()
				time.Sleep(wait)
				for ; first < id && c.Err() == nil; first += 2 {
					_ = w.fr.WriteRSTStream(first, http2.ErrCodeCancel)
				}
				synctest.Wait()
				w.sent()
				if c.Err() != nil {
					break
				}
			}
			if err := c.Err(); (err == nil) != free {
				t.Errorf("given up after %v: %v", wait, err)
			}
		})
	}
}
