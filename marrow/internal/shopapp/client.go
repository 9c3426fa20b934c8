package shopapp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// ClientConfig says what the load client does.
type ClientConfig struct {
	URL       string
	Method    string
	Headers   map[string]string
	Marker    string
	Rate      float64       // requests per second; 0 = one after the other
	Count     int           // 0 = no limit
	Duration  time.Duration // 0 = no limit
	Timeout   time.Duration // of one request; 0 = 10 s
	KeepAlive bool
	HTTP2     bool
	Body      string
	// Each is told every result; nil = nobody.
	Each func(Result)
}

// Result is the outcome of one request.
type Result struct {
	N       int           `json:"n"`
	Status  int           `json:"status,omitempty"`
	Name    string        `json:"name,omitempty"`
	Version string        `json:"version,omitempty"`
	Took    time.Duration `json:"took_ns"`
	Error   string        `json:"error,omitempty"`
	Remote  string        `json:"remote,omitempty"` // the caller's address as the server saw it
	Body    string        `json:"body,omitempty"`   // of an answer that is no Answer
}

// Summary counts results.
type Summary struct {
	Requests int            `json:"requests"`
	Errors   int            `json:"errors"`
	Status   map[string]int `json:"status"`
	Versions map[string]int `json:"versions"`          // name/version of those that answered
	Remotes  map[string]int `json:"remotes,omitempty"` // addresses from which the servers were called
	Texts    map[string]int `json:"texts,omitempty"`
	Min      time.Duration  `json:"min_ns"`
	P50      time.Duration  `json:"p50_ns"`
	P99      time.Duration  `json:"p99_ns"`
	Max      time.Duration  `json:"max_ns"`
	Seconds  float64        `json:"seconds"`
}

// String is the summary for people.
func (s Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests in %.1f s, %d errors; p50 %v, p99 %v\n", s.Requests, s.Seconds, s.Errors, s.P50.Round(time.Microsecond), s.P99.Round(time.Microsecond))
	for _, k := range slices.Sorted(maps.Keys(s.Status)) {
		fmt.Fprintf(&b, "  status %s: %d\n", k, s.Status[k])
	}
	for _, k := range slices.Sorted(maps.Keys(s.Versions)) {
		fmt.Fprintf(&b, "  %s: %d\n", k, s.Versions[k])
	}
	for _, k := range slices.Sorted(maps.Keys(s.Texts)) {
		fmt.Fprintf(&b, "  %q: %d\n", k, s.Texts[k])
	}
	return b.String()
}

// Load sends requests until count, duration or ctx ends it.
func Load(ctx context.Context, cfg ClientConfig) (Summary, error) {
	if cfg.Method == "" {
		cfg.Method = http.MethodGet
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Marker == "" {
		cfg.Marker = DefaultMarker
	}
	if u, err := url.Parse(cfg.URL); err != nil || u.Host == "" {
		return Summary{}, fmt.Errorf("--url %q is no URL; write http://host:port/path", cfg.URL)
	}
	if cfg.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cfg.Duration)
		defer cancel()
	}
	client := &http.Client{Transport: transport(cfg)}
	defer client.CloseIdleConnections()
	var (
		mu      sync.Mutex
		results []Result
		flight  sync.WaitGroup
	)
	start := time.Now()
	take := func(r Result) {
		mu.Lock()
		defer mu.Unlock()
		results = append(results, r)
		if cfg.Each != nil {
			cfg.Each(r)
		}
	}
	// A request that has started is waited for, also after the end of the
	// duration: cutting it would count an error that nobody caused.
	alone := context.WithoutCancel(ctx)
	tick := ticks(cfg.Rate)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil && (cfg.Count == 0 || n < cfg.Count); n++ {
		if cfg.Rate <= 0 {
			take(one(alone, client, cfg, n))
			continue
		}
		flight.Go(func() { take(one(alone, client, cfg, n)) })
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	flight.Wait()
	return summarize(results, time.Since(start)), nil
}

func ticks(rate float64) *time.Ticker {
	if rate <= 0 {
		return time.NewTicker(time.Hour)
	}
	return time.NewTicker(max(time.Microsecond, time.Duration(float64(time.Second)/rate)))
}

func transport(cfg ClientConfig) *http.Transport {
	protocols := new(http.Protocols)
	if cfg.HTTP2 {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP1(true)
	}
	return &http.Transport{DisableKeepAlives: !cfg.KeepAlive, Protocols: protocols, MaxIdleConnsPerHost: 64}
}

func one(ctx context.Context, client *http.Client, cfg ClientConfig, n int) Result {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	r := Result{N: n}
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, cfg.Method, cfg.URL, strings.NewReader(cfg.Body))
	if err != nil {
		r.Error = err.Error()
		return r
	}
	req.Header.Set("X-Marker", cfg.Marker)
	for k, v := range cfg.Headers {
		if strings.EqualFold(k, "host") {
			req.Host = v
			continue
		}
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		r.Took, r.Error = time.Since(start), reason(err)
		return r
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	r.Took, r.Status = time.Since(start), resp.StatusCode
	if err != nil {
		r.Error = reason(err)
		return r
	}
	var a Answer
	if json.Unmarshal(raw, &a) == nil && a.Name != "" {
		r.Name, r.Version = a.Name, a.Version
		if host, _, err := net.SplitHostPort(a.Remote); err == nil {
			r.Remote = host
		}
	} else {
		r.Body = string(bytes.TrimSpace(raw[:min(len(raw), 200)]))
	}
	return r
}

// reason is an error without the addresses that differ between requests.
func reason(err error) string {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e.Op + ": " + e.Err.Error()
	}
	return err.Error()
}

func summarize(results []Result, took time.Duration) Summary {
	s := Summary{Requests: len(results), Status: map[string]int{}, Versions: map[string]int{}, Remotes: map[string]int{}, Texts: map[string]int{}, Seconds: took.Seconds()}
	var times []time.Duration
	for _, r := range results {
		times = append(times, r.Took)
		switch {
		case r.Error != "":
			s.Errors++
			s.Texts[r.Error]++
		default:
			s.Status[fmt.Sprint(r.Status)]++
			if r.Name != "" {
				s.Versions[r.Name+"/"+r.Version]++
			}
			if r.Remote != "" {
				s.Remotes[r.Remote]++
			}
			if r.Body != "" {
				s.Texts[r.Body]++
			}
		}
	}
	if len(times) > 0 {
		slices.Sort(times)
		s.Min, s.Max = times[0], times[len(times)-1]
		s.P50, s.P99 = times[len(times)/2], times[len(times)*99/100]
	}
	return s
}
