package obs

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// calls records each Write.
type calls struct {
	mu   sync.Mutex
	all  []string
	gate chan struct{} // if set, each Write waits for it
	err  error
}

func (c *calls) Write(p []byte) (int, error) {
	if c.gate != nil {
		<-c.gate
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, string(p))
	return len(p), c.err
}

func (c *calls) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.all...)
}

func TestBatchWaitsAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &calls{}
		b := NewBatch(c)
		for i := range 3 {
			if n, err := fmt.Fprintf(b, "line %d\n", i); n != 7 || err != nil {
				t.Fatal(n, err)
			}
		}
		time.Sleep(batchDelay - time.Nanosecond)
		synctest.Wait()
		if got := c.seen(); len(got) != 0 {
			t.Errorf("written before the delay: %q", got)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if got := c.seen(); len(got) != 1 || got[0] != "line 0\nline 1\nline 2\n" {
			t.Errorf("%q", got)
		}
		_, _ = b.Write([]byte("again\n"))
		time.Sleep(batchDelay)
		synctest.Wait()
		if got := c.seen(); len(got) != 2 || got[1] != "again\n" {
			t.Errorf("%q", got)
		}
	})
}

func TestBatchFlush(t *testing.T) {
	c := &calls{err: errors.New("disk full")}
	b := NewBatch(c)
	_, _ = b.Write([]byte("last words\n"))
	if err := b.Flush(); !errors.Is(err, c.err) || len(c.seen()) != 1 {
		t.Errorf("%v, %q", err, c.seen())
	}
	if err := b.Flush(); err != nil || len(c.seen()) != 1 {
		t.Errorf("an error is told once, and nothing is written twice: %v, %q", err, c.seen())
	}
}

// TestBatchIsBounded: a reader that stalls stalls the writers, and gets every line in the end.
func TestBatchIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &calls{gate: make(chan struct{})}
		b := NewBatch(c)
		const lines, writers = 100, 3
		line := strings.Repeat("x", 1023) + "\n"
		written := 0
		var done sync.WaitGroup
		// The writer that fills a batch waits for the reader by itself; the others must be stopped.
		for range writers {
			done.Go(func() {
				for range lines {
					_, _ = b.Write([]byte(line))
					b.mu.Lock()
					written++
					b.mu.Unlock()
				}
			})
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		b.mu.Lock()
		if held := len(b.buf); held > 2*batchSize || written > lines {
			t.Errorf("%d bytes held, %d lines taken", held, written)
		}
		b.mu.Unlock()
		close(c.gate)
		done.Wait()
		_ = b.Flush()
		if got := strings.Join(c.seen(), ""); got != strings.Repeat(line, writers*lines) {
			t.Errorf("%d bytes arrived", len(got))
		}
	})
}

func TestBatchKeepsOrderAndLines(t *testing.T) {
	var out bytes.Buffer
	b := NewBatch(&out)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				_, _ = fmt.Fprintf(b, "%d %d\n", w, i)
			}
		})
	}
	wg.Wait()
	_ = b.Flush()
	next := [4]int{}
	for line := range strings.Lines(out.String()) {
		var w, i int
		if _, err := fmt.Sscanf(line, "%d %d\n", &w, &i); err != nil || next[w] != i {
			t.Fatalf("%q after %v: %v", line, next, err)
		}
		next[w]++
	}
	if next != [4]int{2000, 2000, 2000, 2000} {
		t.Error(next)
	}
}
