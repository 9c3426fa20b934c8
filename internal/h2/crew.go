package h2

import "sync"

// crew counts the goroutines of a connection. Unlike a WaitGroup's, its count
// may rise from zero while somebody waits: a stream outlives its connection,
// and what its owner asks of it then may need a goroutine
// (TestLateDelivery).
type crew struct {
	mu   sync.Mutex
	n    int
	gone chan struct{} // closed when nobody is left; nil if nobody waits
}

func (w *crew) Add() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
}

func (w *crew) Done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n--; w.n == 0 && w.gone != nil {
		close(w.gone)
		w.gone = nil
	}
}

// Go runs fn as one of the crew.
func (w *crew) Go(fn func()) {
	w.Add()
	go func() {
		defer w.Done()
		fn()
	}()
}

// Wait returns when nobody was left once.
func (w *crew) Wait() {
	w.mu.Lock()
	if w.n > 0 && w.gone == nil {
		w.gone = make(chan struct{})
	}
	gone := w.gone
	w.mu.Unlock()
	if gone != nil {
		<-gone
	}
}
