package shopapp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// HoldConfig says how a long-lived connection is driven.
type HoldConfig struct {
	Addr     string
	Marker   string
	Interval time.Duration // between lines; 0 = 100 ms
	Gap      time.Duration // an answer later than this is a gap; 0 = 1 s
	Duration time.Duration // 0 = until ctx ends or the peer closes
	// Each is told every line that came back, and every gap; nil = nobody.
	Each func(HoldEvent)
}

// HoldEvent is one line's way and back, or a gap.
type HoldEvent struct {
	N    int           `json:"n"`
	Took time.Duration `json:"took_ns"`
	Gap  bool          `json:"gap,omitempty"`
	Text string        `json:"text,omitempty"`
}

// HoldReport is a long-lived connection's story.
type HoldReport struct {
	Sent     int           `json:"sent"`
	Received int           `json:"received"`
	Gaps     int           `json:"gaps"`
	Longest  time.Duration `json:"longest_ns"`
	Open     bool          `json:"open"` // still open when the client ended it
	Error    string        `json:"error,omitempty"`
	Seconds  float64       `json:"seconds"`
}

// Hold opens one connection, sends a numbered line every interval and reads
// each back, until it is told to stop or the connection ends.
func Hold(ctx context.Context, cfg HoldConfig) (HoldReport, error) {
	if cfg.Interval <= 0 {
		cfg.Interval = 100 * time.Millisecond
	}
	if cfg.Gap <= 0 {
		cfg.Gap = time.Second
	}
	if cfg.Marker == "" {
		cfg.Marker = DefaultMarker
	}
	if cfg.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cfg.Duration)
		defer cancel()
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	c, err := d.DialContext(ctx, "tcp", cfg.Addr)
	if err != nil {
		return HoldReport{}, fmt.Errorf("open the connection to hold: %w", err)
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	start := time.Now()
	r := hold(ctx, c, cfg)
	r.Seconds = time.Since(start).Seconds()
	return r, nil
}

func hold(ctx context.Context, c net.Conn, cfg HoldConfig) HoldReport {
	var r HoldReport
	back := bufio.NewReader(c)
	tick := time.NewTicker(cfg.Interval)
	defer tick.Stop()
	for {
		sent := time.Now()
		err := exchange(c, back, r.Sent, cfg.Marker)
		took := time.Since(sent)
		r.Longest = max(r.Longest, took)
		if ctx.Err() != nil {
			r.Open = true
			return r
		}
		r.Sent++
		if err != nil {
			r.Error = reasonOfEnd(err)
			return r
		}
		r.Received++
		late := took > cfg.Gap
		if late {
			r.Gaps++
		}
		if cfg.Each != nil {
			cfg.Each(HoldEvent{N: r.Received - 1, Took: took, Gap: late})
		}
		select {
		case <-ctx.Done():
			r.Open = true
			return r
		case <-tick.C:
		}
	}
}

func exchange(w io.Writer, back *bufio.Reader, n int, marker string) error {
	line := fmt.Sprintf("line %d %s", n, marker)
	if _, err := io.WriteString(w, line+"\n"); err != nil {
		return err
	}
	got, err := back.ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasSuffix(strings.TrimSpace(got), line) {
		return fmt.Errorf("sent %q, got back %q", line, strings.TrimSpace(got))
	}
	return nil
}

func reasonOfEnd(err error) string {
	if errors.Is(err, io.EOF) {
		return "closed by the peer"
	}
	return reason(err)
}
