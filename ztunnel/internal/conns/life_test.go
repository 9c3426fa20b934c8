package conns

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestLifeIsAContext: it ends as one of package context's does, for whoever waits, derives or hooks on.
func TestLifeIsAContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("why")
		l := &life{}
		ran, stopped := 0, 0
		context.AfterFunc(l, func() { ran++ })
		stop := context.AfterFunc(l, func() { stopped++ })
		unhook := l.AfterFunc(func() { stopped++ })
		child, cancel := context.WithCancel(l)
		defer cancel()
		if l.Err() != nil || context.Cause(l) != nil || !stop() || !unhook() || unhook() || child.Err() != nil {
			t.Fatalf("before the end: %v, %v", l.Err(), child.Err())
		}
		waited := make(chan struct{})
		go func() { <-l.Done(); close(waited) }()
		synctest.Wait()
		l.cancel(why)
		l.cancel(errors.New("again"))
		<-waited
		<-child.Done()
		synctest.Wait()
		for name, err := range map[string]error{"Err": l.Err(), "Cause": context.Cause(l), "the child's Cause": context.Cause(child)} {
			if !errors.Is(err, why) || err.Error() != "why" {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !errors.Is(l.Err(), context.Canceled) || !errors.Is(child.Err(), context.Canceled) || ran != 1 || stopped != 0 {
			t.Errorf("%v, %v, hooks ran %d, stopped ones %d", l.Err(), child.Err(), ran, stopped)
		}
		late := make(chan struct{})
		if stop := l.AfterFunc(func() { close(late) }); stop() {
			t.Error("stopped what had begun")
		}
		<-late
		<-(&life{cause: why}).Done()
	})
}
