package upstream

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestCircuitBreakers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAt()
		s.ApplyClusters([]*Config{eds("c", func(c *Config) { c.Limits = Limits{Connections: 1, Pending: 1, Requests: 10, Retries: 1} })}, nil)
		s.ApplyEndpoints([]*Assignment{list("c", 1)}, nil)
		c := s.Get("c")
		first, err := c.Begin(t.Context(), c.Hosts[0], 1)
		if err != nil {
			t.Fatal(err)
		}
		second := make(chan func(), 1)
		go func() {
			end, err := c.Begin(t.Context(), c.Hosts[0], 1)
			if err != nil {
				t.Error(err)
			}
			second <- end
		}()
		synctest.Wait()
		if len(second) != 0 {
			t.Fatal("a second connection beside the only one that is allowed")
		}
		if _, err := c.Begin(t.Context(), c.Hosts[0], 1); !errors.Is(err, ErrOverflow) {
			t.Errorf("a third request waits: %v", err)
		}
		first()
		first() // an end counts once
		synctest.Wait()
		if len(second) != 1 {
			t.Fatal("the one that waited did not get the place")
		}
		gone, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := c.Begin(gone, c.Hosts[0], 1)
			failed <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		(<-second)()
		if end, err := c.Begin(t.Context(), c.Hosts[0], 1); err != nil {
			t.Errorf("who gave up kept the place: %v", err)
		} else {
			end()
		}
		if n := c.stats.active.Load(); n != 0 || c.stats.line.taken != 0 {
			t.Errorf("%d requests and %d places are left", n, c.stats.line.taken)
		}
		end, ok := c.BeginRetry()
		if _, again := c.BeginRetry(); !ok || again {
			t.Error("more retries than allowed")
		}
		end()
		if _, ok := c.BeginRetry(); !ok {
			t.Error("a retry that ended still counts")
		}
	})
}

func TestRequestLimitHoldsForBothProtocols(t *testing.T) {
	for major, p := range map[int]Protocol{1: HTTP1, 2: HTTP2} {
		s := newAt()
		s.ApplyClusters([]*Config{eds("c", func(c *Config) { c.Limits.Requests, c.Protocol = 2, p })}, nil)
		s.ApplyEndpoints([]*Assignment{list("c", 1)}, nil)
		c := s.Get("c")
		for n := range 3 {
			if _, err := c.Begin(t.Context(), c.Hosts[0], major); (err != nil) != (n == 2) {
				t.Errorf("HTTP/%d, request %d: %v", major, n+1, err)
			}
		}
	}
}

func TestConnectionLimit(t *testing.T) {
	s := newAt()
	s.ApplyClusters([]*Config{eds("c", func(c *Config) { c.Limits.Connections = 1 })}, nil)
	s.ApplyEndpoints([]*Assignment{list("c", 1)}, nil)
	c := s.Get("c")
	end, err := c.BeginConn(c.Hosts[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.BeginConn(c.Hosts[0]); !errors.Is(err, ErrOverflow) {
		t.Errorf("got %v", err)
	}
	end()
	if _, err := c.BeginConn(c.Hosts[0]); err != nil {
		t.Error(err)
	}
}

func TestRetryBudget(t *testing.T) {
	s := newAt()
	s.ApplyClusters([]*Config{eds("c", func(c *Config) {
		c.Limits = Limits{Connections: 1000, Requests: 1000, Budget: &Budget{Percent: 20, Min: 3}}
	})}, nil)
	s.ApplyEndpoints([]*Assignment{list("c", 1)}, nil)
	c := s.Get("c")
	count := func() (n int) {
		var ends []func()
		for {
			end, ok := c.BeginRetry()
			if !ok {
				break
			}
			ends, n = append(ends, end), n+1
		}
		for _, end := range ends {
			end()
		}
		return n
	}
	if n := count(); n != 3 {
		t.Errorf("without requests %d retries may run, want 3", n)
	}
	for range 50 {
		if _, err := c.Begin(t.Context(), c.Hosts[0], 1); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(); n != 10 {
		t.Errorf("beside 50 requests %d retries may run, want a fifth", n)
	}
}
