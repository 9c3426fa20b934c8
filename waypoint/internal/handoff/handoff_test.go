package handoff_test

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"

	"github.com/marrowmesh/marrow/waypoint/internal/handoff"
)

func TestOffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := handoff.New()
		a, b := net.Pipe()
		taken := make(chan bool, 2)
		go func() { taken <- l.Offer(a) }()
		if c, err := l.Accept(); err != nil || c != a || !<-taken {
			t.Fatalf("accepted %v, %v", c, err)
		}
		go func() { taken <- l.Offer(b) }()
		synctest.Wait()
		l.End()
		l.End()
		if <-taken {
			t.Error("an offer was taken by nobody")
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v, want that it is closed", err)
		}
		if l.Offer(a) {
			t.Error("an offer was taken after the end")
		}
	})
}

func TestCloseIsNoEnd(t *testing.T) {
	l := handoff.New()
	defer l.End()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	a, _ := net.Pipe()
	go l.Offer(a)
	if c, err := l.Accept(); err != nil || c != a {
		t.Errorf("accepted %v, %v", c, err)
	}
}
