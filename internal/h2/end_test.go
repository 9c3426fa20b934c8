package h2

import (
	"testing"
	"time"
)

// TestOnEnd: it runs once, at whatever end comes first, and not after Close.
func TestOnEnd(t *testing.T) {
	for name, end := range map[string]func(peer *Stream){
		"in order": func(peer *Stream) { _ = peer.CloseWrite() },
		"cut":      func(peer *Stream) { _ = peer.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			arrived := make(chan *Stream, 1)
			hold := make(chan struct{})
			defer close(hold)
			cl, _ := pair(t, Config{}, Config{}, func(s *Stream, _ []Field) {
				_ = s.Respond([]Field{{":status", "200"}}, false)
				arrived <- s
				<-hold
			})
			client := tunnelTo(t, cl, "a:1")
			server := <-arrived
			calls := make(chan struct{}, 4)
			server.OnEnd(func() { calls <- struct{}{} })
			select {
			case <-calls:
				t.Fatal("ran while the peer may still send")
			case <-time.After(20 * time.Millisecond):
			}
			end(client)
			<-calls
			server.OnEnd(func() { calls <- struct{}{} }) // too late to wait for it
			<-calls
			_ = server.Close()
			server.OnEnd(func() { calls <- struct{}{} })
			select {
			case <-calls:
				t.Error("ran for its owner, who has closed it")
			case <-time.After(20 * time.Millisecond):
			}
		})
	}
}
